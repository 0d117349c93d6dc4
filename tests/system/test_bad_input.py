"""Input at fault ends a tool with status 2 and one clear line: what, where, what would be right. No result is lost.

Configuration, command line, weights, runs and results; data: `test_bad_data`.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import write_detector, write_tiny_classifier
from whole_runs import ROOT, TRAINING, Ended, assert_one_line, call, change, train

from detres.cli import eval_coco, eval_voc, predict, train_det
from detres.data.shape_forms import SHAPE_CLASSES
from detres.detection import data as training_data
from detres.weights.checkpoint import read_weights


@pytest.mark.parametrize("data", ["nowhere", "."])
def test_no_data(data, recipe, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert_one_line(train(capsys, recipe, Path(data), tmp_path / "run"), data)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("lr: 0.01", "lrr: 0.01", ["tiny.yaml:8", "train.lrr", "did you mean 'lr'"]),
        ("lr: 0.01", "lr: 0.01\n  lr: 0.02", ["tiny.yaml:9", "duplicate key 'lr'"]),
        ("lr: 0.01", "lr: fast", ["tiny.yaml:8", "train.lr", "'fast'"]),
        ("lr: 0.01", "lr: -1", ["tiny.yaml:8", "train.lr", "greater than 0"]),
        ("batch: 2", "batch: 2.5", ["tiny.yaml:7", "train.batch"]),
        ("6 iterations", "six rounds", ["tiny.yaml:9", "train.length", "12 epochs"]),
        ("rcnn: {", "rcnn: [", ["tiny.yaml:5"]),
    ],
    ids=["typo", "duplicate key", "wrong type", "out of range", "not whole", "no length", "malformed"],
)
def test_configuration(old, new, words, written_scenes, recipe, tmp_path, capsys):
    change(recipe, old, new)
    assert_one_line(train(capsys, recipe, written_scenes / "coco", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "train.lrr=1"], ["--set train.lrr=1", "did you mean 'lr'"]),
        (["--cfg", "none.yaml"], ["none.yaml"]),
        (["--resum"], ["--resum", "did you mean '--resume'"]),
        (["--split", "train"], ["--data DIR"]),
        (["--device", "cuda:99"], ["device cuda:99"]),
        ([], ["no training data is named: give --data DIR"]),
    ],
)
def test_command_line(arguments, words, tmp_path, capsys):
    assert_one_line(call(capsys, train_det.main, "--out", tmp_path / "run", *arguments), *words)
    assert not (tmp_path / "run").exists()


class Evil:
    """Runs code when it is unpickled by anybody who lets it."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_pickle_that_would_run_code(suffix, written_scenes, recipe, tmp_path, capsys):
    weights = tmp_path / f"evil{suffix}"
    weights.write_bytes(pickle.dumps({"conv1.weight": Evil(tmp_path / "owned")}))
    ended = train(capsys, recipe, written_scenes / "coco", tmp_path / "run", "--init", weights)
    assert_one_line(ended, f"evil{suffix}", "mkdir")
    assert not (tmp_path / "owned").exists()


def test_initial_weights_of_another_architecture(written_scenes, recipe, tmp_path, capsys):
    weights = write_tiny_classifier(tmp_path / "c.safetensors")  # of width 0.25
    ended = train(capsys, recipe, written_scenes / "coco", tmp_path / "run", "--init", weights)
    assert_one_line(ended, "model.network.width is 0.125, but the weights", "0.25")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:-100])
    for name, words in (("cut.safetensors", "truncated"), ("none.safetensors", "no such weights file")):
        ended = train(capsys, recipe, written_scenes / "coco", tmp_path / "run", "--init", tmp_path / name)
        assert_one_line(ended, name, words)


@pytest.mark.parametrize("tool", [eval_coco, eval_voc])
def test_weights_to_test(tool, written_scenes, tmp_path, capsys):
    """Truncated, of another architecture than they say, of other classes than the data, of another task."""
    good = write_detector(tmp_path / "good.safetensors")
    tensors, metadata = read_weights(good)
    write_detector(tmp_path / "names.safetensors", [*SHAPE_CLASSES[:-1], "rings"])
    write_tiny_classifier(tmp_path / "task.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-100])
    from detres.weights.checkpoint import save_weights

    wide = {**metadata.architecture, "rpn": {**metadata.architecture["rpn"], "channels": 33}}
    save_weights(tmp_path / "other.safetensors", tensors, metadata.model_copy(update={"architecture": wide}))
    for name, words in (
        ("cut", ["truncated"]),
        ("other", ["weights of another architecture", "rpn.conv.weight", "33"]),
        ("names", ["class names differ", "rings"]),
        ("task", ["weights of a classifier, not of a detector"]),
        ("none", ["no such weights file"]),
    ):
        weights = ["--weights", tmp_path / f"{name}.safetensors", "--device", "cpu", "--quiet"]
        ended = call(capsys, tool.main, *weights, "--data", written_scenes / "coco", "--split", "val")
        assert_one_line(ended, *words)


def test_a_run_that_is_there(written_scenes, recipe, tmp_path, capsys):
    data, run = written_scenes / "coco", tmp_path / "run"
    assert train(capsys, recipe, data, run).status == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert_one_line(train(capsys, recipe, data, run), "--resume", "--overwrite")
    other = ["--resume", "--set", "train.lr=0.5"]
    assert_one_line(train(capsys, recipe, data, run, *other), "train.lr was 0.01, is 0.5")
    assert_one_line(train(capsys, recipe, written_scenes / "voc", run, "--resume"), "data.train")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert train(capsys, recipe, written_scenes / "voc", run, "--overwrite").status == 0


def test_a_run_that_is_replaced_by_one_whose_data_is_at_fault(scenes, recipe, tmp_path, capsys, monkeypatch):
    """The earlier run stays; where the data is sound, it is read once and what was dropped is in the new log."""
    data, run = scenes / "coco", tmp_path / "run"
    assert train(capsys, recipe, data, run).status == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    path = data / "annotations" / "instances_train.json"
    good = path.read_text()
    path.write_text(good[:-50])
    assert_one_line(train(capsys, recipe, data, run, "--overwrite"), "malformed JSON")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    content = json.loads(good)
    content["annotations"][0]["bbox"] = [5, 5, 0, 0]
    path.write_text(json.dumps(content))
    reads = []
    read = training_data.read_sources
    monkeypatch.setattr(training_data, "read_sources", lambda sources: reads.append(sources) or read(sources))
    assert train(capsys, recipe, data, run, "--overwrite").status == 0
    assert len(reads) == 2  # training and validation
    assert "data: 1 x zero-size box: " in (run / "log.txt").read_text()


def test_resumed_on_data_that_changed(scenes, recipe, tmp_path, capsys):
    """Class names and number of pictures are compared with the checkpoint's."""
    data, run = scenes / "coco", tmp_path / "run"
    assert train(capsys, recipe, data, run).status == 0
    for split in ("train", "val"):
        change(data / "annotations" / f"instances_{split}.json", '"star"', '"stars"')
    longer = ("--resume", "--set", "train.length=8 iterations")
    assert_one_line(train(capsys, recipe, data, run, *longer), "class names was", "stars")


def test_no_space_on_the_device(written_scenes, recipe, tmp_path, capsys, monkeypatch):
    """At each of a run's writings in turn: one line, what was whole before stays whole, and the run can go on."""
    data, run = written_scenes / "coco", tmp_path / "run"
    fsync, left = os.fsync, [0]

    def full(number: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    failures = 0
    for writings in (0, 2, 4, 6, 8):
        left[0] = writings
        ended = train(capsys, recipe, data, run, "--resume")
        if ended.status:
            failures += 1
            assert_one_line(ended, "no space left on the device")
            assert not list(run.rglob(".*.*")) if run.exists() else True
    assert failures >= 4
    monkeypatch.setattr(os, "fsync", fsync)
    assert train(capsys, recipe, data, run, "--resume").status == 0
    assert len(read_weights(run / "model.safetensors")[0]) > 50


FULL_DISK = """
set -e
mount -t tmpfs -o size=1500k none "$1"
"$2" tools/train_det.py --cfg "$3" --data "$4" --out "$1/run" --device cpu --quiet || status=$?
find "$1" -name '.*.*' -type f | grep . && exit 99
exit "$status"
"""


def test_a_disk_that_is_really_full(written_scenes, recipe, tmp_path):
    """A file system of 1.5 MB, where this user may mount one: a checkpoint does not fit beside another."""
    place = tmp_path / "small"
    place.mkdir()
    if not shutil.which("unshare"):
        pytest.skip("no `unshare` here to mount a small file system with")
    if subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", place], capture_output=True
    ).returncode:
        pytest.skip("this user may not mount a small file system")
    arguments = [place, sys.executable, recipe, written_scenes / "coco"]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", FULL_DISK, "sh", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    warning, _, error = done.stderr.partition("\n")
    assert "starts from random weights" in warning
    assert_one_line(Ended(done.returncode, done.stdout, error), "no space left on the device", "state.pt")


def test_predict_on_what_is_no_image(scenes, tmp_path, capsys):
    weights = write_detector(tmp_path / "d.safetensors")
    (scenes / "coco" / "train" / "broken.png").write_bytes(b"no picture")
    ended = call(
        capsys, predict.main, "--weights", weights, "--device", "cpu", "--quiet", "--out", tmp_path / "out",
        scenes / "coco" / "train",
    )  # fmt: skip
    assert_one_line(ended, "1 of 7 inputs cannot be read", "broken.png")
    assert len(list((tmp_path / "out").glob("*.jpg"))) == TRAINING
