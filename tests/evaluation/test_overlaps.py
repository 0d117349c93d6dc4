"""Overlapping pairs against a loop over all of them."""

from __future__ import annotations

import numpy as np
import pytest

from detres.evaluation.overlaps import overlapping_pairs


def slow_iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / union)


def random_case(seed, make_truth, make_table):
    rng = np.random.default_rng(seed)

    def box():
        x, y, w, h = rng.integers([0, 0, 1, 1], [20, 20, 15, 15]).tolist()
        return x, y, x + w, y + h

    truth = make_truth([[(int(rng.integers(3)), *box()) for _ in range(count)] for count in (3, 0, 5, 2)])
    rows = [(int(rng.integers(4)), int(rng.integers(3)), 0.5, *box()) for _ in range(25)]
    return truth, make_table(rows)


@pytest.mark.parametrize("seed", range(3))
def test_pairs_and_best_equal_the_loop(make_truth, make_table, seed):
    truth, table = random_case(seed, make_truth, make_table)
    expected = {}
    for row in range(len(table)):
        inside = truth.objects(int(table.images[row]))
        for number in range(inside.start, inside.stop):
            iou = slow_iou(table.boxes[row].astype(float), truth.boxes[number].astype(float))
            if iou > 0:
                expected[row, number] = iou
    pairs = overlapping_pairs(truth, table)
    found = zip(pairs.detections.tolist(), pairs.objects.tolist(), pairs.ious.tolist(), strict=True)
    assert [(row, number) for row, number, _ in found] == sorted(expected)
    np.testing.assert_allclose(pairs.ious, [expected[key] for key in sorted(expected)], atol=1e-12)
    best = pairs.best()
    for row, iou in zip(best.detections.tolist(), best.ious.tolist(), strict=True):
        assert iou == pytest.approx(max(value for key, value in expected.items() if key[0] == row))
    assert best.detections.tolist() == sorted({row for row, _ in expected})


def test_of_equal_overlaps_the_first_object_is_best(make_truth, make_table):
    truth = make_truth([[(0, 0, 0, 10, 10), (0, 0, 0, 10, 10)]])
    assert overlapping_pairs(truth, make_table([(0, 0, 0.5, 0, 0, 10, 9)])).best().objects.tolist() == [0]


def test_nothing_meets_nothing(make_truth, make_table):
    for truth in (make_truth([]), make_truth([[], []])):
        pairs = overlapping_pairs(truth, make_table([]))
        assert len(pairs) == len(pairs.best()) == 0
