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
def images(tmp_path) -> Path:
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


def test_a_folder(weights, images, tmp_path, capsys):
    """The json is what the detector finds in each picture, the picture's path its id; drawn ones differ from it."""
    run(weights, images, "--out", tmp_path / "out")
    assert files(tmp_path / "out") == ["a.jpg", "b.jpg", "detections.json"]
    detector = detres.load(weights, device="cpu")
    paths = [images / "a.png", images / "deep" / "b.jpg"]
    found = [detector(path, score_thresh=0.5) for path in paths]  # type: ignore[call-arg]
    expected = [row for one, path in zip(found, paths, strict=True) for row in one.to_coco(str(path))]  # type: ignore[union-attr]
    assert len(expected) > 1
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == expected
    drawn = read_image(tmp_path / "out" / "a.jpg")
    assert drawn.shape == found[0].image.shape  # type: ignore[union-attr]
    assert np.abs(drawn.astype(int) - found[0].draw()).mean() < 12  # type: ignore[union-attr]
    printed = capsys.readouterr().out
    assert f"{len(expected)} detections in 2 inputs" in printed
    assert "a.png" in printed


def test_the_json_alone(weights, images, tmp_path):
    run(weights, images / "a.png", "--no-images", "--json", tmp_path / "f.json", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert {row["image_id"] for row in json.loads((tmp_path / "f.json").read_text())} == {
        str(images / "a.png")
    }


def test_score_and_other_test_options(weights, images, tmp_path):
    for name, low in (
        ("usual", None),
        ("low", "test.score_thresh=0.1"),
        ("few", "test.detections_per_img=1"),
    ):
        more = ["--set", low] if low else []
        run(weights, images / "a.png", "--no-images", "--json", tmp_path / name, *more)
    usual, low, few = (json.loads((tmp_path / name).read_text()) for name in ("usual", "low", "few"))
    assert 0.1 < min(row["score"] for row in low) <= 0.5 < min(row["score"] for row in usual)
    assert few == usual[:1]
    for wrong, message in (
        ("flips=true", "unknown test option 'flips'"),
        ("scales=[]", "shorter sides in rising"),
    ):
        with pytest.raises(UserError, match=message):
            run(weights, images / "a.png", "--out", tmp_path / "x", "--set", f"test.{wrong}")
    assert not (tmp_path / "x").exists()


def test_an_ensemble_with_all_switches(weights, images, tmp_path):
    """What the tool writes is what `detres.load` of both files finds with the same options."""
    other = write_detector(tmp_path / "o.safetensors", seed=3)
    options = ("refine=true", "box_voting=true", "flip=true", "scales=[64, 96]")
    sets = [argument for option in options for argument in ("--set", f"test.{option}")]
    target = tmp_path / "f.json"
    both = ["--weights", str(weights), str(other)]
    predict.main(
        [str(images / "a.png"), *both, "--device", "cpu", "--no-images", "--json", str(target), *sets]
    )
    ensemble = detres.load([weights, other], device="cpu")
    found = ensemble(  # type: ignore[call-arg]
        images / "a.png", score_thresh=0.5, refine=True, box_voting=True, flip=True, scales=(64, 96)
    )
    assert json.loads(target.read_text()) == found.to_coco(str(images / "a.png"))  # type: ignore[union-attr]


def test_inputs(images):
    a, b = images / "a.png", images / "deep" / "b.jpg"
    out = Path("runs")
    assert find_inputs([str(images)], out) == [a, b]
    assert find_inputs([str(images / "*.png")], out) == [a]
    assert find_inputs([str(images / "**" / "*.jpg"), str(a), str(images)], out) == [b, a]
    assert find_inputs([str(images / "*")], out) == [a, b]  # a picture, a folder, and what is neither
    assert find_inputs([str(images / "de*")], out) == [b]
    for nothing in ("none.png", str(images / "*.gif"), str(images / "nowhere")):
        with pytest.raises(UserError, match="no image or video there"):
            find_inputs([nothing], out)
    with pytest.raises(UserError, match=r"notes\.txt: neither an image \(\.avif, \.bmp, "):
        find_inputs([str(images / "notes.txt")], out)


def test_hidden_files_and_folders_are_passed_over(images):
    """Wherever the folder itself lies; by name they are inputs."""
    shutil.copytree(images, images / ".cache" / "x")
    a, b = images / "a.png", images / "deep" / "b.jpg"
    assert find_inputs([str(images)], Path("runs")) == [a, b]
    assert find_inputs([str(images / "**" / "*")], Path("runs")) == [a, b]
    hidden = images / ".cache" / "x"
    assert find_inputs([str(hidden)], Path("runs")) == [hidden / "a.png", hidden / "deep" / "b.jpg"]
    assert find_inputs([str(images / "._a.png")], Path("runs")) == [images / "._a.png"]


def test_a_image_named_twice_is_one_input(images, monkeypatch):
    monkeypatch.chdir(images)
    spelled = ["./a.png", "a.png", "deep/../a.png", str(images / "a.png"), ".", "deep"]
    assert find_inputs(spelled, Path("runs")) == [Path("a.png"), Path("deep/b.jpg")]


def test_where_the_json_goes_is_looked_at_before_the_work(weights, images, tmp_path, monkeypatch):
    """An earlier file, an input, the weights, a folder: nothing of them is touched, and no picture is looked at."""
    earlier = tmp_path / "f.json"
    earlier.write_text("earlier")
    monkeypatch.setattr("detres.api.load", lambda *_, **__: pytest.fail("the work has begun"))
    bytes_of_weights = weights.read_bytes()
    for target, message in (
        (earlier, r"f\.json already there: --overwrite"),
        (images / "a.png", r"a\.png is read by this command"),
        (weights, r"d\.safetensors is read by this command"),
        (images, r"in cannot be written: \S+in is in its place"),
        (earlier / "g.json", r"g\.json cannot be written: \S+f\.json is in its place"),
        (tmp_path / "out" / "a.jpg", "would be written twice"),
    ):
        overwrite = [] if target == earlier else ["--overwrite"]
        with pytest.raises(UserError, match=message):
            run(weights, images / "a.png", "--out", tmp_path / "out", "--json", target, *overwrite)
    assert earlier.read_text() == "earlier"
    assert weights.read_bytes() == bytes_of_weights
    assert not (tmp_path / "out").exists()


def test_the_folder_of_the_json_is_made(weights, images, tmp_path):
    target = tmp_path / "new" / "deep" / "f.json"
    run(weights, images / "a.png", "--no-images", "--json", target)
    assert json.loads(target.read_text())
    target.write_text("earlier")
    run(weights, images / "a.png", "--no-images", "--json", target, "--overwrite")
    assert json.loads(target.read_text())


def test_results_in_a_folder_that_is_searched_are_passed_over(images):
    """A second run on `.` with `--out ./found` is not fed its own drawings; asked for by name they are inputs."""
    a, b = images / "a.png", images / "deep" / "b.jpg"
    assert find_inputs([str(images)], images / "deep") == [a]
    assert find_inputs([str(images / "**" / "*")], images / "deep") == [a]
    assert find_inputs([str(b)], images / "deep") == [b]
    assert find_inputs([str(images / "deep")], images / "deep") == [b]
    assert find_inputs([str(images / "deep" / "*.jpg")], images) == [b]


def test_drawings_of_one_name_are_numbered(tmp_path):
    names = ["x/a.png", "y/A.jpg", "a.mp4", "z/a.jpg", "a_2.png"]
    drawn = drawing_paths([Path(name) for name in names], tmp_path)
    assert [path.name for path in drawn.values()] == ["a.jpg", "A_2.jpg", "a.mp4", "a_3.jpg", "a_2_2.jpg"]


def test_one_bad_image_among_others(weights, images, tmp_path):
    """The others' results are written; the error names the bad one and says where they are."""
    truncated = (images / "deep" / "b.jpg").read_bytes()[:2000]
    (images / "deep" / "b.jpg").write_bytes(truncated)
    with pytest.raises(
        DataError, match=r"1 of 2 inputs cannot be read: picture \S+b\.jpg is truncated.*other 1"
    ):
        run(weights, images, "--out", tmp_path / "out")
    assert files(tmp_path / "out") == ["a.jpg", "detections.json"]
    with pytest.raises(DataError, match="1 of 1 inputs"):
        run(weights, images / "deep" / "b.jpg", "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_earlier_results_and_inputs_are_not_overwritten(weights, images, tmp_path):
    run(weights, images / "a.png", "--out", tmp_path / "out")
    before = (tmp_path / "out" / "detections.json").read_bytes()
    with pytest.raises(UserError, match=r"detections\.json, .*a\.jpg already there: --overwrite"):
        run(weights, images / "a.png", "--out", tmp_path / "out", "--set", "test.score_thresh=0.9")
    assert (tmp_path / "out" / "detections.json").read_bytes() == before
    run(weights, images / "a.png", "--out", tmp_path / "out", "--set", "test.score_thresh=0.9", "--overwrite")
    assert (tmp_path / "out" / "detections.json").read_bytes() != before
    original = (images / "deep" / "b.jpg").read_bytes()
    with pytest.raises(UserError, match=r"b\.jpg is read by this command"):
        run(weights, images / "deep", "--out", images / "deep", "--overwrite")
    assert (images / "deep" / "b.jpg").read_bytes() == original


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
        for row in detector(frame, score_thresh=0.5).to_coco(f"{video}#{number}")  # type: ignore
    ]
    assert rows
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == rows


def test_a_video_without_drawing(weights, video, tmp_path):
    run(weights, video, "--out", tmp_path / "out", "--no-images")
    assert files(tmp_path / "out") == ["detections.json"]


def test_an_unreadable_video(weights, images, tmp_path, capfd):
    (tmp_path / "bad.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(DataError, match=r"1 of 2 inputs cannot be read: video \S+bad\.mp4 cannot be opened"):
        run(weights, tmp_path / "bad.mp4", images / "a.png", "--out", tmp_path / "out")
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

    find = detres.Detector._detect
    monkeypatch.setattr(detres.Detector, "_detect", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(weights, video, "--out", tmp_path / "out")
    assert files(tmp_path / "out") == []


def test_weights_of_a_classifier(images, tmp_path):
    weights = write_tiny_classifier(tmp_path / "c.safetensors")
    with pytest.raises(UserError, match="weights for classification; predict needs a detector's"):
        run(weights, images, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_linked_folders_are_searched_and_what_is_not_read_is_told(tmp_path, caplog):
    a = tmp_path / "p" / "a.png"
    write_image(a, np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.jfif").write_bytes(b"-")
    (tmp_path / "p" / "c.heic").write_bytes(b"-")
    for name, target in (("linked", "../other"), ("self", "."), ("up", ".."), ("gone.png", "nowhere")):
        (tmp_path / "p" / name).symlink_to(target)
    expected = [a, tmp_path / "p" / "linked" / "b.jfif"]
    assert find_inputs([str(tmp_path / "p")], tmp_path / "out") == expected
    for name in ("c.heic", "self", "up", "gone.png"):
        assert str(tmp_path / "p" / name) in caplog.text
    assert find_inputs([str(tmp_path / "p" / "**" / "*.jfif")], tmp_path / "out") == expected[1:]
