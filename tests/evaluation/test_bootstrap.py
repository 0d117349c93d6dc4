"""Resampled figures against pycocotools on the resampled pictures themselves."""

from __future__ import annotations

import numpy as np
import pytest

from detres.data.records import Annotations, DetectionTable
from detres.errors import DataError
from detres.evaluation.bootstrap import (
    bootstrap_coco,
    bootstrap_difference,
    match_classes,
    resample_figures,
    sample_image_weights,
)
from detres.evaluation.coco import evaluate_coco

IMAGES = 9


@pytest.fixture
def truth(make_truth):
    """Pictures of up to six objects of three classes, some of them crowds, one picture empty."""
    rng = np.random.default_rng(1)
    images = []
    for number in range(IMAGES):
        rows = []
        for _ in range(int(rng.integers(1, 7)) if number else 0):
            x, y, w, h = rng.integers([0, 0, 10, 10], [300, 300, 150, 150]).tolist()
            flag = "crowd" if rng.random() < 0.1 else ""
            rows.append((int(rng.choice(3, p=[0.6, 0.35, 0.05])), x, y, x + w, y + h, flag))
        images.append(rows)
    return make_truth(images)


def detections_of(truth: Annotations, seed: int, noise: float) -> DetectionTable:
    """Each object twice, moved at random, and as many boxes anywhere; no two scores are equal."""
    rng = np.random.default_rng(seed)
    images = np.repeat(np.arange(len(truth)), np.diff(truth.offsets))
    boxes = np.concatenate([truth.boxes + rng.normal(0, noise, truth.boxes.shape) for _ in range(2)])
    anywhere = rng.permutation(truth.boxes)
    labels = np.concatenate((truth.labels, truth.labels, truth.labels))
    scores = rng.permutation(len(labels)) / len(labels)
    boxes = np.concatenate((boxes, anywhere)).astype(np.float32)
    return DetectionTable(np.concatenate((images,) * 3), boxes, scores, labels)


def drawn(table: DetectionTable, chosen: np.ndarray) -> DetectionTable:
    """Detections of the pictures `chosen`, a picture as often as it was drawn."""
    rows = [np.flatnonzero(table.images == image) for image in chosen]
    images = np.repeat(np.arange(len(chosen)), [len(part) for part in rows])
    keep = np.concatenate(rows)
    return DetectionTable(images, table.boxes[keep], table.scores[keep], table.labels[keep])


def test_every_image_once_is_pycocotools(truth):
    table = detections_of(truth, 0, 8)
    figures = resample_figures(match_classes(truth, table), np.ones((1, len(truth)), np.int64))
    expected = evaluate_coco(truth, table).figures
    for name in ("AP", "AP50", "AP75"):
        assert figures[name][0] == pytest.approx(expected[name], abs=1e-12)


def test_resamples_equal_pycocotools_on_the_drawn_images(truth):
    table = detections_of(truth, 2, 8)
    weights = sample_image_weights(len(truth), 8, seed=5)
    figures = resample_figures(match_classes(truth, table), weights)
    for number, row in enumerate(weights):
        chosen = np.repeat(np.arange(len(truth)), row)
        expected = evaluate_coco(truth.select(chosen.tolist()), drawn(table, chosen)).figures
        for name in ("AP", "AP50", "AP75"):
            assert figures[name][number] == pytest.approx(expected[name], abs=1e-9), (number, name)


def test_interval_holds_the_figure_and_narrows_with_more_images(truth):
    table = detections_of(truth, 0, 8)
    narrow_truth = truth.select([*range(len(truth))] * 8)
    narrow = drawn(table, np.tile(np.arange(len(truth)), 8))
    lower, upper = bootstrap_coco(truth, table, resamples=200)["AP50"]
    assert lower <= (evaluate_coco(truth, table).figures["AP50"] or 0) <= upper
    less, more = bootstrap_coco(narrow_truth, narrow, resamples=200)["AP50"]
    assert more - less < 0.6 * (upper - lower)


def test_the_same_seed_gives_the_same_intervals(truth):
    table = detections_of(truth, 0, 8)
    first = bootstrap_coco(truth, table, resamples=50, seed=3)
    assert first == bootstrap_coco(truth, table, resamples=50, seed=3)
    assert first != bootstrap_coco(truth, table, resamples=50, seed=4)


def test_chunks_do_not_change_the_figures(truth, monkeypatch):
    matches = match_classes(truth, detections_of(truth, 0, 8))
    weights = sample_image_weights(len(truth), 30, seed=0)
    whole = resample_figures(matches, weights)
    monkeypatch.setattr("detres.evaluation.bootstrap.CELLS_AT_ONCE", 100)
    for name, values in resample_figures(matches, weights).items():
        np.testing.assert_array_equal(values, whole[name])


def test_difference_is_paired(truth):
    """A detector has no difference from itself, a clearly better one has one that excludes 0."""
    good, bad = detections_of(truth, 0, 3), detections_of(truth, 0, 40)
    assert bootstrap_difference(truth, good, good, resamples=50)["AP"] == (0.0, 0.0)
    assert bootstrap_difference(truth, good, bad, resamples=200)["AP"][0] > 0
    assert bootstrap_difference(truth, bad, good, resamples=200)["AP"][1] < 0


def test_multiplicities_are_draws_with_replacement():
    weights = sample_image_weights(7, 100, seed=0)
    assert weights.shape == (100, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert sample_image_weights(0, 3, seed=0).shape == (3, 0)


def test_empty_sides(make_truth, make_table):
    nothing = bootstrap_coco(make_truth([[(0, 0, 0, 50, 50)]] * 3), make_table([]), resamples=20)
    assert nothing == dict.fromkeys(("AP", "AP50", "AP75"), (0.0, 0.0))
    for truth in (make_truth([]), make_truth([[], []])):
        assert bootstrap_coco(truth, make_table([]), resamples=20) == {}


def test_refuses_what_no_measure_takes(make_truth, make_table):
    with pytest.raises(DataError, match="not finite"):
        bootstrap_coco(make_truth([[(0, 0, 0, 5, 5)]]), make_table([(0, 0, np.nan, 0, 0, 5, 5)]))
