"""eval-tta end to end on drawn pictures: each row is the test with its switches; what is kept and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_detector

import detres
from detres.api import Detector
from detres.cli import eval_tta
from detres.data.drawing import write_image
from detres.data.shape_forms import SHAPE_CLASSES
from detres.data.shapes import shapes_annotations
from detres.errors import UserError
from detres.evaluation.results_files import read_results
from detres.evaluation.voc import evaluate_voc
from detres.report.eval_tta import ROWS

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
    sets = ["--set", "test.score_thresh=0.01", "--scales", "64,96,128", "--bootstrap", "50"]
    eval_tta.main(["--weights", str(weights), *DATA, *sets, *saved])
    return folder


def results_of(folder, name):
    return read_results(folder / "rows" / f"{name}.json", shapes_annotations("val", 3), "val")


def test_each_row_is_the_test_with_its_switches(weights, measured):
    detector, truth = detres.load(weights, device="cpu"), shapes_annotations("val", 3)
    assert isinstance(detector, Detector)
    written = json.loads((measured / "rows.json").read_text())
    assert (written["complete"], written["resamples"], written["against"]) == (True, 50, None)
    assert list(written["rows"]) == [row.name for row in ROWS]
    every = {"refine": False, "box_voting": False, "flip": False, "scales": None, "score_thresh": 0.01}
    on = {"refine": True, "box_voting": True, "flip": True, "scales": (64, 96, 128)}
    for row in ROWS:
        options = {**every, **{name: on[name] for name in row.switches}}
        expected, _ = detector.detect_split(truth, options=options, quiet=True)
        found = results_of(measured, row.name)
        assert found.scores.tolist() == expected.scores.tolist(), row.name
        assert found.boxes == pytest.approx(expected.boxes, abs=1e-3), row.name
        written_row = written["rows"][row.name]
        assert written_row["test"] == json.loads(json.dumps(options))
        assert written_row["figures"]["mAP"] == pytest.approx(
            evaluate_voc(truth, expected).figures["mAP_area"]
        )
    plain, voted = results_of(measured, "plain"), results_of(measured, "vote")
    assert np.abs(plain.boxes - voted.boxes).max() > 1, "voting moves boxes alone"


def test_multiply_adds_say_what_runs_again(measured):
    """Voting costs nothing; refinement the regions once more; mirror images double the trunk and more."""
    rows = json.loads((measured / "rows.json").read_text())["rows"]
    cost = {name: row["multiply_adds_per_image"] for name, row in rows.items()}
    assert cost["vote"] == cost["plain"] > 0
    assert cost["refine_vote"] == cost["refine"]
    assert cost["plain"] < cost["refine"] < 2 * cost["plain"]
    assert cost["flip"] > 2 * cost["plain"]
    assert cost["plain"] < cost["scales"] < cost["refine_vote_scales"] < cost["all_four"]


def test_help_names_the_rows(capsys):
    with pytest.raises(SystemExit):
        eval_tta.main(["--help"])
    assert ", ".join(row.name for row in ROWS) in " ".join(capsys.readouterr().out.split())


def test_against_another_run_and_some_rows(weights, measured, tmp_path, capsys):
    """Its own results are no different; the row before may be missing."""
    json_path = tmp_path / "some.json"
    against = ["--against", str(measured / "rows" / "plain.json"), "--json", str(json_path)]
    sets = ["--set", "test.score_thresh=0.01", "--rows", "plain,all_four", "--scales", "96,128"]
    eval_tta.main(["--weights", str(weights), *DATA, *sets, "--bootstrap", "20", *against])
    written = json.loads(json_path.read_text())
    rows = written["rows"]
    assert list(rows) == ["plain", "all_four"]
    assert written["against"] == str(measured / "rows" / "plain.json")
    assert rows["plain"]["differences"]["against"]["AP"] == pytest.approx((0, 0), abs=1e-6)
    assert list(rows["all_four"]["differences"]) == ["plain"]
    printed = capsys.readouterr().out
    assert "--against" in printed
    assert "3 images" in printed


def test_an_ensemble(weights, tmp_path):
    other = write_detector(tmp_path / "other.safetensors", seed=1)
    options = ["--rows", "vote", "--bootstrap", "0", "--save-results", str(tmp_path / "rows")]
    eval_tta.main(["--weights", str(weights), str(other), *DATA, *options])
    both = detres.load([weights, other], device="cpu")
    assert isinstance(both, Detector)
    switches = {"refine": False, "box_voting": True}
    expected, _ = both.detect_split(shapes_annotations("val", 3), options=switches, quiet=True)
    assert results_of(tmp_path, "vote").scores.tolist() == expected.scores.tolist()


def test_without_resamples_there_are_no_intervals(weights, tmp_path, capsys):
    options = ["--rows", "plain", "--bootstrap", "0", "--json", str(tmp_path / "rows.json")]
    eval_tta.main(["--weights", str(weights), *DATA, *options])
    assert json.loads((tmp_path / "rows.json").read_text())["rows"]["plain"]["intervals"] == {}
    assert "Differences" not in capsys.readouterr().out


def test_what_is_measured_is_kept_when_a_later_row_is_stopped(weights, tmp_path, monkeypatch, capsys):
    detect_split = Detector.detect_split

    def stopped(detector, truth, *, options, quiet):
        if options["box_voting"]:
            raise KeyboardInterrupt
        return detect_split(detector, truth, options=options, quiet=quiet)

    monkeypatch.setattr(Detector, "detect_split", stopped)
    options = ["--rows", "plain,vote", "--bootstrap", "0", "--json", str(tmp_path / "rows.json")]
    with pytest.raises(KeyboardInterrupt):
        eval_tta.main(["--weights", str(weights), *DATA, *options])
    written = json.loads((tmp_path / "rows.json").read_text())
    assert (list(written["rows"]), written["complete"]) == (["plain"], False)
    assert "plain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "plain,flap"], r"no row 'flap' \(did you mean 'flip'\?\); they are plain, vote"),
        (
            ["--rows", "vote", "--scales", "400,600"],
            "scales are given but no row has them: add the row scales",
        ),
        (["--rows", "vote", "--against", "a.json"], "compared with another detector: add the row plain"),
        (["--against", "a.json", "--json", "a.json"], "a.json is read by this command"),
        (["--save-results", "new", "--json", "new/vote.json"], r"vote\.json would be written twice"),
        (["--save-results", "new", "--against", "new/flip.json"], r"new/flip\.json is read by this command"),
        (["--against", "b.json"], r"b\.json.*foreign"),
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
    for folder in ("rows", "new"):
        Path(folder).mkdir()
    Path("file").touch()
    foreign = [{"image_id": "foreign", "category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.5}]
    for name, results in (("a.json", []), ("b.json", foreign), ("new/flip.json", [])):
        Path(name).write_text(json.dumps(results))
    monkeypatch.setattr(Detector, "detect_split", lambda *_, **__: pytest.fail("it is tested"))
    with pytest.raises(UserError, match=message):
        eval_tta.main(["--weights", str(weights), *DATA, *options])


def test_images_without_objects_are_refused(weights, tmp_path):
    write_image(tmp_path / "test2015" / "1.jpg", np.zeros((80, 120, 3), np.uint8))
    info = tmp_path / "annotations" / "image_info_test-dev2015.json"
    info.parent.mkdir()
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(SHAPE_CLASSES)]
    image = {"id": 1, "file_name": "1.jpg", "height": 80, "width": 120}
    info.write_text(json.dumps({"images": [image], "categories": categories}))
    with pytest.raises(UserError, match="no objects are annotated, so that no row has a figure"):
        eval_tta.main(
            ["--weights", str(weights), "--data", str(tmp_path), "--split", "test-dev2015", "--device", "cpu"]
        )
