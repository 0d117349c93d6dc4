"""Classifiers from their parts: on a backbone's weights, or from a weights file of ours.

He et al. 2015, §3.3: a network of Table 1 with one output for each class.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from detres.classification.config import Architecture, ModelConfig
from detres.data.config import CropConfig
from detres.data.preprocessing import Preprocessing
from detres.errors import WeightsError, listed
from detres.networks.norm import freeze_batch_norm
from detres.networks.resnet import ResNet, build_network, freeze_stages, split
from detres.networks.vgg import VGG
from detres.weights.checkpoint import Metadata, architecture_of, read_weights, save_weights
from detres.weights.foreign import CLASSIFICATION_LAYERS, Backbone
from detres.weights.loading import load_tensors
from detres.weights.starting import start_network

log = logging.getLogger("detres")


def build_classifier(
    architecture: Architecture, num_classes: int, generator: torch.Generator | None = None
) -> ResNet | VGG:
    """A classifier with fresh weights; its frozen stages have constant BN and no gradient (autograd records nothing).

    Args:
        architecture: Network and frozen BN.
        num_classes: K.
        generator: Source of the initial weights; the global one where None.
    """
    network = build_network(architecture.network, num_classes, generator)
    if architecture.frozen_stages:
        freeze_stages(split(network)[0], architecture.frozen_stages)
    if architecture.frozen_batch_norm:
        freeze_batch_norm(network)
    elif isinstance(network, ResNet) and architecture.frozen_stages:
        network.bn1 = freeze_batch_norm(network.bn1)
        for stage in range(1, architecture.frozen_stages):
            freeze_batch_norm(network.get_submodule(f"layer{stage}"))
    return network


def prepare_for_training(
    model: ModelConfig, class_names: tuple[str, ...], seed: int
) -> tuple[ResNet | VGG, Architecture, Preprocessing]:
    """A classifier ready to train: seeded fresh layers, initial weights, frozen stages.

    Args:
        model: Network, initial weights, frozen stages.
        class_names: The K classes; the classification layer of `model.init` is taken over where it has the same.
        seed: Of the fresh layers.

    Raises:
        ConfigError: The configuration says otherwise than the initial weights.
        WeightsError: The initial weights cannot be read, or lack parts and `init_partial` does not allow it.
    """
    network_config, preprocessing, backbone = start_network(model.network, model.init)
    architecture = Architecture(
        network=network_config,
        frozen_stages=model.freeze_at,
        frozen_batch_norm=model.freeze_batch_norm,
    )
    network = build_classifier(architecture, len(class_names), torch.Generator().manual_seed(seed))
    if backbone is not None:
        _load(network, backbone, class_names, partial=model.init_partial)
        if backbone.folded and any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
            log.warning(
                "the BN of %s has scale and offset but no statistics; trained as usual it begins with those of a batch "
                "and the network computes something else: model.freeze_batch_norm: true keeps it",
                model.init,
            )
    elif model.freeze_at:
        log.warning(
            "model.freeze_at is %d without model.init: random stages stay as they are", model.freeze_at
        )
    return network, architecture, preprocessing


def read_classifier(path: str | Path) -> tuple[ResNet | VGG, Architecture, Metadata]:
    """A classifier from a weights file of ours, in test mode on the CPU.

    Raises:
        WeightsError: Not a classifier's file, damaged, or tensors that do not fit its own architecture.
    """
    tensors, metadata = read_weights(path)
    if metadata.task != "classification":
        raise WeightsError(
            f"{path}: weights for {metadata.task}, not for classification; choose a classifier's file"
        )
    return *from_tensors(tensors, metadata, str(path)), metadata


def from_tensors(
    tensors: Mapping[str, Tensor], metadata: Metadata, where: str
) -> tuple[ResNet | VGG, Architecture]:
    """The classifier that `metadata` describes, with `tensors` in it, in test mode."""
    architecture = architecture_of(metadata, Architecture, where)
    network = build_classifier(architecture, len(metadata.class_names))
    load_tensors(network, tensors, where=where)
    return network.eval(), architecture


def unfreeze_batch_norm(network: ResNet | VGG, architecture: Architecture, num_classes: int) -> ResNet | VGG:
    """The same network with every BN layer a `nn.BatchNorm2d` again, in test mode; it computes the same."""
    plain = architecture.model_copy(update={"frozen_stages": 0, "frozen_batch_norm": False})
    free = build_classifier(plain, num_classes)
    free.load_state_dict(network.state_dict(), strict=False)  # all but BN's counters, which constant BN lacks
    return free.eval()


def write_classifier(
    path: str | Path,
    network: ResNet | VGG,
    architecture: Architecture,
    *,
    class_names: tuple[str, ...],
    preprocessing: Preprocessing,
    crop: CropConfig,
    source: str,
) -> None:
    """Write a classifier as a weights file that `read_classifier` and `read_backbone` take.

    Args:
        path: The `.safetensors` file.
        network: The trained network.
        architecture: What rebuilds it.
        class_names: Its K classes.
        preprocessing: How pixels become its input.
        crop: The crops it was trained and is tested on.
        source: Where the weights came from.
    """
    metadata = Metadata(
        task="classification",
        architecture=architecture.model_dump(mode="json"),
        class_names=class_names,
        preprocessing=preprocessing,
        sizes=crop.model_dump(mode="json"),
        source=source,
    )
    save_weights(path, network.state_dict(), metadata)


def crop_of(metadata: Metadata) -> CropConfig:
    """The crops of a classifier's weights file."""
    return CropConfig.model_validate(metadata.sizes)


def _load(network: ResNet | VGG, backbone: Backbone, class_names: tuple[str, ...], *, partial: bool) -> None:
    same_classes = backbone.class_names == class_names
    tensors = backbone.tensors if same_classes else backbone.features()
    random = load_tensors(network, tensors, where=backbone.source, partial=True)
    lacking = [name for name in random if not name.startswith(CLASSIFICATION_LAYERS)]
    if lacking and not partial:
        raise WeightsError(
            f"{backbone.source}: lacks {listed(lacking, 4)}; choose whole weights, or allow it with "
            "model.init_partial: true"
        )
    if random:
        log.info("random, not in %s: %s", backbone.source, listed(random, 40))
