"""Detections for evaluation servers: COCO's results json and the VOC kit's `comp4` files, checked before writing.

He et al. 2015, Tables 9 to 12: COCO test-dev, VOC 2012 test. A server takes few submissions and explains little, so
that everything that it would refuse or silently ignore is refused here first.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from detres.data.readers.voc import VOC_CLASSES
from detres.data.records import Annotations, DetectionTable
from detres.errors import DataError, UserError, listed, nearest
from detres.evaluation.overlaps import check_detections
from detres.evaluation.results_files import write_coco_results, write_comp4

COCO_NAME = re.compile(r"detections_(?P<split>[a-z]+(?:-[a-z]+)?\d*)_(?P<algorithm>\w[\w.-]*)_results\.json")
NAME_PATTERN = (
    "detections_<split>_<algorithm>_results.json, such as detections_test-dev2015_detres_results.json"
)
COCO_LIMIT = 100  # detections of an image that COCO's server counts
MAX_OUTSIDE = 1.0  # pixels by which a box may extend beyond its image


def check_coco_name(path: Path, split: str | None) -> None:
    """Refuse a file name that COCO's server does not take, or that names another split.

    Args:
        path: The file to write.
        split: The split (or a part of its name); None if there is only one.

    Raises:
        UserError: With the pattern.
    """
    match = COCO_NAME.fullmatch(path.name)
    if match is None:
        raise UserError(f"{path}: the name for COCO's server should be {NAME_PATTERN}")
    if split is not None and split not in match["split"]:
        raise UserError(
            f"{path}: the name has split '{match['split']}', the detections are of '{split}';"
            f" it should be {NAME_PATTERN}"
        )


def write_coco_submission(path: Path, truth: Annotations, detections: DetectionTable) -> None:
    """Check, then write a COCO results json with the data's own ids.

    Args:
        path: See `check_coco_name`.
        truth: The split; its objects are not used.
        detections: Detections.

    Raises:
        DataError: Anything that the server would refuse; nothing is written.
    """
    check_coco_split(truth)
    _check_boxes(truth, detections)
    largest = int(np.bincount(detections.images, minlength=1).max())
    if largest > COCO_LIMIT:
        raise DataError(
            f"{largest} detections of one image, COCO's server counts the best {COCO_LIMIT}:"
            f" set test.detections_per_img={COCO_LIMIT}"
        )
    write_coco_results(path, truth, detections)


def check_coco_limit(detections_per_img: int | None) -> None:
    """Refuse, before the test, a limit above what COCO's server counts; None stands for results read from a file.

    Raises:
        DataError: The limit is higher.
    """
    if detections_per_img is not None and detections_per_img > COCO_LIMIT:
        raise DataError(
            f"test.detections_per_img={detections_per_img}: COCO's server counts the best {COCO_LIMIT} of an image:"
            f" set test.detections_per_img={COCO_LIMIT}"
        )


def check_coco_split(truth: Annotations) -> None:
    """Refuse a split whose ids COCO's server cannot read.

    Raises:
        DataError: No category ids, or image ids that are not numbers.
    """
    if truth.category_ids is None:
        raise DataError(
            f"{truth.source}: has no category ids, which COCO's results need; choose a data set in COCO's format"
        )
    invalid = [text for text in _image_ids(truth) if not text.isdecimal()]
    if invalid:
        raise DataError(
            f"{truth.source}: image ids must be whole numbers for COCO's server; one is '{invalid[0]}'"
        )


def write_voc_submission(folder: Path, truth: Annotations, detections: DetectionTable, split: str) -> None:
    """Check, then write `comp4_det_<split>_<class>.txt`, one for every class, into `folder` (the server's `Main`).

    Args:
        folder: Where the files go; created if missing.
        truth: The split; its objects are not used.
        detections: Detections.
        split: The name of the split.

    Raises:
        DataError: Anything that the kit would misread; nothing is written.
    """
    check_voc_split(truth, split)
    _check_boxes(truth, detections)
    write_comp4(folder, truth, detections, split)


def check_voc_split(truth: Annotations, split: str) -> None:
    """Refuse names that VOC's kit would misread or its server does not know.

    A split without objects is one for the server and has the detector's classes, which must then be VOC's.

    Raises:
        DataError: Such a name.
    """
    for what, words, pattern in (
        ("class", truth.class_names, r"[/\\]"),
        ("split", [split], r"[/\\]"),
        ("image", _image_ids(truth), r"[/\\\s]"),
    ):
        invalid = [word for word in words if re.search(pattern, word)]
        if invalid:
            raise DataError(
                f"{truth.source}: the {what} '{invalid[0]}' cannot be used in comp4 files (no slashes; image ids"
                " without spaces: choose one year)"
            )
    unknown = [name for name in truth.class_names if name not in VOC_CLASSES]
    if unknown and not len(truth.boxes):
        raise DataError(
            f"{truth.source}: VOC's server does not know the class '{unknown[0]}'{nearest(unknown[0], VOC_CLASSES)};"
            f" it has {listed(VOC_CLASSES, 20)}"
        )


def _image_ids(truth: Annotations) -> list[str]:
    return [truth.image_ids[index] for index in range(len(truth))]


def _check_boxes(truth: Annotations, detections: DetectionTable) -> None:
    """Refuse non-finite numbers, unknown images and classes, and boxes without area or outside their image."""
    check_detections(truth, detections)
    boxes = detections.boxes.astype(np.float64)
    limits = truth.sizes[detections.images][:, [1, 0]]
    outside = (boxes[:, :2] < -MAX_OUTSIDE).any(axis=1) | (boxes[:, 2:] > limits + MAX_OUTSIDE).any(axis=1)
    for what, bad in (
        ("a box without area", (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)),
        ("a box outside its image", outside),
    ):
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            image = truth.image_ids[int(detections.images[row])]
            raise DataError(
                f"{int(bad.sum())} of {len(detections)} detections have {what}, the first in image {image}:"
                f" {boxes[row].round(2).tolist()}"
            )
