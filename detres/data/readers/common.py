"""What all detection readers share: the treatment of bad boxes, the list of defects, and the flat arrays.

N images, M objects. Boxes are xyxy in continuous pixel coordinates of the upright image. A table in docs/data.md says
what is an error and what is dropped or mended with a count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detres.console import progress
from detres.data.files import is_image, visible
from detres.data.records import Annotations, Defect, ReadReport, Strings
from detres.errors import DataError, listed

SHOWN_ERRORS = 10
LONGEST_SIDE = 2**31 - 1  # pixels that an annotation may state
CLIP_TOLERANCE = 0.01  # pixels; COCO states two decimals, so less is rounding


@dataclass
class Findings:
    """What is wrong with a split: errors, which stop a training, and the report of what was dropped or mended."""

    errors: list[Defect] = field(default_factory=list)
    report: ReadReport = field(default_factory=ReadReport)

    def error(self, kind: str, where: str, what: str) -> None:
        self.errors.append(Defect(kind, where, what))


@dataclass
class Objects:
    """The objects of a split before bad boxes are treated.

    Attributes:
        images: (M,) index of each object's image.
        boxes: (M, 4) xyxy in pixels.
        labels: (M,) in 0..K-1.
        crowd: (M,) bool.
        difficult: (M,) bool.
        areas: (M,), NaN where the data states none.
        where: File and object of a row, for messages.
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray
    where: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def from_rows(
        cls,
        images: Sequence[int],
        boxes: Sequence[Sequence[float]] | np.ndarray,
        labels: Sequence[int],
        where: Callable[[int], str],
        difficult: Sequence[bool] | None = None,
    ) -> Objects:
        """Objects of a format that has neither crowds nor areas."""
        return cls(
            images=np.array(images, dtype=np.int64),
            boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            labels=np.array(labels, dtype=np.int64),
            crowd=np.zeros(len(images), dtype=bool),
            difficult=np.zeros(len(images), dtype=bool)
            if difficult is None
            else np.array(difficult, dtype=bool),
            areas=np.full(len(images), np.nan),
            where=where,
        )


def assemble(
    paths: Sequence[str],
    image_ids: Sequence[str],
    sizes: np.ndarray,
    objects: Objects,
    class_names: Sequence[str],
    category_ids: Sequence[int] | None,
    source: str,
    findings: Findings,
    *,
    exhaustive: bool = True,
) -> Annotations:
    """Clip or drop bad boxes and put the others into flat arrays, sorted by image.

    Args:
        paths: N image paths.
        image_ids: N ids.
        sizes: (N, 2) height and width; 0 where unknown, and then nothing is clipped.
        objects: M objects in any order.
        class_names: K names.
        category_ids: K ids of the data; None: the names were gathered from the annotations.
        source: For messages.
        findings: Gets an error for each coordinate that is not finite, a line for each box that is clipped or dropped.
        exhaustive: Whether every object of the classes is annotated.
    """
    if not len(paths):
        findings.error("empty data set", source, "holds no picture; check the folder and the split")
    boxes, keep = _clip_boxes(objects, sizes, findings)
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(objects.images[rows], kind="stable")]
    boxes = boxes[rows].astype(np.float32)
    areas = np.asarray(objects.areas, dtype=np.float64)[rows]
    own = (boxes[:, 2] - boxes[:, 0]).astype(np.float64) * (boxes[:, 3] - boxes[:, 1])
    counts = np.bincount(objects.images[rows], minlength=len(paths))
    return Annotations(
        paths=Strings(paths),
        image_ids=Strings(image_ids),
        sizes=np.asarray(sizes, dtype=np.int64).reshape(-1, 2),
        upright=np.ones(len(paths), dtype=bool),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes,
        labels=objects.labels[rows].astype(np.int64),
        crowd=objects.crowd[rows].astype(bool),
        difficult=objects.difficult[rows].astype(bool),
        areas=np.where(np.isnan(areas), own, areas),
        class_names=tuple(class_names),
        category_ids=None if category_ids is None else tuple(int(number) for number in category_ids),
        source=source,
        exhaustive=np.full(len(paths), exhaustive),
    )


def _clip_boxes(objects: Objects, sizes: np.ndarray, findings: Findings) -> tuple[np.ndarray, np.ndarray]:
    """The clipped boxes (M, 4), and which of them are kept (M,)."""
    boxes = np.asarray(objects.boxes, dtype=np.float64).reshape(-1, 4)
    finite = np.isfinite(boxes).all(axis=1)
    for row in np.flatnonzero(~finite).tolist():
        findings.error(
            "coordinate not finite", objects.where(row), f"box {_format_box(boxes[row])} has NaN or infinity"
        )
    limits = sizes[objects.images][:, [1, 0, 1, 0]].astype(np.float64) if len(boxes) else np.zeros((0, 4))
    limits[limits <= 0] = np.inf
    clipped = np.clip(boxes, 0, limits)
    empty_before = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    rounded = clipped.astype(np.float32)
    empty_after = (rounded[:, 2] <= rounded[:, 0]) | (rounded[:, 3] <= rounded[:, 1])
    with np.errstate(invalid="ignore"):
        sticks_out = np.abs(clipped - boxes).max(axis=1, initial=0) > CLIP_TOLERANCE
    for row in np.flatnonzero(finite & (empty_before | empty_after | sticks_out)).tolist():
        height, width = sizes[objects.images[row]]
        what = f"box {_format_box(boxes[row])} in a picture {width} wide and {height} high"
        if empty_before[row]:
            findings.report.add("zero-size box", objects.where(row), f"{what}: dropped")
        elif empty_after[row]:
            findings.report.add("box outside the picture", objects.where(row), f"{what}: dropped")
        else:
            findings.report.add("box clipped", objects.where(row), f"{what}: clipped")
    return clipped, finite & ~empty_before & ~empty_after


def raise_on_errors(annotations: Annotations, findings: Findings) -> tuple[Annotations, ReadReport]:
    """The annotations and the report, unless there are errors.

    Raises:
        DataError: There are: one line for one error; else a line with their number, then a line each (ten at most).
    """
    lines = [f"{defect.where}: {defect.kind}: {defect.what}" for defect in findings.errors]
    if len(lines) == 1:
        raise DataError(lines[0])
    if lines:
        rest = len(lines) - SHOWN_ERRORS
        more = [f"... and {rest} more (check_data lists all)"] if rest > 0 else []
        raise DataError(
            "\n".join([f"{len(lines)} errors in {annotations.source}:", *lines[:SHOWN_ERRORS], *more])
        )
    return annotations, findings.report


def only_split(directory: Path, available: Sequence[str]) -> str:
    """The split of a data set that has only one.

    Raises:
        DataError: It has several, and none was named.
    """
    if len(available) != 1:
        raise DataError(f"{directory} has several splits: {listed(available)}; choose one with --split")
    return available[0]


def images_in(folder: Path) -> dict[str, Path]:
    """Image files directly in `folder`, by stem; a folder that does not exist has none."""
    if not folder.is_dir():
        return {}
    files = sorted(path for path in visible(folder.iterdir()) if is_image(path.name))
    return {path.stem: path for path in reversed(files)}


def upright_size(path: str) -> tuple[int, int]:
    """Height and width of the upright image, from the header (EXIF orientations 5 to 8 swap them)."""
    from detres.data.decoding import read_header

    height, width, orientation = read_header(path)
    return (width, height) if orientation >= 5 else (height, width)


def fill_sizes(paths: Sequence[str], sizes: np.ndarray, missing: Iterable[int], findings: Findings) -> None:
    """Write into `sizes` (N, 2) the sizes of the images `missing`, from their headers; unreadable ones are errors."""
    for index in progress(list(missing), "picture sizes"):
        try:
            sizes[index] = upright_size(paths[index])
        except DataError as error:
            findings.error("unreadable picture", paths[index], str(error))


def _format_box(box: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"
