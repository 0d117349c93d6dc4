"""Exact BN statistics of a trained classifier, written back frozen, for a detector to start from.

He et al. 2015, Appendix A: each layer's mean and variance over the training set. From then on BN is constant.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detres.classification.classifier import crop_of, read_classifier, write_classifier
from detres.classification.evaluate import network_input
from detres.console import progress
from detres.data.batching import make_loader
from detres.data.classification_samples import (
    ClassificationBatch,
    ClassificationDataset,
    collate_classification,
)
from detres.data.preprocessing import Preprocessing
from detres.data.records import ImageLabels
from detres.errors import DataError, WeightsError
from detres.networks.norm import (
    FrozenBatchNorm2d,
    freeze_batch_norm,
    unfreeze_batch_norm,
    update_batch_norm_statistics,
)
from detres.training.feed import plain_errors

log = logging.getLogger("detres")

KEPT_BYTES = 1 << 29  # largest size of crops that are kept between passes
NOTABLE_CHANGE = 0.25  # share of the logits' spread; a moving average that has settled stays far below it


@dataclass(frozen=True)
class LayerDifference:
    """How far one pass is from the exact statistics in one layer, in its worst channel.

    Attributes:
        layer: The BN layer's name.
        mean: Distance of the means, in exact standard deviations.
        variance: Distance of the variances, as a share of the exact one.
    """

    layer: str
    mean: float
    variance: float


@dataclass(frozen=True)
class OutputChange:
    """How new statistics change the network's outputs, measured on the first images.

    Attributes:
        images: Their number.
        logits: Root mean square change of the logits, as a share of their standard deviation over the images.
        classes: Share of the images whose best class changes.
    """

    images: int
    logits: float
    classes: float


@dataclass(frozen=True)
class StatisticsReport:
    """The result of `write_statistics`.

    Attributes:
        images: Number of images that the statistics are of.
        layers: BN layers whose statistics were written.
        constant: BN layers that were constant in training and kept their statistics.
        change: Of the outputs.
        one_pass: In the order of the layers, how far one pass would have been off; empty unless exact.
    """

    images: int
    layers: int
    constant: int
    change: OutputChange
    one_pass: tuple[LayerDifference, ...]


def write_statistics(
    weights: str | Path,
    images: ImageLabels,
    out: str | Path,
    *,
    num_images: int = 10_000,
    everywhere: bool = False,
    exact: bool = False,
    batch: int = 64,
    seed: int = 0,
    workers: int = 2,
    device: torch.device | None = None,
    quiet: bool = False,
) -> StatisticsReport:
    """Compute the BN statistics of a classifier over training crops and write it with all BN constant.

    BN that was constant in training (`model.freeze_at`) keeps its statistics, because the layers after it were trained
    on them. A warning is logged where the outputs change notably. Crops are drawn as in training, but without random
    colors (`pca_color`), because the detector has none.

    Args:
        weights: A classifier's weights file.
        images: Training images; their classes do not matter.
        out: The weights file to write.
        num_images: Number of images, drawn without repetition (all, where there are fewer).
        everywhere: Compute the BN that was constant in training too; this changes what the network computes.
        exact: Compute layer by layer with the layers before already fixed: one pass for each layer, and one more to
            report the difference. At most one batch of maps is in memory.
        batch: Crops at once; at least two, because one crop has no variance where maps are 1x1.
        seed: Of the choice of images and of their random crops.
        workers: Processes that decode.
        device: Where to compute; None: the CPU.
        quiet: No progress on standard error.

    Raises:
        WeightsError: Not a classifier's file, or no BN is left to compute.
        DataError: Fewer than two images, or one that cannot be read.
    """
    network, architecture, metadata = read_classifier(weights)
    if everywhere:
        log.warning(
            "BN that was constant in training gets new statistics too, so that the network computes something else"
        )
        architecture = architecture.model_copy(update={"frozen_stages": 0, "frozen_batch_norm": False})
        network = unfreeze_batch_norm(network).requires_grad_()
    layers = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    constant = sum(isinstance(module, FrozenBatchNorm2d) for module in network.modules())
    if layers == 0:
        raise WeightsError(
            f"{weights}: all its BN is constant already (or it has none); --all computes it anew"
        )
    chosen = np.random.default_rng(seed).permutation(len(images))[:num_images].tolist()
    if len(chosen) < 2:
        raise DataError(f"{images.source}: BN statistics of {len(chosen)} images: two are needed at least")
    crop, device = crop_of(metadata), device or torch.device("cpu")
    plain_colors = crop.model_copy(update={"pca_color": 0.0})
    crops = _CropBatches(
        ClassificationDataset(images, plain_colors, train=True, seed=seed),
        chosen,
        metadata.preprocessing,
        batch=batch,
        workers=workers,
        device=device,
        passes=2 + layers if exact else 1,
        quiet=quiet,
    )
    change, one_pass = _compute_statistics(network.to(device).eval(), crops, exact=exact)
    _warn_of_change(change, weights)
    freeze_batch_norm(network)
    write_classifier(
        out,
        network,
        architecture.model_copy(update={"frozen_batch_norm": True}),
        class_names=metadata.class_names,
        preprocessing=metadata.preprocessing,
        crop=crop,
        source=f"{metadata.source}; BN statistics of {len(chosen)} images of {images.source}",
    )
    return StatisticsReport(len(chosen), layers, constant, change, one_pass)


def _compute_statistics(
    network: nn.Module, crops: _CropBatches, *, exact: bool
) -> tuple[OutputChange, tuple[LayerDifference, ...]]:
    """Set the network's BN statistics to those of the crops; returns what changes (see `StatisticsReport`)."""
    sample = next(iter(crops.first()))
    before = _logits(network, sample)
    one_pass: dict[str, tuple[Tensor, Tensor]] = {}
    if exact:
        rough = copy.deepcopy(network)
        update_batch_norm_statistics(rough, crops)
        one_pass = _statistics_of(rough)
    update_batch_norm_statistics(network, crops, exact=exact)
    change = _change(before, _logits(network, sample))
    return change, _differences(one_pass, _statistics_of(network))


def _warn_of_change(change: OutputChange, weights: str | Path) -> None:
    if change.logits > NOTABLE_CHANGE:
        log.warning(
            "the logits change by %.2f of their spread, and the best class of %.0f %% of %d images: the statistics "
            "in %s were not those of these images (rebuilt, of other data, or a moving average that had not settled)",
            change.logits,
            100 * change.classes,
            change.images,
            weights,
        )


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images).double().cpu()


def _change(before: Tensor, after: Tensor) -> OutputChange:
    """The change of logits (N, K). The spread of each class is about its own mean over the images."""
    spread = (before - before.mean(dim=0)).square().mean().sqrt()
    moved = (after - before).square().mean().sqrt()
    share = moved / spread if spread > 0 else torch.sign(moved)
    classes = (before.argmax(dim=1) != after.argmax(dim=1)).double().mean()
    return OutputChange(images=len(before), logits=float(share), classes=float(classes))


def _statistics_of(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of each BN layer that is not constant, in the order of the network."""
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            found[name] = (module.running_mean.double().cpu(), module.running_var.double().cpu())
    return found


def _differences(
    one_pass: dict[str, tuple[Tensor, Tensor]], exact: dict[str, tuple[Tensor, Tensor]]
) -> tuple[LayerDifference, ...]:
    differences = []
    for layer, (mean, variance) in one_pass.items():
        true_mean, true_variance = exact[layer]
        floor = true_variance.clamp(min=torch.finfo(torch.float32).tiny)  # for a channel that is constant
        differences.append(
            LayerDifference(
                layer=layer,
                mean=float(((mean - true_mean).abs() / floor.sqrt()).max()),
                variance=float(((variance - true_variance).abs() / floor).max()),
            )
        )
    return tuple(differences)


class _CropBatches:
    """Network inputs of some images in batches, for several passes, which all give the same crops.

    Crops are kept after the first pass if they all fit into `KEPT_BYTES`; otherwise each pass decodes them again.

    Args:
        images: The crops.
        indices: Which of them.
        preprocessing: What the network expects.
        batch: Crops at once.
        workers: Processes that decode.
        device: Where the inputs go.
        passes: Number of passes, for the progress.
        quiet: No progress on standard error.
    """

    def __init__(
        self,
        images: ClassificationDataset,
        indices: list[int],
        preprocessing: Preprocessing,
        *,
        batch: int,
        workers: int,
        device: torch.device,
        passes: int,
        quiet: bool,
    ):
        self.images, self.workers = images, workers
        self.batches = _batches(indices, max(batch, 2))
        self.keep = len(indices) * 3 * images.crop.size**2 <= KEPT_BYTES
        self.kept: list[ClassificationBatch] = []
        self.preprocessing, self.device, self.quiet = preprocessing, device, quiet
        self.passes, self.begun = passes, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        self.begun += 1
        told = f"BN statistics, pass {self.begun} of {self.passes}" if self.passes > 1 else "BN statistics"
        for crops in progress(self._crops(), told, total=len(self), quiet=self.quiet):
            yield network_input(crops, self.preprocessing, self.device)

    def first(self) -> Iterator[Tensor]:
        """The first batch alone, without progress; empty where there are no images."""
        for crops in self._load(self.batches[:1]):
            yield network_input(crops, self.preprocessing, self.device)

    def _crops(self) -> Iterator[ClassificationBatch]:
        if len(self.kept) == len(self.batches):
            yield from self.kept
            return
        found = []
        for crops in self._load(self.batches):
            if self.keep:
                found.append(crops)
            yield crops
        self.kept = found

    def _load(self, batches: list[list[int]]) -> Iterator[ClassificationBatch]:
        with plain_errors():
            yield from make_loader(self.images, batches, collate_classification, workers=self.workers)


def _batches(indices: list[int], batch: int) -> list[list[int]]:
    """Batches of equal length, the last shorter; a single image left over joins the batch before."""
    batches = [indices[start : start + batch] for start in range(0, len(indices), batch)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches
