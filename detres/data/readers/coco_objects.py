"""Turns the objects of a COCO json into columns, and checks all rows at once.

A training set has 860,000 objects (COCO 2017), so Python code runs two or three times a row; only faulty rows are
looked at one by one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from detres.data.readers.common import Findings, Objects
from detres.errors import listed

FLAGS = {0: 0, 1: 1, "0": 0, "1": 1}  # JSON's false and true equal 0 and 1 in Python


def objects_of(
    rows: list[dict], index_of: dict[object, int], label_of: dict[int, int], path: Path, findings: Findings
) -> Objects:
    """Columns of the list of annotations; rows with an unknown image or category or a malformed box are left out.

    Args:
        rows: The file's `annotations`.
        index_of: Index of each image id.
        label_of: Label of each category id.
        path: The file, for messages.
        findings: Gets an error for each row that is left out, a line for each annotation id that repeats and each flag
            and area that is mended.
    """
    images = np.array([_look_up(index_of, row.get("image_id")) for row in rows], dtype=np.int64)
    labels = np.array([_look_up(label_of, row.get("category_id")) for row in rows], dtype=np.int64)
    boxes = [row.get("bbox") for row in rows]
    faulty = (images < 0) | (labels < 0)
    corners = _flat(boxes) if _all_boxes(boxes) else None
    if corners is None:
        faulty |= ~np.array([_is_box(box) for box in boxes], dtype=bool)

    def where(number: int) -> str:
        return f"{path}, annotation {rows[number].get('id', f'number {number}')}"

    for number in np.flatnonzero(faulty).tolist():
        kind, what = _fault(rows[number], bool(images[number] >= 0), bool(labels[number] >= 0), label_of)
        findings.error(kind, where(number), what)
    kept = np.flatnonzero(~faulty)
    numbers = kept.tolist()
    ids = [rows[number].get("id") for number in numbers]
    ids = [name if isinstance(name, (int, float, str)) else str(name) for name in ids]
    for place in _repeated(ids):
        findings.report.add(
            "duplicate annotation id", where(numbers[place]), "kept: objects' ids are not used"
        )
    corners = _flat([boxes[number] for number in numbers]) if corners is None else corners[kept]
    assert corners is not None
    corners[:, 2:] += corners[:, :2]

    def flags(key: str) -> np.ndarray:
        values = [rows[number].get(key) for number in numbers]
        numbered = np.array(
            [0 if value is None else _look_up(FLAGS, value) for value in values], dtype=np.int64
        )
        for place in np.flatnonzero(numbered < 0).tolist():
            findings.report.add(f"malformed {key}", where(numbers[place]), f"{values[place]!r}: taken as 0")
        return numbered == 1

    areas = [rows[number].get("area") for number in numbers]
    for place, area in enumerate(areas):
        if area is not None and not (isinstance(area, (int, float)) and abs(area) <= sys.float_info.max):
            findings.report.add(
                "malformed area", where(numbers[place]), f"{area!s:.40}: that of the box is taken"
            )
            areas[place] = None
    return Objects(
        images=images[kept],
        boxes=corners,
        labels=labels[kept],
        crowd=flags("iscrowd"),
        difficult=flags("difficult"),
        areas=np.array([np.nan if area is None else area for area in areas], dtype=np.float64),
        where=lambda row: f"{path}, annotation {ids[row]}",
    )


def _look_up(places: Mapping[Any, int], key: object) -> int:
    """The place of an id; -1: it is unknown, or no id."""
    return places.get(key, -1) if isinstance(key, (int, float, str)) else -1


def _fault(row: dict, known_image: bool, known_category: bool, label_of: dict[int, int]) -> tuple[str, str]:
    """The kind and description of the defect of a row that is left out."""
    if not known_image:
        return "unknown image id", f"image {row.get('image_id')} is not in 'images'"
    if not known_category:
        return "unknown category", f"category {row.get('category_id')} is not one of {listed(label_of)}"
    return "malformed box", f"bbox {row.get('bbox')!s:.200} is not four numbers [x, y, width, height]"


def _all_boxes(boxes: list) -> bool:
    """Whether `_is_box` is true of all, without a Python call for each."""
    return (
        {*map(type, boxes)} <= {list}
        and {*map(len, boxes)} <= {4}
        and {*map(type, chain.from_iterable(boxes))} <= {int, float}
    )


def _is_box(box: object) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and {*map(type, box)} <= {int, float}
        and _flat([box]) is not None
    )


def _flat(boxes: list) -> np.ndarray | None:
    """(B, 4) float64 from B lists of four numbers; None: one of hundreds of digits is among them."""
    try:
        return np.fromiter(chain.from_iterable(boxes), np.float64, 4 * len(boxes)).reshape(-1, 4)
    except OverflowError:
        return None


def _repeated(ids: list) -> list[int]:
    """Places of the ids that occur earlier in the list."""
    if len({*ids}) == len(ids):
        return []
    earlier: set[object] = set()
    return [place for place, number in enumerate(ids) if number in earlier or earlier.add(number)]
