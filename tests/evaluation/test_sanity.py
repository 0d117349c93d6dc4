"""The sanity block on detections that were made wrong in a known way."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detres.data.records import DetectionTable
from detres.errors import DataError
from detres.evaluation.sanity import check_sanity


@pytest.fixture
def truth(make_truth):
    """Twelve pictures of three objects each, classes in turn, away from the corner."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(12):
        corners = rng.integers([150, 60], [300, 250], (3, 2))
        sides = rng.integers([40, 70], [120, 140], (3, 2))
        rows = np.concatenate((corners, corners + sides), axis=1).tolist()
        images.append([(label, *row) for label, row in enumerate(rows)])
    return make_truth(images)


@pytest.fixture
def right(truth) -> DetectionTable:
    """Every object, found exactly."""
    scores = np.linspace(0.2, 0.9, len(truth.labels))
    images = np.repeat(np.arange(len(truth)), np.diff(truth.offsets))
    return DetectionTable(images, truth.boxes.copy(), scores, truth.labels.copy())


def read_as(right: DetectionTable, boxes: np.ndarray) -> DetectionTable:
    return DetectionTable(right.images, boxes.astype(np.float32), right.scores, right.labels)


def findings(truth, table) -> str:
    return "\n".join(check_sanity(truth, table).findings)


def test_nothing_is_wrong_with_right_detections(truth, right):
    report = check_sanity(truth, right)
    assert report.findings == ()
    assert report.overlap_any == report.overlap_class == report.recall == 1.0
    assert report.images == {"all": 12, "with_objects": 12, "with_detections": 12, "missed": 0}
    assert report.classes == {"all": 3, "with_objects": 3, "with_detections": 3, "with_both": 3}
    assert report.detections == {"all": 36, "mean": 3.0, "most": 3}
    assert report.scores == pytest.approx((0.2, 0.55, 0.9))


def test_xywh_read_as_xyxy(truth, right):
    boxes = right.boxes.copy()
    boxes[:, 2:] -= boxes[:, :2]
    text = findings(truth, read_as(right, boxes))
    assert "x2 <= x1 or y2 <= y1: xywh read as xyxy?" in text
    assert "the boxes look like xywh read as xyxy: in that format 100.0 % would match an object" in text


def test_xyxy_read_as_xywh(truth, right):
    boxes = right.boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    text = findings(truth, read_as(right, boxes))
    assert "the boxes look like xyxy read as xywh: in that format 100.0 %" in text
    assert "extend beyond their image" in text


def test_centers_and_exchanged_axes(truth, right):
    x1, y1, x2, y2 = right.boxes.T
    centers = np.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), axis=1)
    assert "center x, center y, w, h" in findings(truth, read_as(right, centers))
    assert "x and y look exchanged" in findings(truth, read_as(right, np.stack((y1, x1, y2, x2), axis=1)))


def test_normalized_boxes(truth, right):
    text = findings(truth, read_as(right, right.boxes / 500))
    assert "all coordinates lie within 0..2" in text
    assert "the boxes look normalized to 0..1: in that format 100.0 %" in text


def test_pixels_of_a_resized_image(truth, right):
    assert "extend beyond their image: pixels of a resized image?" in findings(
        truth, read_as(right, right.boxes * 2)
    )


def test_shifted_labels(truth, right):
    table = DetectionTable(right.images, right.boxes, right.scores, right.labels - 1)
    keep = table.labels >= 0
    table = DetectionTable(table.images[keep], table.boxes[keep], table.scores[keep], table.labels[keep])
    text = findings(truth, table)
    assert "100.0 % of the detections match an object but only 4.2 % one of their own class" in text
    assert "Labels look shifted by +1" in text
    assert "1 classes with objects have no detections: cow" in text


def test_classes_and_images_that_do_not_meet(make_truth, make_table):
    images = [[(0, 0, 0, 50, 50)], [(1, 0, 0, 50, 50)], []]
    report = check_sanity(
        make_truth(images, ids=["a", "b", "c"]),
        make_table([(0, 0, 0.9, 0, 0, 50, 50), (2, 2, 0.8, 0, 0, 9, 9)]),
    )
    text = "\n".join(report.findings)
    assert "1 classes with objects have no detections: dog" in text
    assert "1 classes with detections have no objects: cow" in text
    assert "1 of 2 images with objects have no detections (b)" in text
    assert report.images == {"all": 3, "with_objects": 2, "with_detections": 2, "missed": 1}


def test_odd_scores_and_too_many_detections(make_truth, make_table):
    truth = make_truth([[(0, 0, 0, 50, 50)]], classes=["a"])
    text = findings(truth, make_table([(0, 0, 3.0, 0, 0, 50, 50)] * 101))
    assert "scores lie outside 0..1" in text
    assert "all scores are 3" in text
    assert "COCO counts the 100 best detections per class and image; 1 times there are more" in text


def test_empty_sides(make_truth, make_table):
    nothing = check_sanity(make_truth([[(0, 0, 0, 5, 5)]]), make_table([]))
    assert "there are no detections" in nothing.findings[0]
    assert nothing.overlap_any is nothing.scores is None
    assert "100.0 %" not in nothing.text()
    empty = check_sanity(make_truth([]), make_table([]))
    assert "the ground truth has no objects" in empty.findings[0]
    assert check_sanity(make_truth([[]]), make_table([(0, 0, 0.5, 0, 0, 9, 9)])).overlap_any == 0.0


def test_text_and_json_hold_the_same(truth, right):
    report = check_sanity(truth, right)
    text = report.text()
    assert text.startswith("Sanity\n  images      12: 12 with objects")
    assert "100.0 % of the detections match an object at IoU 0.5, 100.0 % one of their own class" in text
    assert json.loads(json.dumps(report.to_json()))["images"]["with_objects"] == 12


def test_refuses_what_no_measure_takes(truth, right):
    with pytest.raises(DataError, match="not finite"):
        check_sanity(truth, read_as(right, right.boxes * np.nan))
