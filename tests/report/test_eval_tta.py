"""The rows of Appendix B's switches: paired intervals of detections that are known, scales, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_detector

import detres
from detres.api import Detector
from detres.data.records import DetectionTable
from detres.data.shapes import shapes_annotations
from detres.errors import UserError
from detres.evaluation.bootstrap import bootstrap_coco, bootstrap_difference
from detres.report.eval_tta import ROWS, measure_rows, paper_scales, select_rows

IMAGES = 12


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("weights")
    loaded = detres.load(write_detector(folder / "w.safetensors"), device="cpu")
    assert isinstance(loaded, Detector)
    return loaded


def moved_objects(seed: int, pixels: float) -> DetectionTable:
    """The drawn objects, each moved a little, with scores that have nothing to do with it."""
    truth, generator = shapes_annotations("val", IMAGES), np.random.default_rng(seed)
    images = np.repeat(np.arange(len(truth)), np.diff(truth.offsets))
    boxes = truth.boxes + generator.normal(0, pixels, truth.boxes.shape).astype(np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return DetectionTable(images, boxes, generator.random(len(images)), truth.labels)


def test_intervals_and_differences_are_the_bootstraps_own(detector, monkeypatch):
    truth, against = shapes_annotations("val", IMAGES), moved_objects(99, 6)
    found = {row.name: moved_objects(number, 8 - number) for number, row in enumerate(ROWS)}
    given = iter(found.values())
    monkeypatch.setattr(Detector, "detect_split", lambda *_, **__: (next(given), 0.5))
    results = list(measure_rows(detector, truth, ROWS, resamples=50, against=against, quiet=True))
    assert [result.row for result in results] == list(ROWS)
    for result in results:
        own = found[result.row.name]
        assert result.intervals == bootstrap_coco(truth, own, resamples=50)
        others = {"against": against} if result.row.baseline is None else {}
        others |= {name: found[name] for name in (result.row.baseline, "plain") if name and not others}
        assert list(result.differences) == list(others)
        for name, other in others.items():
            expected = bootstrap_difference(truth, own, other, resamples=50)
            assert result.differences[name] == expected
            assert expected["AP"][0] < expected["AP"][1], "something to tell"


def test_the_papers_scales():
    assert paper_scales(600) == (200, 400, 600, 800, 1000)
    assert paper_scales(480) == (160, 320, 480, 640, 800)


def test_rows_come_in_their_order():
    assert [row.name for row in select_rows(["flip", "plain"])] == ["plain", "flip"]


def test_no_scales_are_refused(detector):
    truth = shapes_annotations("val", 1)
    with pytest.raises(UserError, match=r"scales.*\[\] should be shorter sides in rising order"):
        next(measure_rows(detector, truth, ROWS, scales=()))
