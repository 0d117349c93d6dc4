"""eval-switches end to end on drawn pictures: each row is the test with its switches, differences are paired."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_detector

import detres
from detres.api import Detector, detect_split
from detres.cli import eval_switches
from detres.data.drawing import write_image
from detres.data.shape_forms import CLASS_NAMES
from detres.data.shapes import shapes_annotations
from detres.errors import UserError
from detres.evaluation.bootstrap import bootstrap_coco, bootstrap_difference
from detres.evaluation.results_files import read_results
from detres.evaluation.voc import evaluate_voc
from detres.report.switches import ROWS, measure_rows, paper_scales

DATA = ["--data", "shapes:3", "--split", "val", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Its own recipe switches refinement on: the plain row must switch it off."""
    folder = tmp_path_factory.mktemp("weights")
    return write_detector(folder / "w.safetensors", test={"proposals": 30, "refine": True})


@pytest.fixture(scope="module")
def measured(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    saved = ["--json", str(folder / "rows.json"), "--save-results", str(folder / "rows")]
    sets = ["--set", "test.min_score=0.01", "--scales", "64,96,128", "--bootstrap", "50"]
    eval_switches.main(["--weights", str(weights), *DATA, *sets, *saved])
    return folder


def results_of(folder, name):
    return read_results(folder / "rows" / f"{name}.json", shapes_annotations("val", 3), "val")


def test_each_row_is_the_test_with_its_switches(weights, measured):
    detector, truth = detres.load(weights, device="cpu"), shapes_annotations("val", 3)
    assert isinstance(detector, Detector)
    written = json.loads((measured / "rows.json").read_text())
    assert list(written["rows"]) == [row.name for row in ROWS]
    every = {"refine": False, "vote": False, "flip": False, "scales": None, "min_score": 0.01}
    on = {"refine": True, "vote": True, "flip": True, "scales": (64, 96, 128)}
    for row in ROWS:
        options = {**every, **{name: on[name] for name in row.switches}}
        expected, _ = detect_split(detector, truth, options=options, quiet=True)
        found = results_of(measured, row.name)
        assert found.scores.tolist() == expected.scores.tolist(), row.name
        of_row = written["rows"][row.name]
        assert sorted(of_row["test"]) == sorted(row.switches)
        assert of_row["figures"]["mAP"] == pytest.approx(evaluate_voc(truth, expected).figures["mAP_area"])


def test_intervals_are_the_bootstraps_own(measured):
    truth, rows = shapes_annotations("val", 3), json.loads((measured / "rows.json").read_text())["rows"]
    for row in ROWS:
        found, written = results_of(measured, row.name), rows[row.name]
        for name, interval in bootstrap_coco(truth, found, resamples=50).items():
            assert written["intervals"][name] == pytest.approx(
                interval, abs=1e-6
            )  # boxes went through the file's xywh
        if row.before is None:
            assert (written["less_before"], written["less_plain"]) == ({}, {})
            continue
        for key, other in (("less_before", row.before), ("less_plain", "plain")):
            if key == "less_plain" and row.before == "plain":
                assert written[key] == {}
                continue
            difference = bootstrap_difference(truth, found, results_of(measured, other), resamples=50)
            assert written[key] == {name: pytest.approx(pair, abs=1e-6) for name, pair in difference.items()}


def test_multiply_adds_say_what_runs_again(measured):
    """Voting costs nothing; refinement the regions once more; mirror images double the trunk and more."""
    rows = json.loads((measured / "rows.json").read_text())["rows"]
    cost = {name: row["multiply_adds_per_image"] for name, row in rows.items()}
    assert cost["vote"] == cost["plain"] > 0
    assert cost["refine_vote"] == cost["refine"]
    assert cost["plain"] < cost["refine"] < 2 * cost["plain"]
    assert cost["flip"] > 2 * cost["plain"]
    assert cost["plain"] < cost["scales"] < cost["refine_vote_scales"] < cost["all"]


def test_against_another_run_and_some_rows(weights, measured, capsys):
    """Its own results are no different; the row before may be missing."""
    against = ["--against", str(measured / "rows" / "plain.json"), "--json", str(measured / "some.json")]
    sets = ["--set", "test.min_score=0.01", "--rows", "plain,all", "--scales", "96,128", "--bootstrap", "20"]
    eval_switches.main(["--weights", str(weights), *DATA, *sets, *against])
    rows = json.loads((measured / "some.json").read_text())["rows"]
    assert list(rows) == ["plain", "all"]
    assert rows["plain"]["less_before"]["AP"] == pytest.approx((0, 0), abs=1e-6)
    assert rows["all"]["less_before"] == {}
    assert len(rows["all"]["less_plain"]["AP50"]) == 2
    printed = capsys.readouterr().out
    assert "--against" in printed
    assert "3 pictures" in printed


def test_without_resamples_there_are_no_intervals(weights, tmp_path, capsys):
    options = ["--rows", "plain", "--bootstrap", "0", "--json", str(tmp_path / "rows.json")]
    eval_switches.main(["--weights", str(weights), *DATA, *options])
    assert json.loads((tmp_path / "rows.json").read_text())["rows"]["plain"]["intervals"] == {}
    assert "Differences" not in capsys.readouterr().out


def test_what_is_measured_is_kept_when_a_later_row_is_stopped(weights, tmp_path, monkeypatch):
    def stopped(detector, truth, *, options, quiet):
        if options["vote"]:
            raise KeyboardInterrupt
        return detect_split(detector, truth, options=options, quiet=quiet)

    monkeypatch.setattr("detres.report.switches.detect_split", stopped)
    options = ["--rows", "plain,vote", "--bootstrap", "0", "--json", str(tmp_path / "rows.json")]
    with pytest.raises(KeyboardInterrupt):
        eval_switches.main(["--weights", str(weights), *DATA, *options])
    assert list(json.loads((tmp_path / "rows.json").read_text())["rows"]) == ["plain"]


def test_no_scales_are_refused(weights):
    detector, truth = detres.load(weights, device="cpu"), shapes_annotations("val", 1)
    assert isinstance(detector, Detector)
    with pytest.raises(UserError, match=r"scales.*\[\] should be shorter sides in rising order"):
        next(measure_rows(detector, truth, ROWS, scales=()))


def test_the_papers_scales():
    assert paper_scales(600) == (200, 400, 600, 800, 1000)
    assert paper_scales(480) == (160, 320, 480, 640, 800)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "plain,al"], r"no row 'al' \(did you mean 'all'\?\); they are plain, vote"),
        (["--scales", "400,x"], "--scales 400,x: should be shorter sides in rising order"),
        (["--scales", "600,400"], r"scales.*\[600, 400\] should be shorter sides in rising order"),
        (["--set", "test.refine=true"], "test.refine: the rows switch it on and off themselves"),
        (["--set", "test.nmss=0.5"], "unknown test option 'nmss'"),
        (["--bootstrap", "-1"], "--bootstrap -1: should be a number of resamples"),
        (["--bootstrap", "0", "--against", "a.json"], "say how many with --bootstrap"),
        (["--against", "missing.json"], "missing.json"),
        (["--json", "rows"], r"rows cannot be written: \S*rows is in its place"),
        (["--save-results", "file"], r"plain.json cannot be written: \S*file is in its place"),
    ],
)
def test_bad_input_is_told_before_anything_is_tested(weights, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Path("rows").mkdir()
    Path("file").touch()
    monkeypatch.setattr("detres.report.switches.detect_split", lambda *_, **__: pytest.fail("it is tested"))
    with pytest.raises(UserError, match=message):
        eval_switches.main(["--weights", str(weights), *DATA, *options])


def test_pictures_without_objects_are_refused(weights, tmp_path):
    write_image(tmp_path / "test2015" / "1.jpg", np.zeros((80, 120, 3), np.uint8))
    info = tmp_path / "annotations" / "image_info_test-dev2015.json"
    info.parent.mkdir()
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASS_NAMES)]
    image = {"id": 1, "file_name": "1.jpg", "height": 80, "width": 120}
    info.write_text(json.dumps({"images": [image], "categories": categories}))
    with pytest.raises(UserError, match="no objects are annotated, so that no row has a figure"):
        eval_switches.main(
            ["--weights", str(weights), "--data", str(tmp_path), "--split", "test-dev2015", "--device", "cpu"]
        )
