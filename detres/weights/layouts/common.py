"""What all layouts share: the file that is read, what a layout makes of it, and the translation of names.

Torchvision's names: conv1, bn1, layer1.0.conv1, layer1.0.bn1, layer1.0.downsample.0 ... layer4 (conv5_x), fc;
VGG: features.N, classifier.N. Norms y = (x - running_mean) / sqrt(running_var + eps) * weight + bias.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detres.data.config import CropConfig
from detres.data.preprocessing import Preprocessing
from detres.networks.config import NetworkName
from detres.networks.vgg import STAGE_CONVOLUTIONS

# MSRA's networks have the stride in the first 1x1 and Caffe's pool, in whatever layout they are published.
MSRA_FORM = {"stride_in": "1x1", "pool": "caffe", "eps": 1e-5}
MSRA_NETWORKS: tuple[NetworkName, ...] = ("resnet50", "resnet101", "resnet152")


@dataclass(frozen=True)
class ForeignFile:
    """A weights file of another program, as it was read.

    Attributes:
        source: The user's name for it, for messages.
        tensors: Its state_dict, without the prefixes of wrappers; empty where it holds none.
        content: All that it holds, by name: a training checkpoint has other values too, Caffe's blobs may be in lists.
        metadata: The text entries of a `.safetensors`.
        path: Where it lies; None: torchvision's cache.
    """

    source: str
    tensors: dict[str, Tensor]
    content: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None


@dataclass(frozen=True)
class Layout:
    """A layout of weights files.

    Attributes:
        name: Whose it is, for messages.
        marks: The names that it is recognized by, for messages.
        fits: Whether a file has this layout.
        read: The file's tensors under torchvision's names, with the recipe; raises `WeightsError`.
    """

    name: str
    marks: str
    fits: Callable[[ForeignFile], bool]
    read: Callable[[ForeignFile], ParsedWeights]


@dataclass(frozen=True)
class ParsedWeights:
    """A foreign file under torchvision's names, not yet compared with a network.

    Attributes:
        layout: Whose it is, for messages.
        tensors: Torchvision's names -> tensors.
        networks: `NetworkConfig` fields of each network that it may be.
        preprocessing: How pixels become the network's input.
        crop: The crops it was trained and tested on, where the layout says.
        class_names: The classes of the classification layer, where the layout says.
        folded: The file has no BN statistics: its norms are constant scales and offsets.
    """

    layout: str
    tensors: dict[str, Tensor]
    networks: tuple[dict[str, Any], ...]
    preprocessing: Preprocessing
    crop: CropConfig | None = None
    class_names: tuple[str, ...] | None = None
    folded: bool = False


def networks_of(
    names: Iterable[str], form: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], ...]:
    """The `NetworkConfig` fields of each of `names`: `form`, and the width of conv1 in `tensors`."""
    first = tensors.get("conv1.weight", tensors.get("features.0.weight"))
    width = len(first) / 64 if first is not None and first.ndim else 1.0
    return tuple({"name": name, "width": width, **form} for name in names)


def constant_norms(tensors: Mapping[str, Tensor], eps: float) -> tuple[dict[str, Tensor], bool]:
    """Add the statistics of norms that have scale and offset only.

    With mean 0 and variance 1 - eps a norm is its scale and offset alone. A convolution's bias, which the networks here
    do not have, goes into the mean: scale * (x + b - mean) = scale * (x - (mean - b)).

    Returns:
        All tensors, and whether there was such a norm.
    """
    completed = dict(tensors)
    folded = False
    for name in [name for name in tensors if is_norm(name) and name.endswith(".weight")]:
        norm = name.removesuffix(".weight")
        if f"{norm}.running_mean" not in completed and f"{norm}.running_var" not in completed:
            completed[f"{norm}.running_mean"] = torch.zeros_like(completed[name])
            completed[f"{norm}.running_var"] = torch.full_like(completed[name], 1 - eps)
            folded = True
        bias = completed.pop(f"{conv_of(norm)}.bias", None)
        if bias is not None and f"{norm}.running_mean" in completed:
            completed[f"{norm}.running_mean"] = completed[f"{norm}.running_mean"] - bias
    return completed, folded


def is_norm(name: str) -> bool:
    """Whether a tensor of torchvision's ResNet names belongs to a BN layer."""
    return re.search(r"(?:^|\.)bn\d\.|downsample\.1\.", name) is not None


def conv_of(norm: str) -> str:
    """The convolution in front of a BN layer: conv1 of bn1, downsample.0 of downsample.1."""
    return re.sub(r"downsample\.1$", "downsample.0", re.sub(r"bn(\d)$", r"conv\1", norm))


def caffe_block(stage: int, block: int, branch: str) -> str:
    """Torchvision's name of a convolution of res{stage}; `branch` is 1, 2a, 2b or 2c."""
    inside = "downsample.0" if branch == "1" else f"conv{'abc'.index(branch[1]) + 1}"
    return f"layer{stage - 1}.{block}.{inside}"


def norm_of(conv: str) -> str:
    """The BN layer behind a convolution (see `conv_of`)."""
    return re.sub(r"downsample\.0$", "downsample.1", re.sub(r"conv(\d)$", r"bn\1", conv))


def caffe_vgg_layers(depth: int) -> dict[str, str]:
    """Caffe's names of VGG's layers (conv1_1 ... fc8) -> torchvision's."""
    layers, place = {}, 0
    for stage, count in enumerate(STAGE_CONVOLUTIONS[depth], start=1):
        for number in range(1, count + 1):
            layers[f"conv{stage}_{number}"] = f"features.{place}"
            place += 2  # a ReLU follows
        place += 1  # the max pool
    return {**layers, "fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}
