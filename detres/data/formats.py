"""The formats of data sets for detection: one table of them, and what reads a folder by it.

Class names are the key everywhere: labels are places in one ordered list of names, never a data set's own numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detres.data.class_names import check_class_names, class_places
from detres.data.readers import coco, imagenet_det, voc, yolo
from detres.data.readers.common import Findings, raise_on_errors
from detres.data.records import Annotations, ReadReport
from detres.data.shapes import SPLITS, is_shapes, read_shapes
from detres.errors import UserError, listed, nearest

DATA_VARIABLE = "DETRES_DATA"


@dataclass(frozen=True)
class Format:
    """A format of data sets for detection.

    Attributes:
        name: As `--format` takes it.
        files: The files that it is recognized by, for messages.
        recognize: Whether a folder holds it.
        splits: The names of a folder's splits.
        scan: Reads a split (None: the only one) of a folder and gathers what is wrong with it; the last argument says
            whether a missing image is an error.
        scan_unlabeled: Reads a split whose objects are not public, None for any other split; None: the format has none.
    """

    name: str
    files: str
    recognize: Callable[[Path], bool]
    splits: Callable[[Path], list[str]]
    scan: Callable[[Path, str | None, bool], tuple[Annotations, Findings]]
    scan_unlabeled: Callable[[Path, str, bool], tuple[Annotations, Findings] | None] | None = None


FORMATS = {
    form.name: form
    for form in (
        Format("coco", "annotations/*.json", coco.recognize, coco.splits, coco.scan, coco.scan_unlabeled),
        Format("voc", "Annotations/*.xml", voc.recognize, voc.splits, voc.scan, voc.scan_unlabeled),
        Format("yolo", "data.yaml or labels/*.txt with images/", yolo.recognize, yolo.splits, yolo.scan),
        Format(
            "imagenet_det",
            "Annotations/DET/ with ImageSets/DET/",
            imagenet_det.recognize,
            imagenet_det.splits,
            imagenet_det.scan,
        ),
    )
}


def read_annotations(
    directory: Path, split: str | None, *, format: str | None = None, need_images: bool = True
) -> tuple[Annotations, ReadReport]:
    """Read one split of a data set for detection in any format.

    Args:
        directory: The data set's folder; a COCO json, which is read without images; or `shapes` (drawn images).
        split: Its name; None where there is only one.
        format: A name of `FORMATS`; None: that of the folder.
        need_images: Whether a missing image is an error.

    Returns:
        Annotations, and what was dropped or mended.

    Raises:
        UserError: The folder has no known format, or two; the split is unknown; or what docs/data.md calls an error.
    """
    annotations, findings = scan_annotations(directory, split, format=format, need_images=need_images)
    return raise_on_errors(annotations, findings)


def scan_annotations(
    directory: Path, split: str | None, *, format: str | None = None, need_images: bool = True
) -> tuple[Annotations, Findings]:
    """As `read_annotations`, but errors are gathered, and what they concern is left out."""
    directory = Path(directory)
    if is_shapes(str(directory)):
        return read_shapes(str(directory), split), Findings()
    if directory.is_file() and directory.suffix == ".json":
        return coco.scan_file(directory, directory.parent, (), need_images=False)
    return FORMATS[find_format(directory, format)].scan(directory, split, need_images)


def read_unlabeled(
    directory: Path, split: str | None, *, format: str | None = None, need_images: bool = True
) -> Annotations | None:
    """Read the images of a split whose objects are not public: COCO's test-dev, VOC 2012's test.

    Args:
        directory: The data set's folder.
        split: Its name.
        format: A name of `FORMATS`; None: that of the folder.
        need_images: Whether a missing image is an error; without images VOC's splits cannot be read.

    Returns:
        Annotations without objects; None: the split has annotations, or is not there.

    Raises:
        UserError: An image is missing or cannot be read.
    """
    if split is None or not directory.is_dir():
        return None
    scan = FORMATS[find_format(directory, format)].scan_unlabeled
    result = scan(directory, split, need_images) if scan else None
    return raise_on_errors(*result)[0] if result else None


def list_splits(directory: Path, *, format: str | None = None) -> list[str]:
    """Names of the splits of a data set."""
    if is_shapes(str(directory)):
        return list(SPLITS)
    return FORMATS[find_format(directory, format)].splits(directory)


def find_format(directory: Path, format: str | None = None) -> str:
    """The name of a folder's format.

    Args:
        directory: The folder.
        format: The one that the user names.

    Raises:
        UserError: The folder does not exist, does not hold `format`, holds no known format, or holds two and `format`
            is None.
    """
    if format is not None and format not in FORMATS:
        raise UserError(f"format '{format}' is not one of {listed(FORMATS)}{nearest(format, FORMATS)}")
    if not directory.is_dir():
        raise UserError(f"data folder {directory} does not exist")
    names = [name for name, known in FORMATS.items() if known.recognize(directory)]
    if format is not None:
        if format not in names:
            raise UserError(f"{directory} holds no {format} data; it holds {listed(names) or 'none'}")
        return format
    if len(names) > 1:
        choices = " or ".join(f"--format {name}" for name in names)
        raise UserError(f"{directory} holds {' and '.join(names)} data: choose with {choices}")
    if not names:
        expected = ", ".join(f"{known.files} ({name})" for name, known in FORMATS.items())
        inside = listed(sorted(path.name for path in directory.iterdir()), 5) or "nothing"
        raise UserError(f"{directory} holds no known data set: expected {expected}; found {inside}")
    return names[0]


def resolve_directory(text: str | Path) -> Path:
    """The path of a data set; a relative one is looked up in `DETRES_DATA`, `datasets/` and the current folder.

    `shapes` and `shapes:COUNT:SEED` name the drawn data set; `./shapes` is a folder of that name.

    Raises:
        UserError: It is in none of them; the message lists the places.
    """
    if is_shapes(str(text)):
        return Path(text)
    path = Path(text).expanduser()
    roots = [Path(os.environ[DATA_VARIABLE])] if os.environ.get(DATA_VARIABLE) else []
    tried = [path] if path.is_absolute() else [root / path for root in (*roots, Path("datasets"), Path("."))]
    for place in tried:
        if place.exists():
            return place.absolute()
    hint = "" if roots or path.is_absolute() else f" (the variable {DATA_VARIABLE} is not set)"
    siblings = [entry.name for place in tried if place.parent.is_dir() for entry in place.parent.iterdir()]
    raise UserError(
        f"data '{text}' does not exist; tried {listed(tried)}{hint}{nearest(path.name, siblings)}"
    )


def select_classes(annotations: Annotations, class_names: Sequence[str]) -> Annotations:
    """The same annotations with labels that are places in `class_names` (a model's, or another split's).

    A name that `class_names` lacks is an error; so is a missing one where the data declares its list (COCO, YOLO).
    Names found by looking (VOC) say nothing about classes that do not occur.

    Raises:
        UserError: The lists differ; both sides are named.
    """
    wanted = tuple(class_names)
    subset = annotations.category_ids is None
    check_class_names(annotations.class_names, wanted, source=annotations.source, subset=subset)
    of_label = np.array(class_places(annotations.class_names, wanted), dtype=np.int64)
    ids = annotations.category_ids
    if ids is not None:
        id_of = dict(zip(annotations.class_names, ids, strict=True))
        ids = tuple(id_of[name] for name in wanted)
    labels = of_label[annotations.labels] if len(of_label) else annotations.labels
    return replace(annotations, labels=labels, class_names=wanted, category_ids=ids)
