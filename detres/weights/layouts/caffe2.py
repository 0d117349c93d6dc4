"""Caffe2's names, as Detectron and detectron2 publish MSRA's networks (ImageNetPretrained/MSRA/R-50.pkl, R-101.pkl).

conv1_w, res_conv1_bn_s, res2_0_branch2a_w, res2_0_branch2a_bn_s, res2_0_branch1_w, fc1000_w. BN is folded into scale
(s) and offset (b); statistics (rm, riv) may stand beside. BGR, 0..255, detectron2's PIXEL_MEAN, no std, stride in the
first 1x1. The weights were trained with Caffe's max pool, so that is their pool here (detectron2 itself pads by 1).
"""

from __future__ import annotations

import re

from detres.data.preprocessing import Preprocessing
from detres.errors import WeightsError, listed
from detres.weights.layouts.common import (
    MSRA_FORM,
    MSRA_NETWORKS,
    ForeignFile,
    ParsedWeights,
    caffe_block,
    constant_norms,
    networks_of,
    norm_of,
)

DETECTRON = Preprocessing(
    channel_order="BGR", value_range=255, mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0)
)
CONVOLUTION = re.compile(r"res(\d)_(\d+)_branch(1|2[abc])_(w|b|bn_\w+)")
STEM = re.compile(r"(?:conv1_(w|b)|res_conv1_(bn_\w+))")
LAST = re.compile(r"(?:fc1000|pred)_(w|b)")
NORM_PARTS = {
    **{"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"},
    **{"gamma": "weight", "beta": "bias", "running_mean": "running_mean", "running_var": "running_var"},
}
# Entries of a training checkpoint that are no weights.
TRAINING_STATE = re.compile(r".*_momentum|weight_order|lr|model_iter")


def fits(file: ForeignFile) -> bool:
    """Whether the file has Caffe2's names of a ResNet."""
    return "conv1_w" in file.tensors and any(CONVOLUTION.fullmatch(name) for name in file.tensors)


def read(file: ForeignFile) -> ParsedWeights:
    """Translate the blobs of a file such as R-50.pkl.

    Raises:
        WeightsError: A name that such a network does not have; group normalization is named as the reason.
    """
    new_names = {name: _torchvision_name(name) for name in file.tensors if not TRAINING_STATE.fullmatch(name)}
    unknown = [name for name, new in new_names.items() if new is None]
    if unknown:
        grouped = "; group normalization is not built here" if any("_gn_" in name for name in unknown) else ""
        raise WeightsError(f"{file.source}: has Caffe2's names, but also {listed(unknown, 4)}{grouped}")
    renamed = {new: file.tensors[name] for name, new in new_names.items() if new is not None}
    whole, folded = constant_norms(renamed, MSRA_FORM["eps"])
    networks = networks_of(MSRA_NETWORKS, MSRA_FORM, whole)
    return ParsedWeights(
        "detectron2's MSRA weights (Caffe2's names)", whole, networks, DETECTRON, folded=folded
    )


def _torchvision_name(name: str) -> str | None:
    if block := CONVOLUTION.fullmatch(name):
        stage, number, branch, part = block.groups()
        return _part_of(caffe_block(int(stage), int(number), branch), part)
    if stem := STEM.fullmatch(name):
        return _part_of("conv1", stem.group(1) or stem.group(2))
    if last := LAST.fullmatch(name):
        return _part_of("fc", last.group(1))
    return None


def _part_of(layer: str, part: str) -> str | None:
    """The tensor's name in `layer` or in the norm behind it; `part` is `w`, `b`, `bn_s`, `bn_rm`..."""
    if part in ("w", "b"):
        return f"{layer}.{'weight' if part == 'w' else 'bias'}"
    known = NORM_PARTS.get(part.removeprefix("bn_"))
    return f"{norm_of(layer)}.{known}" if known else None
