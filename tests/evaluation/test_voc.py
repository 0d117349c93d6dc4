"""VOC's measure against cases worked by hand and the devkit's algorithm written slowly, in VOC's raw numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detres.data.records import Annotations, DetectionTable
from detres.errors import DataError, UserError
from detres.evaluation.voc import average_precision_11_points, average_precision_area, evaluate_voc

Box = tuple[int, int, int, int]  # VOC's own: 1-based, inclusive
Object = tuple[Box, bool]  # and `difficult`
Detection = tuple[int, float, Box]  # picture, score


def devkit(
    images: list[list[Object]], detections: list[Detection], least: float
) -> tuple[float, float] | None:
    """VOCevaldet of one class, step by step, inclusive pixels; 11-point and area AP, None without objects."""
    wanted = sum(not difficult for objects in images for _, difficult in objects)
    if not wanted:
        return None
    taken = [[False] * len(objects) for objects in images]
    true, false = [], []
    for place in sorted(range(len(detections)), key=lambda i: -detections[i][1]):  # stable
        image, _, (a, b, c, d) = detections[place]
        best, best_iou = -1, -np.inf
        for number, ((e, f, g, h), _) in enumerate(images[image]):
            width = min(c, g) - max(a, e) + 1
            height = min(d, h) - max(b, f) + 1
            if width > 0 and height > 0:
                union = (c - a + 1) * (d - b + 1) + (g - e + 1) * (h - f + 1) - width * height
                if width * height / union > best_iou:
                    best, best_iou = number, width * height / union
        hit = best_iou >= least
        ignored = hit and images[image][best][1]
        first = hit and not ignored and not taken[image][best]
        if first:
            taken[image][best] = True
        true.append(first)
        false.append(not first and not ignored)
    recall = [sum(true[: i + 1]) / wanted for i in range(len(true))]
    precision = [
        sum(true[: i + 1]) / max(1, sum(true[: i + 1]) + sum(false[: i + 1])) for i in range(len(true))
    ]
    eleven = 0.0
    for step in range(11):
        level = step * 0.1 if step <= 5 else 1 - (10 - step) * 0.1  # MATLAB's 0:0.1:1
        eleven += max([p for r, p in zip(recall, precision, strict=True) if r >= level], default=0.0) / 11
    r, p = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(p) - 2, -1, -1):
        p[i] = max(p[i], p[i + 1])
    area = sum((r[i + 1] - r[i]) * p[i + 1] for i in range(len(r) - 1) if r[i + 1] != r[i])
    return eleven, area


def ours(box: Box) -> tuple[int, int, int, int]:
    return box[0] - 1, box[1] - 1, box[2], box[3]


corners = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 8), st.integers(0, 8))
boxes = corners.map(lambda c: (c[0], c[1], c[0] + c[2], c[1] + c[3]))
objects = st.lists(st.lists(st.tuples(boxes, st.booleans()), max_size=4), min_size=1, max_size=4)


@settings(max_examples=300)
@given(objects, st.data(), st.sampled_from([0.3, 0.5, 0.75]))
def test_equals_the_devkit_on_random_boxes(make_truth, make_table, images, data, least):
    image = st.integers(0, len(images) - 1)
    near = [box for objects_ in images for box, _ in objects_]
    shown = st.one_of(boxes, st.sampled_from(near)) if near else boxes
    detections = data.draw(st.lists(st.tuples(image, st.sampled_from([0.1, 0.5, 0.9]), shown), max_size=20))
    truth = make_truth(
        [[(0, *ours(box), "difficult" if hard else "") for box, hard in rows] for rows in images],
        classes=["a"],
    )
    table = make_table([(image, 0, score, *ours(box)) for image, score, box in detections])
    expected = devkit(images, detections, least)
    figures = evaluate_voc(truth, table, least).classes["a"]
    if expected is None:
        assert figures["AP"] is figures["AP_11point"] is figures["AP_area"] is None
    else:
        assert figures["AP_11point"] == pytest.approx(expected[0], abs=1e-12)
        assert figures["AP_area"] == figures["AP"] == pytest.approx(expected[1], abs=1e-12)


def test_three_detections_of_two_objects_by_hand(make_truth, make_table):
    """True, false, true: recalls 1/2, 1/2, 1 at precisions 1, 1/2, 2/3."""
    truth = make_truth([[(0, 0, 0, 10, 10), (0, 50, 50, 60, 60)]], classes=["a"])
    table = make_table(
        [(0, 0, 0.9, 0, 0, 10, 10), (0, 0, 0.8, 100, 100, 110, 110), (0, 0, 0.7, 50, 50, 60, 60)]
    )
    result = evaluate_voc(truth, table)
    assert result.figures["mAP_area"] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert result.figures["mAP_11point"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert result.figures["mAP"] == result.figures["mAP_area"]
    assert result.classes["a"]["recall"] == 1.0


def test_inclusive_pixels_need_no_one_here(make_truth, make_table):
    """VOC's (1, 1, 10, 10) and (1, 1, 10, 5) overlap by 50 of 100 pixels: exactly 0.5, a match."""
    truth = make_truth([[(0, *ours((1, 1, 10, 10)))]], classes=["a"])
    assert evaluate_voc(truth, make_table([(0, 0, 1.0, *ours((1, 1, 10, 5)))])).figures["mAP"] == 1.0
    assert evaluate_voc(truth, make_table([(0, 0, 1.0, *ours((1, 1, 10, 4)))])).figures["mAP"] == 0.0


def test_second_detection_of_an_object_is_false(make_truth, make_table):
    truth = make_truth([[(0, 0, 0, 10, 10), (0, 50, 50, 60, 60)]], classes=["a"])
    rows = [(0, 0, 0.9, 0, 0, 10, 10), (0, 0, 0.8, 0, 0, 10, 9), (0, 0, 0.7, 50, 50, 60, 60)]
    assert evaluate_voc(truth, make_table(rows)).figures["mAP_area"] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


def test_a_detection_is_matched_to_its_best_object_only(make_truth, make_table):
    """The second overlaps both objects, the taken one more: false, though the other is free."""
    truth = make_truth([[(0, 0, 0, 10, 10), (0, 0, 3, 10, 13)]], classes=["a"])
    rows = [(0, 0, 0.9, 0, 0, 10, 10), (0, 0, 0.8, 0, 1, 10, 11)]
    figures = evaluate_voc(truth, make_table(rows)).classes["a"]
    assert figures["recall"] == 0.5
    assert figures["AP"] == 0.5


def test_detections_of_difficult_objects_count_neither_way(make_truth, make_table):
    truth = make_truth([[(0, 0, 0, 10, 10, "difficult"), (0, 50, 50, 60, 60)]], classes=["a"])
    rows = [(0, 0, 0.9, 0, 0, 10, 10), (0, 0, 0.8, 0, 0, 10, 10), (0, 0, 0.7, 50, 50, 60, 60)]
    result = evaluate_voc(truth, make_table(rows))
    assert result.figures == {"mAP": 1.0, "mAP_11point": pytest.approx(1.0), "mAP_area": 1.0}
    assert (result.classes["a"]["objects"], result.classes["a"]["difficult"]) == (1, 1)


def test_equal_scores_keep_the_order_of_detections(make_truth, make_table):
    truth = make_truth([[(0, 0, 0, 10, 10)]], classes=["a"])
    right, wrong = (0, 0, 0.5, 0, 0, 10, 10), (0, 0, 0.5, 90, 90, 99, 99)
    assert evaluate_voc(truth, make_table([right, wrong])).figures["mAP"] == 1.0
    assert evaluate_voc(truth, make_table([wrong, right])).figures["mAP"] == 0.5


def test_classes_and_images_do_not_mix(make_truth, make_table):
    truth = make_truth([[(0, 0, 0, 10, 10)], [(1, 0, 0, 10, 10)]])
    rows = [(1, 0, 0.9, 0, 0, 10, 10), (0, 1, 0.9, 0, 0, 10, 10)]
    result = evaluate_voc(truth, make_table(rows))
    assert result.figures["mAP"] == 0.0
    assert "no class has a true detection" in result.reasons["mAP"]
    assert "below 0.5" in result.class_reasons["cat"]


def test_class_without_objects_is_left_out_of_the_mean_with_the_reason(make_truth, make_table):
    truth = make_truth([[(0, 0, 0, 10, 10), (1, 0, 0, 5, 5, "difficult")]])
    result = evaluate_voc(truth, make_table([(0, 0, 0.9, 0, 0, 10, 10), (0, 2, 0.9, 0, 0, 10, 10)]))
    assert result.figures["mAP"] == 1.0
    assert result.classes["dog"]["AP"] is result.classes["cow"]["AP"] is None
    assert result.class_reasons["dog"].startswith("only difficult objects")
    assert result.class_reasons["cow"].startswith("no objects")


def test_nothing_found_and_nothing_to_find_say_why(make_truth, make_table):
    objects_ = evaluate_voc(make_truth([[(0, 0, 0, 10, 10)]]), make_table([]))
    assert objects_.figures["mAP"] == 0.0
    assert objects_.reasons["mAP"] == "there are no detections"
    for nothing in (make_truth([[], []]), make_truth([])):
        result = evaluate_voc(nothing, make_table([]))
        assert result.figures["mAP"] is None
        assert "no class has objects" in result.reasons["mAP"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_scores_and_boxes_that_are_not_finite(make_truth, make_table, bad):
    truth = make_truth([[(0, 0, 0, 10, 10)]], ids=["kitchen"])
    with pytest.raises(
        DataError, match=r"1 of 2 detections have a score that is not finite.* of image kitchen"
    ):
        evaluate_voc(truth, make_table([(0, 0, 0.5, 0, 0, 1, 1), (0, 0, bad, 0, 0, 1, 1)]))
    with pytest.raises(DataError, match="a coordinate that is not finite"):
        evaluate_voc(truth, make_table([(0, 0, 0.5, 0, bad, 1, 1)]))


def test_refuses_images_labels_and_overlaps_that_do_not_exist(make_truth, make_table):
    truth: Annotations = make_truth([[(0, 0, 0, 10, 10)]])
    table: DetectionTable = make_table([(0, 0, 0.5, 0, 0, 1, 1)])
    with pytest.raises(DataError, match=r"an image index outside 0\.\.0"):
        evaluate_voc(truth, make_table([(1, 0, 0.5, 0, 0, 1, 1)]))
    with pytest.raises(DataError, match=r"a label outside 0\.\.2"):
        evaluate_voc(truth, make_table([(0, 3, 0.5, 0, 0, 1, 1)]))
    with pytest.raises(UserError, match="out of range"):
        evaluate_voc(truth, table, 0.0)


def test_curves_by_hand():
    recall, precision = np.array([0.25, 0.25, 0.5]), np.array([1.0, 0.5, 2 / 3])
    assert average_precision_area(recall, precision) == pytest.approx(0.25 + 0.25 * 2 / 3)
    assert average_precision_11_points(recall, precision) == pytest.approx((3 + 3 * 2 / 3) / 11)
    empty = np.zeros(0)
    assert average_precision_area(empty, empty) == average_precision_11_points(empty, empty) == 0.0
