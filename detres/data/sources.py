"""Reads the data sets that a configuration or command line names as one, and logs what their readers dropped."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from detres.data.class_names import check_class_names
from detres.data.config import Source
from detres.data.formats import read_annotations, resolve_directory, select_classes
from detres.data.records import Annotations, ReadReport, Strings
from detres.errors import UserError, listed

log = logging.getLogger("detres")


def read_sources(sources: Sequence[Source]) -> tuple[Annotations, list[ReadReport]]:
    """Read several splits as one data set (07+12, trainval35k).

    Declared class lists (COCO, YOLO) must hold the same names. Names that are gathered from the annotations (VOC) are
    united; where another source declares a list, it must have them all.

    Args:
        sources: Folders with splits, looked up as `resolve_directory` says; or drawn `shapes[:COUNT[:SEED]]`.

    Returns:
        Annotations, and for each source what its reader dropped or mended (for `log_reports`).

    Raises:
        UserError: There is no source, one is missing or wrong, or class names differ.
    """
    if not sources:
        raise UserError("no data set is named: data.train needs at least one {dir, split}")
    parts: list[Annotations] = []
    reports: list[ReadReport] = []
    for source in sources:
        directory = resolve_directory(source.dir)
        annotations, report = read_annotations(directory, source.split, format=source.format)
        parts.append(annotations)
        reports.append(report)
    names, ids = _united_classes(parts)
    parts = [replace(select_classes(part, names), category_ids=ids) for part in parts]
    return (parts[0] if len(parts) == 1 else _concatenate(parts, reports)), reports


def log_reports(reports: Iterable[ReadReport]) -> None:
    """Warn of what readers dropped or mended: one line for each kind, with its count and the first places."""
    for report in reports:
        for kind, count in report.counts().items():
            where = [defect.where for defect in report.defects if defect.kind == kind]
            log.warning("data: %d x %s: %s", count, kind, listed(where, 5))


def _united_classes(parts: Sequence[Annotations]) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Class names and category ids of all parts: those of the first declared list, else all names that occur."""
    lists = [part for part in parts if part.category_ids is not None]
    for other in lists[1:]:
        check_class_names(
            other.class_names, lists[0].class_names, source=other.source, expected_source=lists[0].source
        )
    if lists:
        return lists[0].class_names, lists[0].category_ids
    if all(part.class_names == parts[0].class_names for part in parts):
        return parts[0].class_names, None
    return tuple(sorted({name for part in parts for name in part.class_names})), None


def _concatenate(parts: Sequence[Annotations], reports: Sequence[ReadReport]) -> Annotations:
    """One `Annotations` of several with one class list; image ids that repeat get their source's number as a prefix."""
    ids = [[part.image_ids[index] for index in range(len(part))] for part in parts]
    if len({text for some in ids for text in some}) < sum(len(some) for some in ids):
        ids = [[f"{number}/{text}" for text in some] for number, some in enumerate(ids, start=1)]
    paths = [[part.paths[index] for index in range(len(part))] for part in parts]
    earlier: set[str] = set()
    for some, report in zip(paths, reports, strict=True):
        for path in some:
            if path in earlier:
                report.add("picture in two sources", path, "kept twice")
        earlier.update(some)
    ends = np.cumsum([0, *(len(part.boxes) for part in parts)])
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, ends, strict=False)]
    columns = ("sizes", "upright", "boxes", "labels", "crowd", "difficult", "areas")
    return Annotations(
        paths=Strings([path for some in paths for path in some]),
        image_ids=Strings([text for some in ids for text in some]),
        offsets=np.concatenate([*offsets, ends[-1:]]).astype(np.int64),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns},
        class_names=parts[0].class_names,
        category_ids=parts[0].category_ids,
        source=" + ".join(part.source for part in parts),
        exhaustive=np.array([part.is_exhaustive(index) for part in parts for index in range(len(part))]),
    )
