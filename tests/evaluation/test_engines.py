"""hotcoco's figures and curves against pycocotools' on random data, and which engine is taken where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest

from detres.data.records import Annotations, DetectionTable
from detres.errors import UserError
from detres.evaluation.coco import evaluate_coco
from detres.evaluation.engines import compute_metrics, number_images, select_engine


@pytest.fixture
def random_case(make_truth) -> Callable[..., tuple[Annotations, DetectionTable]]:
    """Objects and detections of a seed, made to hit ties and limits.

    Whole pixels, so that overlaps of exactly .5, .6 .. occur, and crowded pictures, so that recalls of whole hundredths
    do; empty pictures; a class without objects; crowd regions; gappy ids out of order; areas that are not the boxes';
    equal scores, within and between pictures; two zeros; boxes without area or with swapped corners.
    """

    def make(seed: int, most_objects: int, most_detections: int) -> tuple[Annotations, DetectionTable]:
        rng = np.random.default_rng(seed)
        images, classes, side = int(rng.integers(1, 8)), int(rng.integers(1, 4)), (40, 300)[seed % 2]
        rows = []
        for _ in range(images):
            count = int(rng.integers(0, most_objects))
            corners, sides = rng.integers(0, side, (count, 2)), rng.integers(1, side, (count, 2))
            boxes = np.concatenate([corners, corners + sides], axis=1).tolist()
            labels, crowd = rng.integers(0, classes, count).tolist(), rng.random(count) < 0.15
            rows.append(
                [(k, *box, "crowd" if c else "") for k, box, c in zip(labels, boxes, crowd, strict=True)]
            )
        ids = [str(number) for number in rng.permutation(1000)[:images].tolist()]
        truth = make_truth(rows, classes=[f"class {k}" for k in range(classes + 1)], ids=ids)
        if seed % 3 == 0:
            truth = replace(truth, areas=truth.areas * rng.uniform(0.2, 1, len(truth.areas)))
        return truth, detections_of(truth, rng, seed, int(rng.integers(0, most_detections)), side)

    return make


def detections_of(
    truth: Annotations, rng: np.random.Generator, seed: int, count: int, side: int
) -> DetectionTable:
    """Some boxes anywhere, most of them those of an object, moved by up to two pixels or not at all."""
    images, labels = rng.integers(0, len(truth), count), rng.integers(0, len(truth.class_names), count)
    corners, sides = rng.integers(0, side, (count, 2)), rng.integers(int(seed % 5 > 0), side, (count, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    for row, image in enumerate(images.tolist()):
        objects = truth.objects(image)
        if objects.stop > objects.start and rng.random() < 0.6:
            chosen = int(rng.integers(objects.start, objects.stop))
            labels[row] = truth.labels[chosen]
            boxes[row] = truth.boxes[chosen] + rng.integers(-2, 3, 4) * (rng.random() < 0.7)
    if seed % 11 == 3:
        boxes = boxes[:, [2, 3, 0, 1]]
    scores = rng.integers(0, 12, count) / 10 if seed % 4 else rng.normal(size=count)
    if seed % 13 == 2:
        scores = np.where(rng.random(count) < 0.5, -0.0, 0.0)
    return DetectionTable(images, boxes, scores.astype(np.float64), labels)


@pytest.mark.parametrize(
    ("seeds", "most_objects", "most_detections"), [(range(80), 6, 60), (range(80, 86), 40, 1200)]
)
def test_hotcoco_equals_pycocotools(random_case, seeds, most_objects, most_detections):
    """Figures and the whole precision array, of sparse pictures and of ones with over 100 detections of a class."""
    pytest.importorskip("hotcoco", reason="hotcoco is not installed (extra 'fast' or 'test')")
    for seed in seeds:
        truth, table = random_case(seed, most_objects, most_detections)
        ours, theirs = compute_metrics(truth, table, "hotcoco"), compute_metrics(truth, table, "pycocotools")
        np.testing.assert_allclose(ours.figures, theirs.figures, rtol=0, atol=1e-9, err_msg=f"seed {seed}")
        np.testing.assert_allclose(
            ours.precision, theirs.precision, rtol=0, atol=1e-9, err_msg=f"seed {seed}"
        )


def test_results_of_both_engines_are_the_same(random_case):
    """All that `evaluate_coco` returns but the engine's name: figures, classes, counts and reasons."""
    pytest.importorskip("hotcoco", reason="hotcoco is not installed (extra 'fast' or 'test')")
    for seed in range(12):
        truth, table = random_case(seed, 6, 60)
        ours = evaluate_coco(truth, table, engine="hotcoco").to_json()
        theirs = evaluate_coco(truth, table, engine="pycocotools").to_json()
        assert (ours.pop("engine"), theirs.pop("engine")) == ("hotcoco", "pycocotools")
        assert ours.pop("figures") == pytest.approx(theirs.pop("figures"), abs=1e-9)
        classes = theirs.pop("classes")
        for name, figures in ours.pop("classes").items():
            assert figures == pytest.approx(classes[name], abs=1e-9)
        assert ours == theirs


def test_auto_takes_hotcoco_of_a_tested_version(monkeypatch):
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    assert select_engine("auto") == "pycocotools"
    assert select_engine("pycocotools") == "pycocotools"
    with pytest.raises(UserError, match="engine 'hotcoco': hotcoco is not installed; run `pip install"):
        select_engine("hotcoco")
    for tried in ("1.3.0", "1.10.2"):
        versions["hotcoco"] = tried
        assert select_engine("auto") == select_engine("hotcoco") == "hotcoco"
        assert select_engine("pycocotools") == "pycocotools"
    for untested in ("0.4.0", "1.2.9", "2.0.0"):
        versions["hotcoco"] = untested
        assert select_engine("auto") == "pycocotools"
        with pytest.raises(UserError, match=f"hotcoco {untested} is not a tested version"):
            select_engine("hotcoco")


def test_an_unknown_engine_is_refused(make_truth, make_table):
    with pytest.raises(UserError, match="engine 'fast': should be auto, pycocotools or hotcoco"):
        evaluate_coco(make_truth([[]]), make_table([]), engine="fast")  # type: ignore[arg-type]


def test_images_are_taken_in_order_of_their_ids(make_truth):
    assert number_images(make_truth([[], [], []], ids=["10", "9", "100"])).tolist() == [2, 1, 3]
    assert number_images(make_truth([[], [], []], ids=["b", "10", "9"])).tolist() == [3, 1, 2]
