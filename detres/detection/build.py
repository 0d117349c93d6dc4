"""Detectors from their parts: on a backbone's weights, or from a weights file of ours.

The one place that turns names of the configuration into modules.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from detres.boxes.anchors import cell_anchors
from detres.data.preprocessing import Preprocessing
from detres.detection.config import Architecture, ModelConfig
from detres.detection.context import check_context
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.roi_head import RegionHead, RegionPooling
from detres.detection.rpn import RPNHead
from detres.errors import WeightsError, listed
from detres.networks.config import NetworkConfig
from detres.networks.norm import freeze_batch_norm, rescale_folded
from detres.networks.resnet import Trunk, build_network, freeze_stages, split
from detres.networks.vgg import VGGTrunk
from detres.weights.checkpoint import Metadata, architecture_of, read_weights
from detres.weights.foreign import Backbone
from detres.weights.loading import load_tensors
from detres.weights.starting import start_network

log = logging.getLogger("detres")


def build_detector(architecture: Architecture, num_classes: int, preprocessing: Preprocessing) -> FasterRCNN:
    """A detector with fresh weights and frozen BN.

    Args:
        architecture: Its options.
        num_classes: K, without background.
        preprocessing: What its weights expect.
    """
    trunk, body = split(build_network(architecture.network, num_classes))
    freeze_batch_norm(trunk)
    freeze_batch_norm(body)
    pooling = RegionPooling(
        architecture.pooler,
        body.region_size,
        trunk.stride,
        architecture.sampling_ratio,
        architecture.aligned,
    )
    cell = cell_anchors(architecture.anchor_sizes, architecture.anchor_ratios)
    return FasterRCNN(
        trunk=trunk,
        rpn=RPNHead(trunk.out_channels, architecture.rpn_channels, len(cell)),
        region_head=RegionHead(body, body.out_channels, num_classes, pooling, architecture.global_context),
        cell_anchors=cell,
        preprocessing=preprocessing,
        stride=trunk.stride,
    )


def load_backbone(network: FasterRCNN, backbone: Backbone, *, partial: bool) -> list[str]:
    """Copy a classification network's weights into trunk and head.

    Args:
        network: A detector on the backbone's network.
        backbone: The weights.
        partial: Allow missing tensors.

    Returns:
        Names of trunk and head tensors that stay random.

    Raises:
        WeightsError: Tensors are missing and `partial` does not allow it, or differ in shape.
    """
    whole = torch.nn.ModuleDict({"trunk": network.trunk, "head": network.region_head.body})
    names = {name.split(".", 1)[1]: name for name in whole.state_dict()}
    tensors = {names[name]: tensor for name, tensor in backbone.features().items() if name in names}
    missing = load_tensors(whole, tensors, where=backbone.source, partial=True)
    if missing and not partial:
        raise WeightsError(
            f"{backbone.source}: lacks {listed([name.split('.', 1)[1] for name in missing], 4)}; choose whole weights,"
            " or allow it with model.init_partial: true"
        )
    return missing


def prepare_for_training(
    model: ModelConfig, architecture_on: Callable[[NetworkConfig], Architecture], num_classes: int, seed: int
) -> tuple[FasterRCNN, Architecture]:
    """A detector ready to train: seeded fresh layers, initial weights, frozen stages.

    Args:
        model: Network, initial weights and frozen stages.
        architecture_on: From the network, as its weights complete it, to the detector's architecture.
        num_classes: K.
        seed: Of the fresh layers.
    """
    network_config, preprocessing, backbone = start_network(model.network, model.init)
    architecture = architecture_on(network_config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_detector(architecture, num_classes, preprocessing.per_channel())
        if model.bbox_pred_init == "shared":
            network.region_head.share_box_start()
    trunk = network.trunk
    assert isinstance(trunk, (Trunk, VGGTrunk))
    if backbone is None:
        random = [f"trunk.{name}" for name in network.trunk.state_dict()]
        log.warning("model.init is not given: the detector starts from random weights")
    else:
        random = load_backbone(network, backbone, partial=model.init_partial)
        if random:
            log.info("random, not in %s: %s", backbone.source, listed(random, 40))
        rescaled = rescale_folded(network)
        if rescaled:
            log.info(
                "%s: BN is folded into %d convolutions; they are rescaled to train as unfolded ones do",
                backbone.source,
                rescaled,
            )
    _warn_of_frozen_random_layers(trunk, random, model.freeze_at)
    freeze_stages(trunk, model.freeze_at)
    return network, architecture


def _warn_of_frozen_random_layers(trunk: Trunk | VGGTrunk, random: list[str], freeze_at: int) -> None:
    """Layers without weights that are not trained either stay noise."""
    frozen = {
        id(module) for stage in trunk.stages()[:freeze_at] for part in stage for module in part.modules()
    }
    names = [
        f"trunk.{name}.weight"
        for name, module in trunk.named_modules()
        if id(module) in frozen and isinstance(module, torch.nn.Conv2d)
    ]
    noise = [name for name in names if name in random]
    if noise:
        log.warning(
            "model.freeze_at: %d freezes layers that have random weights: %s; set it to 0, or give whole weights",
            freeze_at,
            listed(noise, 3),
        )


def read_detector(path: str | Path) -> tuple[FasterRCNN, Architecture, Metadata]:
    """A detector from a weights file of ours, in test mode.

    Raises:
        WeightsError: Not a detector's file, damaged, or tensors that do not fit its own architecture.
    """
    tensors, metadata = read_weights(path)
    if metadata.task != "detection":
        raise WeightsError(
            f"{path}: weights for {metadata.task}, not for detection; choose a detector's file"
        )
    return *from_tensors(tensors, metadata, str(path)), metadata


def from_tensors(
    tensors: Mapping[str, Tensor], metadata: Metadata, where: str
) -> tuple[FasterRCNN, Architecture]:
    """The detector that `metadata` describes, with `tensors` in it."""
    architecture = architecture_of(metadata, Architecture, where)
    network = build_detector(architecture, len(metadata.class_names), metadata.preprocessing)
    check_context(tensors, network.state_dict(), where)
    load_tensors(network, tensors, where=where)
    return network.eval(), architecture
