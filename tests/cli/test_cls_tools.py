"""The classification tools end to end: pictures in folders -> classifier -> BN statistics -> a detector's backbone."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from detres.cli import bn_stats, eval_cls, train_cls
from detres.data.decoding import read_image
from detres.data.drawing import write_image
from detres.data.shapes import shapes_labels
from detres.errors import DataError, UserError, WeightsError
from detres.weights.checkpoint import read_weights, save_weights
from detres.weights.foreign import read_backbone

SMALL = (
    "model.network={name: resnet18, width: 0.125}",
    "data.crop={size: 32, train_sides: [32, 40], test_side: 32}",
    "train.batch=8",
    "train.workers=0",
    "train.length=1 epochs",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "forms"
    for split in ("train", "val"):
        images = shapes_labels(split, 16, side=40)
        for index in range(len(images)):
            name = images.class_names[images.labels[index]]
            write_image(root / split / name / f"{index}.png", read_image(images.paths[index]))
    return root


def train(tree, out, *more: str) -> None:
    sets = [argument for setting in SMALL for argument in ("--set", setting)]
    train_cls.main(["--data", str(tree), "--out", str(out), "--device", "cpu", "--quiet", *sets, *more])


def test_from_folders_to_a_backbone(tree, tmp_path, capsys):
    train(tree, tmp_path / "run", "--json", str(tmp_path / "train.json"))
    figures = json.loads((tmp_path / "train.json").read_text())["figures"]
    weights = tmp_path / "run" / "model.safetensors"
    assert 0 <= figures["top1_error"] <= 1

    common = ["--weights", str(weights), "--data", str(tree), "--workers", "0", "--device", "cpu", "--quiet"]
    eval_cls.main([*common, "--split", "val", "--json", str(tmp_path / "eval.json")])
    evaluated = json.loads((tmp_path / "eval.json").read_text())
    assert evaluated["figures"] == {name: figures[name] for name in ("top1_error", "top5_error")}
    assert evaluated["images"] == 16

    bn_stats.main([*common, "--images", "12", "--out", str(tmp_path / "backbone.safetensors")])
    backbone = read_backbone(tmp_path / "backbone.safetensors")
    assert "statistics of 20 BN layers over 12 images" in capsys.readouterr().out
    assert backbone.missing == ()
    assert backbone.network["width"] == 0.125
    trained = read_backbone(weights)
    assert np.array_equal(backbone.tensors["conv1.weight"], trained.tensors["conv1.weight"])
    assert not np.array_equal(backbone.tensors["bn1.running_var"], trained.tensors["bn1.running_var"])


def test_views_and_ensembles(tree, tmp_path, capsys):
    """Twice the same network is that network; a mirrored list of classes is met by name."""
    train(tree, tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    common = ["--data", str(tree), "--split", "val", "--workers", "0", "--device", "cpu", "--quiet"]

    def figures(*options: str) -> dict:
        eval_cls.main([*common, *options, "--json", str(tmp_path / "eval.json")])
        return json.loads((tmp_path / "eval.json").read_text())

    one = figures("--weights", str(weights), "--crops", "10")
    assert one["views"] == "ten crops"
    assert "members" not in one
    tensors, metadata = read_weights(weights)
    names = tuple(reversed(metadata.class_names))
    for name in ("fc.weight", "fc.bias"):
        tensors[name] = tensors[name].flip(0)
    other = tmp_path / "other.safetensors"
    save_weights(other, tensors, metadata.model_copy(update={"class_names": names}))
    two = figures("--weights", str(weights), str(other), "--crops", "10")
    assert two["figures"] == one["figures"]
    assert two["members"] == {str(path): one["figures"] for path in (weights, other)}
    assert "ensemble of 2" in capsys.readouterr().out
    dense = figures("--weights", str(weights), "--scales", "32", "40", "--flip")
    assert dense["views"] == "fully convolutional, shorter sides 32, 40, mirrored too"
    with pytest.raises(UserError, match="--crops and --scales are two ways to test"):
        figures("--weights", str(weights), "--crops", "10", "--scales", "32")


def test_corrupt_image_in_a_test(tree, tmp_path, capsys):
    copy = tmp_path / "forms"
    shutil.copytree(tree, copy)
    train(tree, tmp_path / "run")
    broken = sorted((copy / "val").rglob("*.png"))[3]
    broken.write_bytes(broken.read_bytes()[:60])
    common = ["--weights", str(tmp_path / "run" / "model.safetensors"), "--data", str(copy), "--split", "val"]
    common += ["--workers", "1", "--device", "cpu", "--quiet"]
    with pytest.raises(DataError, match=re.escape(f"picture {broken} cannot be decoded")):
        eval_cls.main(common)
    eval_cls.main([*common, "--unreadable", "skip", "--json", str(tmp_path / "eval.json")])
    found = json.loads((tmp_path / "eval.json").read_text())
    assert (found["images"], found["left_out"]) == (15, 1)
    assert "15 images, 1 that cannot be read left out; central crop" in capsys.readouterr().out


def test_run_that_is_there_is_refused_and_resumed(tree, tmp_path):
    train(tree, tmp_path / "run")
    with pytest.raises(UserError, match="holds another run"):
        train(tree, tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    train(tree, tmp_path / "run", "--resume")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_images_of_other_classes_are_refused(tree, tmp_path):
    train(tree, tmp_path / "run")
    weights = ["--weights", str(tmp_path / "run" / "model.safetensors")]
    write_image(tmp_path / "other" / "ant" / "0.png", np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(DataError, match=r"missing there: .*; unknown: ant"):
        eval_cls.main([*weights, "--data", str(tmp_path / "other"), "--quiet"])


@pytest.mark.parametrize("tool", [bn_stats, eval_cls])
def test_weights_that_are_not_there_are_named(tool, tree, tmp_path):
    out = ["--out", str(tmp_path / "o.safetensors")] if tool is bn_stats else ["--split", "val"]
    with pytest.raises(WeightsError, match=r"none\.safetensors: no such weights file"):
        tool.main(["--weights", str(tmp_path / "none.safetensors"), "--data", str(tree), *out])


def test_input_is_read_once_and_before_a_run_folder_is_touched(tree, tmp_path, monkeypatch):
    from detres.classification import task as room

    for wrong in ("model.init=none.safetensors", "train.precision=float16", "data.mean=none.npy"):
        with pytest.raises(UserError):
            train(tree, tmp_path / "run", "--set", wrong)
    assert not (tmp_path / "run").exists()
    train(tree, tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    before = weights.read_bytes()
    with pytest.raises(UserError):
        train(tree / "nowhere", tmp_path / "run", "--overwrite")
    with pytest.raises(UserError):
        train(tree, tmp_path / "run", "--overwrite", "--set", "data.val=[{dir: nowhere}]")
    assert weights.read_bytes() == before
    reads, scan = [], room.scan_image_labels
    monkeypatch.setattr(
        room,
        "scan_image_labels",
        lambda sources, **options: reads.append(sources) or scan(sources, **options),
    )
    train(tree, tmp_path / "run", "--overwrite")
    assert len(reads) == 2  # training and validation
