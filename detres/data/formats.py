"""Finds out what a folder holds (COCO, VOC, YOLO, ImageNet DET), reads it, joins several, and keeps class names agreed.

Class names are the key everywhere: labels are places in one ordered list of names, never a data set's own numbers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from detres.data.class_names import check_class_names, class_places
from detres.data.readers import coco, imagenet_det, voc, yolo
from detres.data.readers.common import Findings, raise_on_errors
from detres.data.records import Annotations, ReadReport, Strings
from detres.data.shapes import SPLITS, is_shapes, read_shapes
from detres.errors import UserError, listed, nearest

READERS = {"coco": coco, "voc": voc, "yolo": yolo, "imagenet_det": imagenet_det}
DATA_VARIABLE = "DETRES_DATA"


def read_annotations(
    directory: Path, split: str | None, *, format: str | None = None, need_images: bool = True
) -> tuple[Annotations, ReadReport]:
    """Read one split of a data set for detection, whatever its format.

    Args:
        directory: The data set's folder, a COCO json (read alone, without pictures), or `shapes` (drawn pictures).
        split: Its name; None where there is only one.
        format: `coco`, `voc`, `yolo` or `imagenet_det`; found out by looking where None.
        need_images: Whether a picture that is not there is an error.

    Returns:
        Annotations, and what was dropped or mended on the way.

    Raises:
        UserError: No or two formats in the folder, an unknown split, or anything docs/data.md calls an error.
    """
    annotations, findings = scan_annotations(directory, split, format=format, need_images=need_images)
    return raise_on_errors(annotations, findings)


def scan_annotations(
    directory: Path, split: str | None, *, format: str | None = None, need_images: bool = True
) -> tuple[Annotations, Findings]:
    """As `read_annotations`, but errors are gathered and what they concern is left out (see `checks`)."""
    directory = Path(directory)
    if is_shapes(str(directory)):
        return read_shapes(str(directory), split), Findings()
    if directory.is_file() and directory.suffix == ".json":
        return coco.scan_file(directory, directory.parent, (), need_images=False)
    reader = READERS[find_format(directory, format)]
    return reader.scan(directory, split, need_images=need_images)


def read_unlabeled(
    directory: Path, split: str | None, *, format: str | None = None, need_images: bool = True
) -> Annotations | None:
    """The pictures of a split whose objects are not public: COCO's test-dev, VOC 2012's test.

    Args:
        directory: The data set's folder.
        split: Its name.
        format: `coco` or `voc`; found out by looking where None.
        need_images: Whether a picture that is not there is an error; without them VOC's splits cannot be read.

    Returns:
        Annotations without objects; None for a split that has annotations, or that is not there.

    Raises:
        UserError: Pictures that are missing or cannot be read.
    """
    reader = None if split is None or not directory.is_dir() else READERS[find_format(directory, format)]
    scanned = (
        reader.scan_unlabeled(directory, split, need_images=need_images) if reader in (coco, voc) else None
    )
    return raise_on_errors(*scanned)[0] if scanned is not None else None


def list_splits(directory: Path, *, format: str | None = None) -> list[str]:
    """Names of the splits of a data set."""
    if is_shapes(str(directory)):
        return list(SPLITS)
    return READERS[find_format(directory, format)].splits(directory)


def find_format(directory: Path, format: str | None = None) -> str:
    """The format of a folder, by looking.

    Raises:
        UserError: There is no such folder, none of the formats is in it, or two are and none was chosen.
    """
    if format is not None and format not in READERS:
        raise UserError(f"format '{format}' is not one of {listed(READERS)}{nearest(format, READERS)}")
    if not directory.is_dir():
        raise UserError(f"data folder {directory} does not exist")
    found = [name for name, reader in READERS.items() if reader.recognize(directory)]
    if format is not None:
        if format not in found:
            raise UserError(f"{directory} holds no {format} data; found: {listed(found) or 'none'}")
        return format
    if len(found) > 1:
        choices = " or ".join(f"--format {name}" for name in found)
        raise UserError(f"{directory} holds {' and '.join(found)} data: choose with {choices}")
    if not found:
        expected = (
            "annotations/*.json (COCO), Annotations/*.xml (VOC), labels/*.txt with images/ (YOLO),"
            " or Annotations/DET (ImageNet DET)"
        )
        inside = listed(sorted(path.name for path in directory.iterdir()), 5) or "nothing"
        raise UserError(f"{directory} holds no data set that is known: expected {expected}, found {inside}")
    return found[0]


def resolve_directory(text: str | Path) -> Path:
    """Where a data set is: relative paths are looked up in `DETRES_DATA`, then `datasets/`, then the current folder.

    `shapes` (also `shapes:COUNT:SEED`) is the drawn data set; a folder of that name is meant by `./shapes`.

    Raises:
        UserError: It is in none of them; all that was tried is named.
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
        f"data '{text}' is not there; looked at {listed(tried)}{hint}{nearest(path.name, siblings)}"
    )


def read_union(
    sources: Sequence[tuple[Path, str | None] | tuple[Path, str | None, str | None]],
) -> tuple[Annotations, list[ReadReport]]:
    """Read several splits as one data set (07+12, trainval35k).

    Declared class lists (COCO, YOLO) must hold the same names; names found by looking (VOC) are joined, and must all be
    declared where another source declares a list.

    Args:
        sources: Folder and split of each, and its format where the folder holds two.

    Raises:
        UserError: Class lists that differ, with both sides; or what `read_annotations` raises.
    """
    if not sources:
        raise UserError("no data set is named: data.train needs at least one {dir, split}")
    parts: list[Annotations] = []
    reports: list[ReadReport] = []
    for directory, split, *format in sources:
        annotations, report = read_annotations(directory, split, format=format[0] if format else None)
        parts.append(annotations)
        reports.append(report)
    declared = [part for part in parts if part.category_ids is not None]
    for other in declared[1:]:
        first = declared[0]
        check_class_names(
            other.class_names, first.class_names, source=other.source, expected_source=first.source
        )
    if declared:
        names, ids = declared[0].class_names, declared[0].category_ids
    else:
        same = all(part.class_names == parts[0].class_names for part in parts)
        names = (
            parts[0].class_names
            if same
            else tuple(sorted({name for part in parts for name in part.class_names}))
        )
        ids = None
    parts = [replace(select_classes(part, names), category_ids=ids) for part in parts]
    return (parts[0] if len(parts) == 1 else _joined(parts, reports)), reports


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


def _joined(parts: list[Annotations], reports: list[ReadReport]) -> Annotations:
    """One `Annotations` of several with one class list; ids that occur twice get their source's number in front."""
    ids = [[part.image_ids[index] for index in range(len(part))] for part in parts]
    if len({text for some in ids for text in some}) < sum(len(some) for some in ids):
        ids = [[f"{number}/{text}" for text in some] for number, some in enumerate(ids, start=1)]
    paths = [[part.paths[index] for index in range(len(part))] for part in parts]
    seen: set[str] = set()
    for some, report in zip(paths, reports, strict=True):
        for path in some:
            if path in seen:
                report.add("picture in two sources", path, "kept twice")
        seen.update(some)
    ends = np.cumsum([0, *(len(part.boxes) for part in parts)])
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, ends, strict=False)]
    return Annotations(
        paths=Strings([path for some in paths for path in some]),
        image_ids=Strings([text for some in ids for text in some]),
        sizes=np.concatenate([part.sizes for part in parts]),
        upright=np.concatenate([part.upright for part in parts]),
        offsets=np.concatenate([*offsets, ends[-1:]]).astype(np.int64),
        boxes=np.concatenate([part.boxes for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        crowd=np.concatenate([part.crowd for part in parts]),
        difficult=np.concatenate([part.difficult for part in parts]),
        areas=np.concatenate([part.areas for part in parts]),
        class_names=parts[0].class_names,
        category_ids=parts[0].category_ids,
        source=" + ".join(part.source for part in parts),
        exhaustive=np.array([part.is_exhaustive(index) for part in parts for index in range(len(part))]),
    )
