"""Detections for evaluation servers: COCO's results json and the VOC kit's `comp4` files, checked before writing.

He et al. 2015, Tables 9 to 12: COCO test-dev, VOC 2012 test. A server takes few submissions and says little, so all
that it would refuse, or silently count as nothing, is found here first.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from detres.data.readers.voc import VOC_CLASSES
from detres.data.records import Annotations, DetectionTable
from detres.errors import DataError, UserError, listed, nearest
from detres.evaluation.overlaps import refuse_irregular
from detres.evaluation.results_files import write_coco_results, write_comp4

COCO_NAME = re.compile(r"detections_(?P<split>[a-z]+(?:-[a-z]+)?\d*)_(?P<algorithm>\w[\w.-]*)_results\.json")
WANTED_NAME = (
    "detections_<split>_<algorithm>_results.json, such as detections_test-dev2015_detres_results.json"
)
COUNTED = 100  # detections a picture that COCO's server looks at
BORDER = 1.0  # pixels by which a box may stand out of its picture


def check_coco_name(path: Path, split: str | None) -> None:
    """Refuse a file name that COCO's server does not take, or that names another split.

    Args:
        path: Where the results are to go.
        split: The split asked for (or a part of its name), None where there is only one.

    Raises:
        UserError: With the pattern.
    """
    match = COCO_NAME.fullmatch(path.name)
    if match is None:
        raise UserError(f"{path}: COCO's server wants {WANTED_NAME}")
    if split is not None and split not in match["split"]:
        raise UserError(
            f"{path}: says split '{match['split']}', the detections are of '{split}'; it wants {WANTED_NAME}"
        )


def write_coco_submission(path: Path, truth: Annotations, detections: DetectionTable) -> None:
    """Check, then write a COCO results json with the data's own ids.

    Args:
        path: See `check_coco_name`.
        truth: The split; its objects are not looked at.
        detections: Detections.

    Raises:
        DataError: Something that the server would refuse; nothing is written.
    """
    check_coco_split(truth)
    _refuse_unfit(truth, detections)
    largest = int(np.bincount(detections.images, minlength=1).max())
    if largest > COUNTED:
        raise DataError(
            f"{largest} detections of one picture, COCO's server counts the best {COUNTED}:"
            f" set test.detections_per_img={COUNTED}"
        )
    write_coco_results(path, truth, detections)


def check_coco_limit(detections_per_img: int | None) -> None:
    """Refuse, before the test, a limit above what COCO's server counts; None, of results that are there, is none.

    Raises:
        DataError: Pictures may get more detections.
    """
    if detections_per_img is not None and detections_per_img > COUNTED:
        raise DataError(
            f"test.detections_per_img={detections_per_img}: COCO's server counts the best {COUNTED} of a picture:"
            f" set test.detections_per_img={COUNTED}"
        )


def check_coco_split(truth: Annotations) -> None:
    """Refuse a split whose ids COCO's server cannot read; it needs no detections.

    Raises:
        DataError: No category ids, or ids of pictures that are no numbers.
    """
    if truth.category_ids is None:
        raise DataError(
            f"{truth.source}: has no category ids, which COCO's results need; choose a data set in COCO's form"
        )
    strange = [text for text in _image_ids(truth) if not text.isdecimal()]
    if strange:
        raise DataError(
            f"{truth.source}: image ids must be whole numbers for COCO's server; one is '{strange[0]}'"
        )


def write_voc_submission(folder: Path, truth: Annotations, detections: DetectionTable, split: str) -> None:
    """Check, then write `comp4_det_<split>_<class>.txt`, one for every class, into `folder` (the server's `Main`).

    Args:
        folder: Where the files go; made where missing.
        truth: The split; its objects are not looked at.
        detections: Detections.
        split: The name of the split.

    Raises:
        DataError: Something that the kit would misread; nothing is written.
    """
    check_voc_split(truth, split)
    _refuse_unfit(truth, detections)
    write_comp4(folder, truth, detections, split)


def check_voc_split(truth: Annotations, split: str) -> None:
    """Refuse names that VOC's kit would misread or its server does not know; it needs no detections.

    The classes of a split without objects are the detector's, and the split is one for the server: they must be VOC's.

    Raises:
        DataError: Such a name.
    """
    for what, words, unfit in (
        ("class", truth.class_names, r"[/\\]"),
        ("split", [split], r"[/\\]"),
        ("picture", _image_ids(truth), r"[/\\\s]"),
    ):
        strange = [word for word in words if re.search(unfit, word)]
        if strange:
            raise DataError(
                f"{truth.source}: the {what} '{strange[0]}' cannot stand in comp4 files (no slashes; of pictures bare"
                " names without spaces: choose one year)"
            )
    foreign = [name for name in truth.class_names if name not in VOC_CLASSES]
    if foreign and not len(truth.boxes):
        raise DataError(
            f"{truth.source}: VOC's server does not know the class '{foreign[0]}'{nearest(foreign[0], VOC_CLASSES)};"
            f" it has {listed(VOC_CLASSES, 20)}"
        )


def _image_ids(truth: Annotations) -> list[str]:
    return [truth.image_ids[index] for index in range(len(truth))]


def _refuse_unfit(truth: Annotations, detections: DetectionTable) -> None:
    """Numbers that are not finite, unknown pictures and classes, boxes without area or outside their picture."""
    refuse_irregular(truth, detections)
    boxes = detections.boxes.astype(np.float64)
    limits = truth.sizes[detections.images][:, [1, 0]]
    outside = (boxes[:, :2] < -BORDER).any(axis=1) | (boxes[:, 2:] > limits + BORDER).any(axis=1)
    for what, bad in (
        ("a box without area", (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)),
        ("a box outside its picture", outside),
    ):
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            image = truth.image_ids[int(detections.images[row])]
            raise DataError(
                f"{int(bad.sum())} of {len(detections)} detections have {what}, the first in picture {image}:"
                f" {boxes[row].round(2).tolist()}"
            )
