"""ILSVRC's detection measure: cases worked by hand, and the kit's loop written slowly, inclusive pixels and all."""

from __future__ import annotations

import numpy as np
import pytest

from detres.data.records import Annotations, DetectionTable, Strings
from detres.errors import DataError
from detres.evaluation.det import evaluate_det, overlap_thresholds
from detres.evaluation.voc import evaluate_voc


def truth_of(
    objects: list[tuple[int, int, tuple[float, float, float, float]]], images: int, classes: int
) -> Annotations:
    """(picture, label, box) each."""
    objects = sorted(objects, key=lambda entry: entry[0])
    boxes = np.array([box for _, _, box in objects], dtype=np.float32).reshape(-1, 4)
    counts = np.bincount([image for image, _, _ in objects], minlength=images)
    return Annotations(
        paths=Strings([f"{index}.JPEG" for index in range(images)]),
        image_ids=Strings([str(index) for index in range(images)]),
        sizes=np.full((images, 2), 500),
        upright=np.ones(images, bool),
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        boxes=boxes,
        labels=np.array([label for _, label, _ in objects], dtype=np.int64),
        crowd=np.zeros(len(boxes), bool),
        difficult=np.zeros(len(boxes), bool),
        areas=np.ones(len(boxes)),
        class_names=tuple(f"class {label}" for label in range(classes)),
    )


def found_of(rows: list[tuple[int, int, float, tuple[float, float, float, float]]]) -> DetectionTable:
    """(picture, label, score, box) each."""
    return DetectionTable(
        images=np.array([row[0] for row in rows], dtype=np.int64),
        boxes=np.array([row[3] for row in rows], dtype=np.float32).reshape(-1, 4),
        scores=np.array([row[2] for row in rows], dtype=np.float64),
        labels=np.array([row[1] for row in rows], dtype=np.int64),
    )


def test_thresholds_by_hand():
    """10 x 10: 100 / 400; 25 x 25: 625 / 1225; 40 x 10: 400 / 1000; 100 x 100: 10000 / 12100, so 0.5."""
    boxes = np.array([[0, 0, 10, 10], [5, 5, 30, 30], [0, 0, 40, 10], [0, 0, 100, 100]])
    assert overlap_thresholds(boxes) == pytest.approx([0.25, 0.5, 0.4, 0.5])
    assert overlap_thresholds(np.array([[0, 0, 24, 24]])) == pytest.approx([576 / 34**2])


def test_a_small_object_needs_less():
    """The kit's own example: a window of 20 x 20 around an object of 10 x 10 (IoU 0.25) is true; not so for VOC."""
    truth = truth_of([(0, 0, (5, 5, 15, 15))], 1, 1)
    found = found_of([(0, 0, 0.9, (0, 0, 20, 20))])
    assert evaluate_det(truth, found).figures["mAP"] == 1.0
    assert evaluate_voc(truth, found).figures["mAP"] == 0.0
    assert evaluate_det(truth, found_of([(0, 0, 0.9, (0, 0, 20, 21))])).figures["mAP"] == 0.0


def test_the_next_object_where_the_best_is_taken():
    """Both detections overlap object A most; the second takes B, which VOC's measure would call false."""
    truth = truth_of([(0, 0, (0, 0, 100, 100)), (0, 0, (40, 0, 140, 100))], 1, 1)
    found = found_of([(0, 0, 0.9, (0, 0, 100, 100)), (0, 0, 0.8, (15, 0, 115, 100))])
    assert evaluate_det(truth, found).classes["class 0"]["recall"] == 1.0
    assert evaluate_voc(truth, found).classes["class 0"]["recall"] == 0.5


def test_a_second_detection_of_an_object_is_false():
    """True, false, true: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: AP = 1/2 * 1 + 1/2 * 2/3."""
    truth = truth_of([(0, 0, (0, 0, 100, 100)), (1, 0, (0, 0, 50, 50))], 2, 1)
    found = found_of(
        [(0, 0, 0.9, (0, 0, 100, 100)), (0, 0, 0.8, (0, 0, 100, 95)), (1, 0, 0.7, (0, 0, 50, 50))]
    )
    assert evaluate_det(truth, found).figures["mAP"] == pytest.approx(5 / 6)


def test_blacklisted_pairs_count_neither_way():
    truth = truth_of([(0, 0, (0, 0, 100, 100)), (1, 0, (0, 0, 50, 50)), (1, 1, (0, 0, 50, 50))], 2, 2)
    found = found_of([(1, 0, 0.9, (300, 300, 400, 400)), (0, 0, 0.8, (0, 0, 100, 100))])
    plain, without = evaluate_det(truth, found), evaluate_det(truth, found, {(1, 0)})
    assert plain.classes["class 0"] == {"AP": 0.25, "recall": 0.5, "objects": 2, "detections": 2}
    assert without.classes["class 0"] == {"AP": 1.0, "recall": 1.0, "objects": 1, "detections": 1}
    assert without.classes["class 1"]["objects"] == 1
    assert without.left_out == 1


def test_nothing_at_all_has_its_reason():
    truth = truth_of([(0, 0, (0, 0, 100, 100))], 1, 2)
    result = evaluate_det(truth, found_of([]))
    assert result.figures == {"mAP": 0.0, "median_AP": 0.0}
    assert result.reasons["mAP"] == "there are no detections"
    assert result.class_reasons["class 1"] == "no objects in the ground truth: left out of the mean"
    empty = evaluate_det(truth_of([], 1, 1), found_of([(0, 0, 0.5, (0, 0, 9, 9))]))
    assert empty.figures["mAP"] is None
    assert "no class has objects" in empty.reasons["mAP"]
    with pytest.raises(DataError, match="a score that is not finite"):
        evaluate_det(truth, found_of([(0, 0, float("nan"), (0, 0, 9, 9))]))


def kit(truth: Annotations, found: DetectionTable, blacklist: set[tuple[int, int]]) -> dict[str, float]:
    """`eval_detection.m` in loops, on inclusive boxes (a, b, c, d) = (x1, y1, x2 - 1, y2 - 1)."""
    positives = np.zeros(len(truth.class_names))
    judged: list[tuple[float, int, int]] = []  # score, label, 1 true or 0 false
    for image in range(len(truth)):
        rows = truth.objects(image)
        boxes = truth.boxes[rows].astype(np.float64) - [0, 0, 1, 1]
        labels = truth.labels[rows]
        width, height = boxes[:, 2] - boxes[:, 0] + 1, boxes[:, 3] - boxes[:, 1] + 1
        needed = np.minimum(0.5, width * height / ((width + 10) * (height + 10)))
        detected = [False] * len(boxes)
        for label in labels.tolist():
            positives[label] += (image, label) not in blacklist
        mine = np.flatnonzero(found.images == image)
        for row in mine[np.argsort(-found.scores[mine], kind="stable")].tolist():
            label, box = int(found.labels[row]), found.boxes[row].astype(np.float64) - [0, 0, 1, 1]
            if (image, label) in blacklist:
                continue
            best, chosen = -1.0, -1
            for k, other in enumerate(boxes):
                if labels[k] != label or detected[k]:
                    continue
                iw = min(box[2], other[2]) - max(box[0], other[0]) + 1
                ih = min(box[3], other[3]) - max(box[1], other[1]) + 1
                if iw > 0 and ih > 0:
                    union = (box[2] - box[0] + 1) * (box[3] - box[1] + 1) + width[k] * height[k] - iw * ih
                    if iw * ih / union >= needed[k] and iw * ih / union > best:
                        best, chosen = iw * ih / union, k
            if chosen >= 0:
                detected[chosen] = True
            judged.append((float(found.scores[row]), label, int(chosen >= 0)))
    judged.sort(key=lambda entry: -entry[0])
    figures = {}
    for label, name in enumerate(truth.class_names):
        if not positives[label]:
            continue
        true = false = 0
        points = [(0.0, 0.0)]
        for _, other, good in judged:
            if other == label:
                true, false = true + good, false + 1 - good
                points.append((true / positives[label], true / (true + false)))
        recall = [point[0] for point in points] + [1.0]
        best_after = [
            max([precision for _, precision in points[i:]], default=0.0) for i in range(len(points))
        ] + [0.0]
        figures[name] = sum((recall[i] - recall[i - 1]) * best_after[i] for i in range(1, len(recall)))
    return figures


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_kits_loop(seed: int):
    """Random whole-pixel boxes in crowds, many small, scores with ties, some pairs blacklisted."""
    generator = np.random.default_rng(seed)

    def box() -> tuple[float, float, float, float]:
        x, y = generator.integers(0, 60, 2)
        w, h = generator.integers(4, 60, 2)
        return float(x), float(y), float(x + w), float(y + h)

    objects = [(int(generator.integers(6)), int(generator.integers(3)), box()) for _ in range(40)]
    rows = []
    for image, label, (x1, y1, x2, y2) in objects * 2:
        a, b, c, d = generator.integers(-6, 7, 4)
        moved = (x1 + a, y1 + b, max(x2 + c, x1 + a + 1), max(y2 + d, y1 + b + 1))
        rows.append((image, label, float(generator.integers(1, 12)) / 10, moved))
    rows += [(int(generator.integers(6)), int(generator.integers(3)), 0.5, box()) for _ in range(20)]
    truth, found = truth_of(objects, 6, 4), found_of([rows[i] for i in generator.permutation(len(rows))])
    blacklist = {(0, 1), (3, 2)}
    result = evaluate_det(truth, found, blacklist)
    expected = kit(truth, found, blacklist)
    assert {
        name: row["AP"] for name, row in result.classes.items() if row["AP"] is not None
    } == pytest.approx(expected)
    mean = np.mean(list(expected.values()))
    assert result.figures["mAP"] == pytest.approx(mean)
    assert 0.05 < mean < 0.95
