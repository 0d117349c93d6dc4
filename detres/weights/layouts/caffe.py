"""Caffe's own names and blobs, as arrays: MSRA's ResNets (deep-residual-networks) and VGG as published.

conv1, bn_conv1, scale_conv1, res2a_branch2a, bn2a_branch2a, scale2a_branch2a, fc1000; VGG: conv1_1 ... fc8. Each name
has a list of blobs in Caffe's order, or stands once for each blob with its number behind (`fc1000/0` or `fc1000.0`):
convolution and fully connected layer: weight, bias; BatchNorm: mean, variance, and a factor that both are to be divided
by; Scale: scale, offset. BGR, 0..255, no std, stride in the first 1x1, max pool without padding in ceil mode.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detres.data.preprocessing import MSRA, Preprocessing
from detres.errors import WeightsError, listed
from detres.weights.layouts.common import (
    MSRA_FORM,
    MSRA_NETWORKS,
    ForeignFile,
    ParsedWeights,
    caffe_block,
    caffe_vgg_layers,
    constant_norms,
    networks_of,
    norm_of,
)

# The mean of the ILSVRC images, as published with the VGG networks (BGR).
VGG_MEAN = Preprocessing(
    channel_order="BGR", value_range=255, mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0)
)
LAYER = re.compile(r"(res|bn|scale)(\d)([a-z]|b\d+)_branch(1|2[abc])")
STEM = re.compile(r"(?:(bn|scale)_)?conv1")


def fits(file: ForeignFile) -> bool:
    """Whether the file has Caffe's names of a ResNet or VGG, blobs in lists or numbered."""
    layers = {_layer_and_blob(name)[0] for name in file.content}
    return {"conv1", "res2a_branch2a"} <= layers or {"conv1_1", "conv5_3"} <= layers


def read(file: ForeignFile) -> ParsedWeights:
    """Translate the arrays of such a file.

    Raises:
        WeightsError: A layer that such a network does not have, or a layer with a wrong number of blobs.
    """
    layers, where = _blobs_by_layer(file.content), file.source
    if "conv1_1" in layers:
        return _read_vgg(layers, where)
    renamed: dict[str, Tensor] = {}
    unknown = []
    for layer, blobs in layers.items():
        place = _place_of(layer)
        if place is None:
            unknown.append(layer)
            continue
        kind, conv = place
        if kind == "bn":
            _check_blobs(layer, blobs, (3,), where)
            # Caffe keeps sums over its moving window; the third blob is what to divide them by (1 in MSRA's files).
            factor = blobs[2].flatten()[0]
            share = 1 / factor if factor != 0 else factor
            renamed[f"{norm_of(conv)}.running_mean"] = blobs[0].flatten() * share
            renamed[f"{norm_of(conv)}.running_var"] = blobs[1].flatten() * share
        else:
            _check_blobs(layer, blobs, (1, 2) if kind == "res" else (2,), where)
            target = conv if kind == "res" else norm_of(conv)
            for part, blob in zip(("weight", "bias"), blobs, strict=False):
                renamed[f"{target}.{part}"] = blob if part == "weight" and kind == "res" else blob.flatten()
    if unknown:
        raise WeightsError(f"{where}: has Caffe's names, but also {listed(unknown, 4)}")
    whole, folded = constant_norms(renamed, MSRA_FORM["eps"])
    networks = networks_of(MSRA_NETWORKS, MSRA_FORM, whole)
    return ParsedWeights("MSRA's (Caffe's names)", whole, networks, MSRA, folded=folded)


def _read_vgg(layers: Mapping[str, list[Tensor]], where: str) -> ParsedWeights:
    depth = 19 if "conv5_4" in layers else 16
    names = caffe_vgg_layers(depth)
    unknown = [layer for layer in layers if layer not in names]
    if unknown:
        raise WeightsError(f"{where}: has Caffe's names of VGG, but also {listed(unknown, 4)}")
    renamed = {}
    for layer, blobs in layers.items():
        _check_blobs(layer, blobs, (2,), where)
        weight = blobs[0] if layer.startswith("conv") else blobs[0].reshape(blobs[0].shape[-2:])
        renamed[f"{names[layer]}.weight"], renamed[f"{names[layer]}.bias"] = weight, blobs[1].flatten()
    network = networks_of((f"vgg{depth}",), {"pool": "caffe"}, renamed)
    return ParsedWeights("VGG's (Caffe's names)", renamed, network, VGG_MEAN)


def _place_of(layer: str) -> tuple[str, str] | None:
    """Kind (res: with weights of its own; bn; scale) and torchvision's convolution of a layer's name."""
    if layer == "fc1000":
        return "res", "fc"
    if stem := STEM.fullmatch(layer):
        return stem.group(1) or "res", "conv1"
    match = LAYER.fullmatch(layer)
    if match is None:
        return None
    kind, stage, letter, branch = match.groups()
    # Blocks are a, b, c ..., and in the deeper networks a, b1, b2 ...
    block = int(letter[1:]) if len(letter) > 1 else ord(letter) - ord("a")
    return kind, caffe_block(int(stage), block, branch)


def _blobs_by_layer(content: Mapping[str, Any]) -> dict[str, list[Tensor]]:
    numbered: dict[str, dict[int, Tensor]] = {}
    for name, value in content.items():
        layer, blob = _layer_and_blob(name)
        if isinstance(value, Tensor):
            numbered.setdefault(layer, {})[blob] = value
        elif isinstance(value, Mapping):
            numbered[layer] = {int(key): inner for key, inner in value.items() if str(key).isdigit()}
        elif isinstance(value, (list, tuple)):
            numbered[layer] = dict(enumerate(value))
    return {layer: [blobs[key] for key in sorted(blobs)] for layer, blobs in numbered.items()}


def _layer_and_blob(name: str) -> tuple[str, int]:
    """`fc1000/1` is blob 1 of fc1000; a name without a number is blob 0, or a list of all."""
    match = re.fullmatch(r"(.+)[/.](\d)", name)
    return (match.group(1), int(match.group(2))) if match else (name, 0)


def _check_blobs(layer: str, blobs: list[Any], counts: tuple[int, ...], where: str) -> None:
    if len(blobs) not in counts or not all(isinstance(blob, Tensor) for blob in blobs):
        raise WeightsError(
            f"{where}: layer {layer} has {len(blobs)} arrays, not {' or '.join(map(str, counts))} as in Caffe"
        )
