"""Ground truth and detections from a few numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from detres.data.records import Annotations, DetectionTable, Strings


@pytest.fixture(scope="session")
def make_truth() -> Callable[..., Annotations]:
    return build_truth


@pytest.fixture(scope="session")
def make_table() -> Callable[..., DetectionTable]:
    return build_table


def build_truth(
    images: Sequence[Sequence[tuple]],
    *,
    classes: Sequence[str] = ("cat", "dog", "cow"),
    ids: Sequence[str] | None = None,
    category_ids: tuple[int, ...] | None = None,
    size: tuple[int, int] = (500, 500),
) -> Annotations:
    """Each picture a list of (label, x1, y1, x2, y2[, "difficult" or "crowd"])."""
    rows = [row for image in images for row in image]
    boxes = np.array([row[1:5] for row in rows], np.float32).reshape(-1, 4)
    flags = [row[5] if len(row) > 5 else "" for row in rows]
    ids = ids or [str(number) for number in range(1, len(images) + 1)]
    return Annotations(
        paths=Strings([f"{name}.jpg" for name in ids]),
        image_ids=Strings(ids),
        sizes=np.full((len(images), 2), size, np.int64),
        upright=np.ones(len(images), bool),
        offsets=np.cumsum([0, *map(len, images)], dtype=np.int64),
        boxes=boxes,
        labels=np.array([row[0] for row in rows], np.int64),
        crowd=np.array([flag == "crowd" for flag in flags], bool),
        difficult=np.array([flag == "difficult" for flag in flags], bool),
        areas=((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).astype(np.float64),
        class_names=tuple(classes),
        category_ids=category_ids,
        source="truth",
    )


def build_table(rows: Sequence[tuple]) -> DetectionTable:
    """Each row (picture, label, score, x1, y1, x2, y2)."""
    return DetectionTable(
        images=np.array([row[0] for row in rows], np.int64),
        boxes=np.array([row[3:] for row in rows], np.float32).reshape(-1, 4),
        scores=np.array([row[2] for row in rows], np.float64),
        labels=np.array([row[1] for row in rows], np.int64),
    )
