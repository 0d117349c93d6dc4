"""`detres predict` end to end: pictures, folders, globs and videos in; drawn ones and a COCO json out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_detector, write_tiny_classifier

import detres
from detres.cli import predict
from detres.cli.predict import drawing_paths, find_inputs
from detres.data.decoding import read_image
from detres.data.drawing import write_image
from detres.data.shapes import shapes_annotations
from detres.data.videos import open_video, write_video
from detres.errors import DataError, UserError


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_detector(tmp_path_factory.mktemp("weights") / "d.safetensors")


@pytest.fixture
def pictures(tmp_path) -> Path:
    """`in/a.png`, `in/deep/b.jpg` and what is to be passed over."""
    scenes = shapes_annotations("test", 2)
    write_image(tmp_path / "in" / "a.png", read_image(scenes.paths[0]))
    write_image(tmp_path / "in" / "deep" / "b.jpg", read_image(scenes.paths[1]))
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    shutil.copy(tmp_path / "in" / "a.png", tmp_path / "in" / "._a.png")
    return tmp_path / "in"


@pytest.fixture
def video(tmp_path) -> Path:
    scenes = shapes_annotations("test", 3)
    frames = [read_image(scenes.paths[index])[:200, :200] for index in range(3)]
    try:
        write_video(tmp_path / "clip.mp4", iter(frames), 10.0)
    except UserError as error:
        if "encodes no mp4" not in str(error):
            raise
        pytest.skip(f"{error}")
    return tmp_path / "clip.mp4"


def run(weights: Path, *arguments: object) -> None:
    predict.main(["--weights", str(weights), "--device", "cpu", "--quiet", *map(str, arguments)])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder(weights, pictures, tmp_path, capsys):
    """The json is what the detector finds in each picture, the picture's path its id; drawn ones differ from it."""
    run(weights, pictures, "--out", tmp_path / "out")
    assert files(tmp_path / "out") == ["a.jpg", "b.jpg", "detections.json"]
    detector = detres.load(weights, device="cpu")
    paths = [pictures / "a.png", pictures / "deep" / "b.jpg"]
    found = [detector(path, min_score=0.5) for path in paths]  # type: ignore[call-arg]
    expected = [row for one, path in zip(found, paths, strict=True) for row in one.to_coco(str(path))]  # type: ignore[union-attr]
    assert len(expected) > 1
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == expected
    drawn = read_image(tmp_path / "out" / "a.jpg")
    assert drawn.shape == found[0].image.shape  # type: ignore[union-attr]
    assert np.abs(drawn.astype(int) - found[0].draw()).mean() < 12  # type: ignore[union-attr]
    printed = capsys.readouterr().out
    assert f"{len(expected)} detections in 2 inputs" in printed
    assert "a.png" in printed


def test_the_json_alone(weights, pictures, tmp_path):
    run(
        weights, pictures / "a.png", "--no-pictures", "--json", tmp_path / "f.json", "--out", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()
    assert {row["image_id"] for row in json.loads((tmp_path / "f.json").read_text())} == {
        str(pictures / "a.png")
    }


def test_score_and_other_test_options(weights, pictures, tmp_path):
    for name, low in (("usual", None), ("low", "test.min_score=0.1"), ("few", "test.max_detections=1")):
        more = ["--set", low] if low else []
        run(weights, pictures / "a.png", "--no-pictures", "--json", tmp_path / name, *more)
    usual, low, few = (json.loads((tmp_path / name).read_text()) for name in ("usual", "low", "few"))
    assert 0.1 < min(row["score"] for row in low) <= 0.5 < min(row["score"] for row in usual)
    assert few == usual[:1]
    for wrong, message in (
        ("flips=true", "unknown test option 'flips'"),
        ("scales=[]", "shorter sides in rising"),
    ):
        with pytest.raises(UserError, match=message):
            run(weights, pictures / "a.png", "--out", tmp_path / "x", "--set", f"test.{wrong}")
    assert not (tmp_path / "x").exists()


def test_an_ensemble_with_all_switches(weights, pictures, tmp_path):
    """What the tool writes is what `detres.load` of both files finds with the same options."""
    other = write_detector(tmp_path / "o.safetensors", seed=3)
    options = ("refine=true", "vote=true", "flip=true", "scales=[64, 96]")
    sets = [argument for option in options for argument in ("--set", f"test.{option}")]
    target = tmp_path / "f.json"
    both = ["--weights", str(weights), str(other)]
    predict.main(
        [str(pictures / "a.png"), *both, "--device", "cpu", "--no-pictures", "--json", str(target), *sets]
    )
    ensemble = detres.load([weights, other], device="cpu")
    found = ensemble(  # type: ignore[call-arg]
        pictures / "a.png", min_score=0.5, refine=True, vote=True, flip=True, scales=(64, 96)
    )
    assert json.loads(target.read_text()) == found.to_coco(str(pictures / "a.png"))  # type: ignore[union-attr]


def test_inputs(pictures):
    a, b = pictures / "a.png", pictures / "deep" / "b.jpg"
    out = Path("runs")
    assert find_inputs([str(pictures)], out) == [a, b]
    assert find_inputs([str(pictures / "*.png")], out) == [a]
    assert find_inputs([str(pictures / "**" / "*.jpg"), str(a), str(pictures)], out) == [b, a]
    assert find_inputs([str(pictures / "*")], out) == [a, b]  # a picture, a folder, and what is neither
    assert find_inputs([str(pictures / "de*")], out) == [b]
    for nothing in ("none.png", str(pictures / "*.gif"), str(pictures / "nowhere")):
        with pytest.raises(UserError, match="no picture or video there"):
            find_inputs([nothing], out)
    with pytest.raises(UserError, match=r"notes\.txt: neither a picture \(\.bmp, "):
        find_inputs([str(pictures / "notes.txt")], out)


def test_hidden_files_and_folders_are_passed_over(pictures):
    """Wherever the folder itself lies; by name they are inputs."""
    shutil.copytree(pictures, pictures / ".cache" / "x")
    a, b = pictures / "a.png", pictures / "deep" / "b.jpg"
    assert find_inputs([str(pictures)], Path("runs")) == [a, b]
    assert find_inputs([str(pictures / "**" / "*")], Path("runs")) == [a, b]
    hidden = pictures / ".cache" / "x"
    assert find_inputs([str(hidden)], Path("runs")) == [hidden / "a.png", hidden / "deep" / "b.jpg"]
    assert find_inputs([str(pictures / "._a.png")], Path("runs")) == [pictures / "._a.png"]


def test_a_picture_named_twice_is_one_input(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    spelled = ["./a.png", "a.png", "deep/../a.png", str(pictures / "a.png"), ".", "deep"]
    assert find_inputs(spelled, Path("runs")) == [Path("a.png"), Path("deep/b.jpg")]


def test_where_the_json_goes_is_looked_at_before_the_work(weights, pictures, tmp_path, monkeypatch):
    """An earlier file, an input, the weights, a folder: nothing of them is touched, and no picture is looked at."""
    earlier = tmp_path / "f.json"
    earlier.write_text("earlier")
    monkeypatch.setattr("detres.api.load", lambda *_, **__: pytest.fail("the work has begun"))
    bytes_of_weights = weights.read_bytes()
    for target, message in (
        (earlier, r"f\.json already there: --overwrite"),
        (pictures / "a.png", r"a\.png would be written over"),
        (weights, r"d\.safetensors would be written over"),
        (pictures, r"in cannot be written: \S+in is in its place"),
        (earlier / "g.json", r"g\.json cannot be written: \S+f\.json is in its place"),
        (tmp_path / "out" / "a.jpg", "would be written twice"),
    ):
        overwrite = [] if target == earlier else ["--overwrite"]
        with pytest.raises(UserError, match=message):
            run(weights, pictures / "a.png", "--out", tmp_path / "out", "--json", target, *overwrite)
    assert earlier.read_text() == "earlier"
    assert weights.read_bytes() == bytes_of_weights
    assert not (tmp_path / "out").exists()


def test_the_folder_of_the_json_is_made(weights, pictures, tmp_path):
    target = tmp_path / "new" / "deep" / "f.json"
    run(weights, pictures / "a.png", "--no-pictures", "--json", target)
    assert json.loads(target.read_text())
    target.write_text("earlier")
    run(weights, pictures / "a.png", "--no-pictures", "--json", target, "--overwrite")
    assert json.loads(target.read_text())


def test_results_in_a_folder_that_is_searched_are_passed_over(pictures):
    """A second run on `.` with `--out ./found` is not fed its own drawings; asked for by name they are inputs."""
    a, b = pictures / "a.png", pictures / "deep" / "b.jpg"
    assert find_inputs([str(pictures)], pictures / "deep") == [a]
    assert find_inputs([str(pictures / "**" / "*")], pictures / "deep") == [a]
    assert find_inputs([str(b)], pictures / "deep") == [b]
    assert find_inputs([str(pictures / "deep")], pictures / "deep") == [b]
    assert find_inputs([str(pictures / "deep" / "*.jpg")], pictures) == [b]


def test_drawings_of_one_name_are_numbered(tmp_path):
    names = ["x/a.png", "y/A.jpg", "a.mp4", "z/a.jpg", "a_2.png"]
    drawn = drawing_paths([Path(name) for name in names], tmp_path)
    assert [path.name for path in drawn.values()] == ["a.jpg", "A_2.jpg", "a.mp4", "a_3.jpg", "a_2_2.jpg"]


def test_one_bad_picture_among_others(weights, pictures, tmp_path):
    """The others' results are written; the error names the bad one and says where they are."""
    truncated = (pictures / "deep" / "b.jpg").read_bytes()[:2000]
    (pictures / "deep" / "b.jpg").write_bytes(truncated)
    with pytest.raises(
        DataError, match=r"1 of 2 inputs cannot be read: picture \S+b\.jpg is truncated.*other 1"
    ):
        run(weights, pictures, "--out", tmp_path / "out")
    assert files(tmp_path / "out") == ["a.jpg", "detections.json"]
    with pytest.raises(DataError, match="1 of 1 inputs"):
        run(weights, pictures / "deep" / "b.jpg", "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_earlier_results_and_inputs_are_not_overwritten(weights, pictures, tmp_path):
    run(weights, pictures / "a.png", "--out", tmp_path / "out")
    before = (tmp_path / "out" / "detections.json").read_bytes()
    with pytest.raises(UserError, match=r"detections\.json, .*a\.jpg already there: --overwrite"):
        run(weights, pictures / "a.png", "--out", tmp_path / "out", "--set", "test.min_score=0.9")
    assert (tmp_path / "out" / "detections.json").read_bytes() == before
    run(weights, pictures / "a.png", "--out", tmp_path / "out", "--set", "test.min_score=0.9", "--overwrite")
    assert (tmp_path / "out" / "detections.json").read_bytes() != before
    original = (pictures / "deep" / "b.jpg").read_bytes()
    with pytest.raises(UserError, match=r"b\.jpg would be written over"):
        run(weights, pictures / "deep", "--out", pictures / "deep", "--overwrite")
    assert (pictures / "deep" / "b.jpg").read_bytes() == original


def test_a_video(weights, video, tmp_path):
    run(weights, video, "--out", tmp_path / "out")
    assert files(tmp_path / "out") == ["clip.mp4", "detections.json"]
    with open_video(video) as opened:
        frames = list(opened.frames())
    with open_video(tmp_path / "out" / "clip.mp4") as drawn:
        assert (drawn.count, drawn.rate) == (3, 10)
        assert next(drawn.frames()).shape == frames[0].shape
    detector = detres.load(weights, device="cpu")
    rows = [
        row
        for number, frame in enumerate(frames)
        for row in detector(frame, min_score=0.5).to_coco(f"{video}#{number}")  # type: ignore
    ]
    assert rows
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == rows


def test_a_video_without_drawing(weights, video, tmp_path):
    run(weights, video, "--out", tmp_path / "out", "--no-pictures")
    assert files(tmp_path / "out") == ["detections.json"]


def test_an_unreadable_video(weights, pictures, tmp_path, capfd):
    (tmp_path / "bad.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(DataError, match=r"1 of 2 inputs cannot be read: video \S+bad\.mp4 cannot be opened"):
        run(weights, tmp_path / "bad.mp4", pictures / "a.png", "--out", tmp_path / "out")
    assert files(tmp_path / "out") == ["a.jpg", "detections.json"]
    assert capfd.readouterr().err == ""


def test_stopped_in_a_video(weights, video, tmp_path, monkeypatch):
    """Nothing half-written."""
    calls = []

    def stopping(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return find(self, *arguments, **options)

    find = detres.Detector._find
    monkeypatch.setattr(detres.Detector, "_find", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(weights, video, "--out", tmp_path / "out")
    assert files(tmp_path / "out") == []


def test_weights_of_a_classifier(pictures, tmp_path):
    weights = write_tiny_classifier(tmp_path / "c.safetensors")
    with pytest.raises(UserError, match="weights for classification; predict needs a detector's"):
        run(weights, pictures, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
