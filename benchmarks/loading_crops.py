"""The data path of classification: random square crops, e.g. from a `.zip` read in place (He et al. 2015, §3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from benchmarks.cases import OURS, Case, Prepared, one_form
from benchmarks.detectors import SEED
from detres.classification.data import scan_image_labels
from detres.data.batching import KeyBatches, make_loader
from detres.data.classification_samples import ClassificationDataset, collate_classification
from detres.data.config import CropConfig, Source
from detres.data.records import ImageLabels
from detres.errors import UserError

BATCH = 32
COUNTED_IMAGES = 4096  # of one run of the loader, at most: many, since the workers' start is counted


@dataclass(frozen=True)
class CropLoaderOptions:
    """What is measured.

    Attributes:
        data: An archive of a class-per-folder tree.
        split: Its split.
        side: Of the crops, in pixels.
        workers: Numbers of loader processes.
    """

    data: str
    split: str | None
    side: int
    workers: tuple[int, ...]


def crop_loader_cases(options: CropLoaderOptions) -> list[Case]:
    """Seconds a picture with each number of workers."""
    images = min(COUNTED_IMAGES, len(_images(options)))
    if images < BATCH:
        raise UserError(
            f"--data {options.data}: {images} pictures; a batch has {BATCH}, choose a larger split"
        )
    return [
        Case(
            name=f"loader {options.side} px crops {workers} worker{'' if workers == 1 else 's'}",
            ours=one_form(OURS, partial(_prepare, options, workers, images // BATCH)),
            units=images // BATCH * BATCH,
            note="seconds are of one picture, workers' start included; memory is of the main process",
        )
        for workers in options.workers
    ]


def _images(options: CropLoaderOptions) -> ImageLabels:
    images, _ = scan_image_labels([Source(dir=options.data, split=options.split)], side=options.side)
    return images


def _prepare(options: CropLoaderOptions, workers: int, batches: int) -> Prepared:
    """The recipe's proportions: the shorter side is 1 to 1.5 times the crop's."""
    crop = CropConfig(size=options.side, train_sides=(options.side, options.side * 3 // 2), test_side=None)
    dataset = ClassificationDataset(_images(options), crop, train=True, seed=SEED)

    def run() -> int:
        keys = KeyBatches(len(dataset), BATCH, seed=SEED, stop=batches)
        return sum(
            len(batch) for batch in make_loader(dataset, keys, collate_classification, workers=workers)
        )

    return Prepared(run, lambda: None)
