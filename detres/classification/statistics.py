"""Exact BN statistics of a trained classifier, written back frozen, for a detector to start from.

He et al. 2015, Appendix A: each layer's mean and variance over the training set; from then on BN is constant.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detres.classification.classifier import build_classifier, crop_of, read_classifier, write_classifier
from detres.classification.testing import network_input
from detres.console import progress
from detres.data.batching import ClassificationDataset, collate_classification, make_loader
from detres.data.preprocessing import Preprocessing
from detres.data.records import ImageLabels
from detres.errors import WeightsError
from detres.networks.norm import FrozenBatchNorm2d, freeze_batch_norm, pooled_statistics

log = logging.getLogger("detres")


@dataclass(frozen=True)
class StatisticsReport:
    """What was computed.

    Attributes:
        images: Pictures that the statistics are of.
        layers: BN layers whose statistics were written.
        constant: BN layers that were constant in training and kept theirs.
    """

    images: int
    layers: int
    constant: int


def write_statistics(
    weights: str | Path,
    pictures: ImageLabels,
    out: str | Path,
    *,
    images: int = 10_000,
    everywhere: bool = False,
    exact: bool = False,
    batch: int = 64,
    seed: int = 0,
    workers: int = 2,
    device: torch.device | None = None,
    quiet: bool = False,
) -> StatisticsReport:
    """Compute the BN statistics of a classifier over training crops and write it with all BN constant.

    BN that was constant in training (`model.freeze_at`) keeps its statistics: what came after it was trained on them.

    Args:
        weights: A classifier's weights file.
        pictures: Training pictures; their classes do not matter.
        out: The weights file to write.
        images: How many pictures, drawn without repetition (all, where there are fewer).
        everywhere: Compute also what was constant in training; this changes what the network computes.
        exact: Layer by layer, the layers before already fixed; one pass for each layer.
        batch: Crops at once.
        seed: Of the choice of pictures and of their random crops.
        workers: Processes that decode.
        device: Where to compute; None: the CPU.
        quiet: No progress on standard error.

    Raises:
        WeightsError: Not a classifier's file, or no BN is left to compute.
    """
    network, architecture, metadata = read_classifier(weights)
    if everywhere:
        log.warning(
            "BN that was constant in training gets new statistics too: the network will compute something else"
        )
        architecture = architecture.model_copy(update={"frozen_stages": 0, "frozen_batch_norm": False})
        tensors = network.state_dict()
        network = build_classifier(architecture, len(metadata.class_names))
        network.load_state_dict(
            tensors, strict=False
        )  # all but BN's counters, which constant BN does not have
    layers = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    constant = sum(isinstance(module, FrozenBatchNorm2d) for module in network.modules())
    if layers == 0:
        raise WeightsError(
            f"{weights}: all its BN is constant already (or it has none); --all computes it anew"
        )
    device = device or torch.device("cpu")
    crop = crop_of(metadata)
    chosen = np.random.default_rng(seed).permutation(len(pictures))[:images].tolist()
    crops = _CropBatches(
        ClassificationDataset(pictures, crop, train=True, seed=seed),
        chosen,
        metadata.preprocessing,
        batch=batch,
        workers=workers,
        device=device,
        quiet=quiet,
    )
    seen = pooled_statistics(network.to(device), crops, exact=exact)
    freeze_batch_norm(network)
    write_classifier(
        out,
        network,
        architecture.model_copy(update={"frozen_batch_norm": True}),
        class_names=metadata.class_names,
        preprocessing=metadata.preprocessing,
        crop=crop,
        source=f"{metadata.source}; BN statistics of {seen} pictures of {pictures.source}",
    )
    return StatisticsReport(images=seen, layers=layers, constant=constant)


class _CropBatches:
    """Network inputs of some pictures, batch after batch, each time anew (two passes give the same crops).

    Args:
        pictures: The crops.
        indices: Which of them.
        preprocessing: What the network expects.
        batch: Crops at once.
        workers: Processes that decode.
        device: Where the inputs go.
        quiet: No progress on standard error.
    """

    def __init__(
        self,
        pictures: ClassificationDataset,
        indices: list[int],
        preprocessing: Preprocessing,
        *,
        batch: int,
        workers: int,
        device: torch.device,
        quiet: bool,
    ):
        self.batches = [indices[start : start + batch] for start in range(0, len(indices), batch)]
        self.loader = make_loader(pictures, self.batches, collate_classification, workers=workers)
        self.preprocessing, self.device, self.quiet = preprocessing, device, quiet

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        for crops in progress(self.loader, "BN statistics", total=len(self), quiet=self.quiet):
            yield network_input(crops, self.preprocessing, self.device)
