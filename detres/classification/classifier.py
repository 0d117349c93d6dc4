"""Builds classifiers, either to train from initial weights or from a weights file of ours.

He et al. 2015, §3.3: a network of Table 1 with one output for each class.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from detres.classification.config import ClassificationModelConfig, ClassifierArchitecture
from detres.data.config import CropConfig
from detres.data.preprocessing import Preprocessing
from detres.errors import WeightsError, listed
from detres.networks.norm import freeze_batch_norm
from detres.networks.resnet import ResNet, build_network, freeze_stages, split_network
from detres.networks.vgg import VGG
from detres.tasks.ensemble import check_task
from detres.tasks.start import Start
from detres.weights.checkpoint import Metadata, architecture_of, read_weights, save_weights
from detres.weights.foreign import CLASSIFICATION_LAYERS, Backbone
from detres.weights.loading import load_tensors

CLASSIFICATION: Final = "classification"
FOLDED_BATCH_NORM = (
    "the BN of {} has scale and offset but no statistics. Trained as usual it begins with the statistics of a batch, so"
    " that the network computes something else: model.freeze_batch_norm: true keeps it constant"
)


def build_classifier(
    architecture: ClassifierArchitecture, num_classes: int, generator: torch.Generator | None = None
) -> ResNet | VGG:
    """A classifier with fresh weights. Its frozen stages have constant BN and parameters without gradients.

    Args:
        architecture: Network and frozen BN.
        num_classes: K.
        generator: Source of the initial weights; None: torch's global one.
    """
    network = build_network(architecture.network, num_classes, generator)
    if architecture.frozen_stages:
        freeze_stages(split_network(network)[0], architecture.frozen_stages)
    if architecture.frozen_batch_norm:
        freeze_batch_norm(network)
    elif isinstance(network, ResNet) and architecture.frozen_stages:
        network.bn1 = freeze_batch_norm(network.bn1)
        for stage in range(1, architecture.frozen_stages):
            freeze_batch_norm(network.get_submodule(f"layer{stage}"))
    return network


@dataclass(frozen=True)
class ClassifierStart:
    """A classifier before its first step.

    Attributes:
        network: With initial weights and frozen stages, on the CPU.
        architecture: What rebuilds it.
        preprocessing: How pixels become its input.
        notes: What the user should know of its weights, as (logging level, message).
    """

    network: ResNet | VGG
    architecture: ClassifierArchitecture
    preprocessing: Preprocessing
    notes: tuple[tuple[int, str], ...] = ()


def start_classifier(
    model: ClassificationModelConfig, start: Start, class_names: tuple[str, ...], seed: int
) -> ClassifierStart:
    """A classifier ready to train: seeded fresh layers, initial weights, frozen stages.

    Args:
        model: Frozen stages, and whether `start` may lack tensors.
        start: The network and its initial weights, from `read_start`.
        class_names: The K classes; the classification layer of the weights is copied where it has the same.
        seed: Of the fresh layers.

    Raises:
        WeightsError: The initial weights lack tensors and `init_partial` does not allow it, or shapes differ.
    """
    architecture = ClassifierArchitecture(
        network=start.network, frozen_stages=model.freeze_at, frozen_batch_norm=model.freeze_batch_norm
    )
    network = build_classifier(architecture, len(class_names), torch.Generator().manual_seed(seed))
    backbone, notes = start.backbone, []
    if backbone is not None:
        random = _load(network, backbone, class_names, partial=model.init_partial)
        if random:
            notes.append((logging.INFO, f"random, not in {backbone.source}: {listed(random, 40)}"))
        if backbone.folded and any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
            notes.append((logging.WARNING, FOLDED_BATCH_NORM.format(backbone.source)))
    elif model.freeze_at:
        text = f"model.freeze_at is {model.freeze_at} without model.init: random stages stay as they are"
        notes.append((logging.WARNING, text))
    return ClassifierStart(network, architecture, start.preprocessing, tuple(notes))


def read_classifier(path: str | Path) -> tuple[ResNet | VGG, ClassifierArchitecture, Metadata]:
    """A classifier from a weights file of ours, in test mode on the CPU.

    Raises:
        WeightsError: Not a classifier's file, damaged, or tensors that do not fit its own architecture.
    """
    tensors, metadata = read_weights(path)
    check_task(metadata, CLASSIFICATION, path)
    return *rebuild_classifier(tensors, metadata, str(path)), metadata


def rebuild_classifier(
    tensors: Mapping[str, Tensor], metadata: Metadata, where: str
) -> tuple[ResNet | VGG, ClassifierArchitecture]:
    """The classifier that `metadata` describes, with `tensors` in it, in test mode."""
    architecture = architecture_of(metadata, ClassifierArchitecture, where)
    network = build_classifier(architecture, len(metadata.class_names))
    load_tensors(network, tensors, where=where)
    return network.eval(), architecture


def write_classifier(
    path: str | Path,
    network: ResNet | VGG,
    architecture: ClassifierArchitecture,
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
        task=CLASSIFICATION,
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


def _load(
    network: ResNet | VGG, backbone: Backbone, class_names: tuple[str, ...], *, partial: bool
) -> list[str]:
    """Copy the backbone's weights; returns the names of the tensors that stay random."""
    same_classes = backbone.class_names == class_names
    tensors = backbone.tensors if same_classes else backbone.features()
    random = load_tensors(network, tensors, where=backbone.source, partial=True)
    missing = [name for name in random if not name.startswith(CLASSIFICATION_LAYERS)]
    if missing and not partial:
        raise WeightsError(
            f"{backbone.source}: lacks {listed(missing, 4)}; choose whole weights, or allow it with "
            "model.init_partial: true"
        )
    return random
