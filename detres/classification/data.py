"""Reads the pictures and classes that `data.train`, `data.val` and `--data` name.

Class names are the key: labels are places in one ordered list of names.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from detres.data.config import Source
from detres.data.formats import resolve_directory
from detres.data.readers import cifar, folders
from detres.data.records import ImageLabels, ReadReport, Strings
from detres.data.shapes import SPLITS, is_shapes, shapes_labels
from detres.data.sources import log_reports
from detres.errors import DataError, listed

log = logging.getLogger("detres")

DRAWN_IMAGES = 1000


def read_image_labels(sources: Sequence[Source], *, side: int = 64) -> ImageLabels:
    """Pictures with one class each, of one or several sources as one; what readers dropped is logged.

    Args:
        sources: Class-per-folder trees, archives of one, CIFAR-10's files, or `shapes[:COUNT[:SEED]]`.
        side: Side of drawn pictures, pixels.

    Raises:
        UserError: A source is missing or unreadable; classes differ between sources; no source at all.
    """
    images, reports = scan_image_labels(sources, side=side)
    log_reports(reports)
    return images


def scan_image_labels(sources: Sequence[Source], *, side: int = 64) -> tuple[ImageLabels, list[ReadReport]]:
    """As `read_image_labels`, but what readers dropped is returned and not logged."""
    if not sources:
        raise DataError("no pictures to read: data.train names no {dir, split}; --data DIR gives one")
    read = [_read(source, side) for source in sources]
    reports = [report for _, report in read]
    first, others = read[0][0], [part for part, _ in read[1:]]
    parts = [first, *(select_classes(part, first.class_names) for part in others)]
    if len(parts) == 1:
        return first, reports
    joined = ImageLabels(
        paths=Strings([part.paths[index] for part in parts for index in range(len(part))]),
        labels=np.concatenate([part.labels for part in parts]),
        class_names=first.class_names,
        source=" + ".join(part.source for part in parts),
    )
    return joined, reports


def sources_of(directory: str) -> tuple[list[Source], list[Source]]:
    """Training and validation sources of a folder, an archive or `shapes`, as `--data` means them.

    Training takes the split `train` (else the whole tree), validation `val`, else `test`, else nothing.

    Raises:
        UserError: There is no such folder, or it holds no picture.
    """
    names = _splits(directory)
    train = next((name for name in ("train", "training", "trainval", folders.ALL) if name in names), None)
    val = next((name for name in ("val", "valid", "validation", "test", "testing") if name in names), None)
    if train is None:
        raise DataError(
            f"{directory}: no split to train on among {listed(names)}: name one with --set data.train"
        )
    return [Source(dir=directory, split=train)], [Source(dir=directory, split=val)] if val else []


def hold_out(images: ImageLabels, count: int) -> tuple[ImageLabels, ImageLabels]:
    """The pictures in two parts, the second of `count`, drawn at random and always the same ones.

    Raises:
        DataError: Nothing would be left to train on.
    """
    if count >= len(images):
        raise DataError(
            f"data.val_count: {count} of {len(images)} pictures of {images.source} leave none to train on"
        )
    order = np.random.default_rng(0).permutation(len(images))
    kept, held = (np.sort(part).tolist() for part in (order[count:], order[:count]))
    return images.select(kept), replace(images.select(held), source=f"{count} held out of {images.source}")


@dataclass
class LeftOut:
    """Pictures that could not be read and were left out: each is named once, with the count so far."""

    messages: set[str] = field(default_factory=set)

    def add(self, messages: Sequence[str]) -> None:
        """Note what is wrong with pictures of a batch."""
        for message in messages:
            if message not in self.messages:
                self.messages.add(message)
                log.warning("data: %s; left out (%d so far)", message, len(self.messages))

    def __len__(self) -> int:
        return len(self.messages)


def select_classes(images: ImageLabels, class_names: tuple[str, ...]) -> ImageLabels:
    """The same pictures with labels that are places in `class_names` (a model's, or another split's).

    Raises:
        DataError: Pictures of a class that `class_names` lacks, or classes missing: both sides are named.
    """
    lacking = [name for name in class_names if name not in images.class_names]
    unknown = [name for name in images.class_names if name not in class_names]
    if lacking or unknown:
        raise DataError(
            f"{images.source}: other classes than expected: unknown {listed(unknown) or 'none'}, "
            f"missing {listed(lacking) or 'none'}"
        )
    place = np.array([class_names.index(name) for name in images.class_names], dtype=np.int64)
    return replace(images, labels=place[images.labels], class_names=class_names)


def _read(source: Source, side: int) -> tuple[ImageLabels, ReadReport]:
    if is_shapes(source.dir):
        numbers = [int(number) for number in source.dir.split(":")[1:]]
        count, seed = [*numbers, *(DRAWN_IMAGES, 0)[len(numbers) :]]
        return shapes_labels(source.split or "train", count, seed, side), ReadReport()
    path = resolve_directory(source.dir)
    batches = cifar.find(path)
    if batches is not None:
        return cifar.read(batches, source.split), ReadReport()
    return folders.read(path, source.split)


def _splits(directory: str) -> list[str]:
    if is_shapes(directory):
        return list(SPLITS)
    path = resolve_directory(directory)
    return folders.splits(path) if cifar.find(path) is None else cifar.splits()
