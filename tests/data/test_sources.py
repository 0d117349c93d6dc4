"""From named sources to one data set, and what readers dropped told once: truth is hand-made."""

from __future__ import annotations

import logging

import make_data
import pytest
from tiny_models import write_detector

import detres
from detres.cli import eval_coco
from detres.data.config import Source
from detres.data.records import ReadReport
from detres.data.shapes import shapes_annotations
from detres.data.sources import log_reports, read_sources
from detres.data.writers import write_coco


def test_each_kind_is_one_warning_with_its_count_and_first_places(caplog):
    first, second = ReadReport(), ReadReport()
    for number in range(7):
        first.add("zero-size box", f"annotation {number}", "dropped")
    first.add("duplicate id", "image 3", "kept")
    second.add("duplicate id", "image 4", "kept")
    with caplog.at_level(logging.WARNING, "detres"):
        log_reports([first, ReadReport(), second])
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert caplog.messages == [
        "data: 7 x zero-size box: annotation 0, annotation 1, annotation 2, annotation 3, annotation 4 and 2 more",
        "data: 1 x duplicate id: image 3",
        "data: 1 x duplicate id: image 4",
    ]


def test_a_union_gives_a_report_for_each_source(tmp_path):
    for split in ("train", "val"):
        make_data.coco(tmp_path, split)
    annotations, reports = read_sources([Source(dir=str(tmp_path), split=name) for name in ("train", "val")])
    assert (len(annotations), len(reports)) == (4, 2)


@pytest.mark.parametrize("user", ["evaluate", "eval_coco"])
def test_dropping_is_never_silent(user, tmp_path, caplog):
    """Whoever reads: the Python API and the evaluation tools warn as training does (tests/system/test_bad_data)."""
    scenes = shapes_annotations("val", 2)
    scenes.boxes[0, 2] = scenes.boxes[0, 0]
    write_coco(scenes, tmp_path, "val")
    weights = write_detector(tmp_path / "d.safetensors")
    with caplog.at_level(logging.WARNING, "detres"):
        if user == "evaluate":
            detres.evaluate(detres.load(weights, device="cpu"), tmp_path, split="val")  # type: ignore[arg-type]
        else:
            data = ["--data", str(tmp_path), "--split", "val", "--device", "cpu", "--quiet"]
            eval_coco.main(["--weights", str(weights), *data])
    assert any(message.startswith("data: 1 x zero-size box: ") for message in caplog.messages)
