"""Table 1 for every network that can be built, and the detectors on them: sizes, parameters, multiply-adds.

He et al. 2015, Table 1 and Table 6; Appendix A for the detectors' parts. Meta tensors are counted, nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from detres.data.preprocessing import TORCHVISION
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig
from detres.networks.arithmetic import copy_to_meta, count_multiply_adds, count_parameters
from detres.networks.config import NetworkConfig, NetworkName
from detres.networks.resnet import ResNet, build_network
from detres.networks.vgg import VGG

IMAGENET_SIDE, CIFAR_SIDE = 224, 32
IMAGENET_CLASSES, CIFAR_CLASSES = 1000, 10
STAGES = ("conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x")
# Multiply-adds: Table 1's last row and §4.1 (VGG-19). Parameters: Table 6.
PAPER_OPERATIONS = {
    "resnet18": 1.8e9,
    "resnet34": 3.6e9,
    "resnet50": 3.8e9,
    "resnet101": 7.6e9,
    "resnet152": 11.3e9,
    "plain18": 1.8e9,
    "plain34": 3.6e9,
    "vgg19": 19.6e9,
}
PAPER_PARAMETERS = {
    "cifar_resnet20": 0.27e6,
    "cifar_resnet32": 0.46e6,
    "cifar_resnet44": 0.66e6,
    "cifar_resnet56": 0.85e6,
    "cifar_resnet110": 1.7e6,
    "cifar_resnet1202": 19.4e6,
}
DETECTORS: tuple[NetworkName, ...] = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg16")


@dataclass(frozen=True)
class NetworkRow:
    """One network.

    Attributes:
        name: As in `model.network.name`.
        options: Shortcut and place of the stride, if the network has a choice.
        side: Side of the square input in pixels.
        sizes: Sides of the maps after each stage, conv1 first.
        blocks: Number of blocks of each stage (VGG: of convolutions).
        parameters: Number of parameters of the whole network.
        multiply_adds: Per image.
        paper: The paper's multiply-adds, or parameters of a CIFAR network; None if the paper has no figure.
    """

    name: str
    options: str
    side: int
    sizes: tuple[int, ...]
    blocks: tuple[int, ...]
    parameters: int
    multiply_adds: int
    paper: float | None


@dataclass(frozen=True)
class DetectorRow:
    """One part of a Faster R-CNN.

    Attributes:
        network: The network that it is built on.
        part: trunk, RPN, or head per region.
        output: Shape of the output, (C, h, w), or the lengths of its vectors.
        parameters: Number of parameters of the part.
        multiply_adds: Per image; for the head, per region.
    """

    network: str
    part: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


def network_rows(side: int = IMAGENET_SIDE) -> list[NetworkRow]:
    """Every network, with each of the paper's shortcut options and both places of the stride where they differ.

    Args:
        side: Side of the ImageNet networks' input in pixels.
    """
    return [_network_row(config, side) for name in get_args(NetworkName) for config in _variants(name)]


def detector_rows(height: int = 600, width: int = 1000, num_classes: int = 80) -> list[DetectorRow]:
    """The parts of the detectors with the default anchors, RPN and head.

    Args:
        height: Height of the network's input in pixels.
        width: Width of the network's input in pixels.
        num_classes: K; the class layer has K + 1 outputs, the box layer 4K.
    """
    return [
        row
        for name in DETECTORS
        for row in _detector_parts(NetworkConfig(name=name), height, width, num_classes)
    ]


def _variants(name: NetworkName) -> Iterator[NetworkConfig]:
    if name in ("resnet18", "resnet34"):
        options: list[dict[str, Any]] = [{"shortcut": shortcut} for shortcut in "ABC"]
    elif name in ("resnet50", "resnet101", "resnet152"):
        options = [{"stride_in": place} for place in ("1x1", "3x3")]
    else:
        options = [{}]
    for option in options:
        yield NetworkConfig.model_validate({"name": name, **option})


def _network_row(config: NetworkConfig, imagenet_side: int) -> NetworkRow:
    cifar = config.name.startswith("cifar")
    side = CIFAR_SIDE if cifar else imagenet_side
    with torch.device("meta"):
        network = build_network(config, CIFAR_CLASSES if cifar else IMAGENET_CLASSES).eval()
    paper = PAPER_PARAMETERS if cifar else PAPER_OPERATIONS
    at_paper_size = cifar or side == IMAGENET_SIDE
    return NetworkRow(
        name=config.name,
        options=_options(config),
        side=side,
        sizes=_sizes(network, side),
        blocks=_blocks(network),
        parameters=count_parameters(network),
        multiply_adds=count_multiply_adds(network, (1, 3, side, side)),
        paper=paper.get(config.name) if at_paper_size else None,
    )


def _options(config: NetworkConfig) -> str:
    if config.name in ("resnet18", "resnet34"):
        return f"option {config.shortcut}"
    if config.name in ("resnet50", "resnet101", "resnet152"):
        return f"option B, stride in the {config.stride_in}"
    return f"option {config.shortcut}" if "resnet" in config.name else ""


def _sizes(network: ResNet | VGG, side: int) -> tuple[int, ...]:
    """Sides of the output maps of each stage (of VGG: before its max pool)."""
    meta_network = copy_to_meta(network)
    if isinstance(network, VGG):
        pools = [place for place, module in enumerate(network.features) if isinstance(module, nn.MaxPool2d)]
        names = [f"features.{place - 1}" for place in pools]
    else:
        names = ["conv1", *(f"layer{number + 1}" for number in range(network.num_stages))]
    sides: list[int] = []
    for name in names:
        meta_network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, maps: sides.append(maps.shape[-1])
        )
    with torch.no_grad():
        meta_network(torch.empty(1, 3, side, side, device="meta"))
    return tuple(sides)


def _blocks(network: ResNet | VGG) -> tuple[int, ...]:
    if isinstance(network, VGG):
        counts = [0]
        for module in network.features:
            if isinstance(module, nn.Conv2d):
                counts[-1] += 1
            elif isinstance(module, nn.MaxPool2d):
                counts.append(0)
        return tuple(counts[:-1])
    stages = [network.get_submodule(f"layer{number + 1}") for number in range(network.num_stages)]
    return tuple(len(list(stage.children())) for stage in stages)


def _detector_parts(
    config: NetworkConfig, height: int, width: int, num_classes: int
) -> Iterator[DetectorRow]:
    with torch.device("meta"):
        detector = build_detector(DetectionConfig().architecture(config), num_classes, TORCHVISION).eval()
        with torch.no_grad():
            maps = detector.trunk(torch.empty(1, 3, height, width))
    shape = tuple(maps.shape)
    yield DetectorRow(
        network=config.name,
        part="trunk",
        output=shape[1:],
        parameters=count_parameters(detector.trunk),
        multiply_adds=count_multiply_adds(detector.trunk, (1, 3, height, width)),
    )
    anchors = len(detector.cell_anchors)
    yield DetectorRow(
        network=config.name,
        part="RPN",
        output=(anchors * 5, *shape[2:]),
        parameters=count_parameters(detector.rpn),
        multiply_adds=count_multiply_adds(detector.rpn, shape),
    )
    head = detector.roi_head
    cells = head.pooler.output_size
    layers = (head.box_predictor.cls_score, head.box_predictor.bbox_pred)
    yield DetectorRow(
        network=config.name,
        part="head per region",
        output=tuple(layer.out_features for layer in layers),
        parameters=count_parameters(head),
        multiply_adds=count_multiply_adds(head.body, (1, shape[1], cells, cells))
        + sum(count_multiply_adds(layer, (1, layer.in_features)) for layer in layers),
    )
