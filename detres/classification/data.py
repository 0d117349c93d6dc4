"""Reads the images and classes that `data.train`, `data.val` and `--data` name.

Labels are places in one ordered list of class names; sources agree by name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from detres.data.class_names import check_class_names, class_places
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
    """Read images with one class each from one or several sources as one data set; log what readers dropped.

    Args:
        sources: Class-per-folder trees, archives of one, CIFAR-10's files, or `shapes[:COUNT[:SEED]]`.
        side: Side of drawn images (`shapes`), in pixels.

    Raises:
        UserError: A source is missing or unreadable; classes differ between sources; no source at all.
    """
    images, reports = scan_image_labels(sources, side=side)
    log_reports(reports)
    return images


def scan_image_labels(sources: Sequence[Source], *, side: int = 64) -> tuple[ImageLabels, list[ReadReport]]:
    """As `read_image_labels`, but return what readers dropped instead of logging it."""
    if not sources:
        raise DataError("no images to read: data.train names no {dir, split}; --data DIR gives one")
    read = [_read(source, side) for source in sources]
    reports = [report for _, report in read]
    first, others = read[0][0], [part for part, _ in read[1:]]
    parts = [first, *(relabel_images(part, first.class_names) for part in others)]
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
        UserError: There is no such folder, or it holds no image.
    """
    names = _splits(directory)
    train = next((name for name in ("train", "training", "trainval", folders.ALL) if name in names), None)
    val = next((name for name in ("val", "valid", "validation", "test", "testing") if name in names), None)
    if train is None:
        raise DataError(
            f"{directory}: no split to train on among {listed(names)}: name one with --set data.train"
        )
    return [Source(dir=directory, split=train)], [Source(dir=directory, split=val)] if val else []


@dataclass
class LeftOut:
    """Images that could not be read and were left out. Each is logged once, with the count so far."""

    messages: set[str] = field(default_factory=set)

    def add(self, messages: Sequence[str]) -> None:
        """Add the messages of a batch's unreadable images."""
        for message in messages:
            if message not in self.messages:
                self.messages.add(message)
                log.warning("data: %s; left out (%d so far)", message, len(self.messages))

    def __len__(self) -> int:
        return len(self.messages)


def relabel_images(images: ImageLabels, class_names: tuple[str, ...]) -> ImageLabels:
    """The same images with labels that are places in `class_names` (a model's, or another split's).

    Raises:
        DataError: The images have other class names; both sides are listed.
    """
    check_class_names(images.class_names, class_names, source=images.source)
    place = np.array(class_places(images.class_names, class_names), dtype=np.int64)
    return replace(images, labels=place[images.labels], class_names=class_names)


def _read(source: Source, side: int) -> tuple[ImageLabels, ReadReport]:
    if is_shapes(source.dir):
        numbers = [int(number) for number in source.dir.split(":")[1:]]
        count, seed = [*numbers, *(DRAWN_IMAGES, 0)[len(numbers) :]]
        return shapes_labels(source.split or "train", count, seed, side), ReadReport()
    path = resolve_directory(source.dir)
    batches = cifar.find_folder(path)
    if batches is not None:
        return cifar.read(batches, source.split), ReadReport()
    return folders.read(path, source.split)


def _splits(directory: str) -> list[str]:
    if is_shapes(directory):
        return list(SPLITS)
    path = resolve_directory(directory)
    return folders.splits(path) if cifar.find_folder(path) is None else cifar.splits()
