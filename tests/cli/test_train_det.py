"""`detres train-det`: what of the command line reaches the training, and what is printed. Whole runs: tests/system."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from detres.cli import train_det
from detres.cli.train_common import log_configuration
from detres.config import load_config
from detres.data.config import Source
from detres.detection.config import DetectionConfig
from detres.errors import ConfigError, UserError
from detres.tasks.start import Start

FIGURES = {"AP": 0.25, "APs": None}


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """The configurations and options of the trainings that the tool starts, here instead of in `runs/`."""
    calls = []

    def read_training(config, device, resumed):  # no data and no weights are there
        return None, Start(config.model.network)

    def train_detector(config, data, start, run, device, *, resume, quiet):
        calls.append((config, run.path, device.type, resume, quiet))
        return FIGURES

    monkeypatch.setattr("detres.detection.train.read_training", read_training)
    monkeypatch.setattr("detres.detection.train.train_detector", train_detector)
    monkeypatch.chdir(tmp_path)
    return calls


def test_what_the_command_line_says(trained, tmp_path, capsys):
    (tmp_path / "cells.yaml").write_text("train: {lr: 0.5}\nmodel: {init: a.pth}\n")
    train_det.main(
        [
            "--cfg",
            "cells.yaml",
            "--data",
            "shapes:9",
            "--init",
            "b.pth",
            "--set",
            "train.seed=3",
            "--device",
            "cpu",
        ]
    )
    ((config, path, device, resume, quiet),) = trained
    assert (config.train.lr, config.train.seed, config.model.init) == (0.5, 3, "b.pth")
    assert config.data.train == (Source(dir="shapes:9", split="train"),)
    assert config.data.val == (Source(dir="shapes:9", split="val"),)
    assert (path, device, resume, quiet) == (Path("runs/cells"), "cpu", False, False)
    assert load_config(DetectionConfig, path / "config.yaml") == config
    printed = capsys.readouterr().out
    assert "0.250" in printed
    assert "n/a" in printed
    assert printed.endswith("weights: runs/cells/model.safetensors\n")


def test_where_it_goes(trained, tmp_path):
    train_det.main(["--data", "shapes", "--out", "here", "--json", "f.json", "--quiet", "--resume"])
    assert [(str(path), resume, quiet) for _, path, _, resume, quiet in trained] == [("here", True, True)]
    assert json.loads((tmp_path / "f.json").read_text()) == {
        "figures": FIGURES,
        "weights": "here/model.safetensors",
    }
    train_det.main(["--data", "shapes", "--quiet"])
    assert trained[1][1] == Path("runs/train_det")


def test_split_and_format(trained):
    train_det.main(["--data", "shapes", "--split", "test", "--out", "a"])
    assert trained[0][0].data.train == (Source(dir="shapes", split="test"),)
    assert trained[0][0].data.val == ()
    with pytest.raises(ConfigError, match="split 'tset' is not there; it has train, val, test"):
        train_det.main(["--data", "shapes", "--split", "tset", "--out", "b"])
    with pytest.raises(UserError, match="--data DIR, which is not given"):
        train_det.main(["--split", "train"])


@pytest.mark.parametrize("by_path", [False, True])
@pytest.mark.parametrize(
    ("name", "length"),
    [("finetune", "18 epochs"), ("voc/r101_c4", "110000 iterations"), ("coco/r101_c4", "320000 iterations")],
)
def test_shipped_recipes_are_taken(name, length, by_path, trained):
    """By name and by path, and into a folder that no other recipe has."""
    recipe = Path(__file__).resolve().parents[2] / "configs" / f"{name}.yaml"
    data = ["--data", "shapes"] if name == "finetune" else []
    train_det.main(["--cfg", str(recipe) if by_path else name, *data, "--quiet"])
    config, path, *_ = trained[0]
    assert path == Path("runs") / name
    assert str(config.train.length) == length


def test_the_configuration_is_printed_as_it_is_set(caplog):
    """One line a key, each as `--set` takes it: setting them all gives the same configuration."""
    said = [
        "data.train=[{dir: bccd, split: train}, {dir: 'my cells'}]",
        "train.length=7 epochs",
        "rpn.anchor_sizes=[32, 64]",
        "train.evaluate_every=null",
        "model.init='a: b.pth'",
    ]
    config = load_config(DetectionConfig, None, said)
    with caplog.at_level(logging.INFO, "detres"):
        log_configuration(config)
        log_configuration(DetectionConfig())
    first, second = caplog.messages
    lines = [line.strip() for line in first.splitlines()[1:]]
    assert "data.train=[{dir: bccd, split: train}, {dir: my cells}]" in lines
    assert "train.evaluate_every=null" in lines
    assert load_config(DetectionConfig, None, lines) == config
    assert second.endswith("from the defaults: nowhere")
