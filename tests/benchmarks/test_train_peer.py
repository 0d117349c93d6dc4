"""`detres train-peer` end to end on a narrow network, and what it looks at before it trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import write_tiny_classifier

from benchmarks import train_peer
from detres.errors import ConfigError, UserError

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart" / "detect.yaml"
TINY = [
    "data.train=[{dir: 'shapes:4', split: train}]",
    "data.val=[{dir: 'shapes:2', split: val}]",
    "data.short_side=96",
    "data.long_side=128",
    "rpn.channels=16",
    "train.batch=2",
    "train.workers=0",
    "train.length=4 iterations",
    "train.warmup_iterations=2",
    "train.evaluate_every=2 iterations",
    "train.checkpoint_every=2 iterations",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A classifier of width 0.25, as the quickstart's pre-training leaves it."""
    return write_tiny_classifier(tmp_path_factory.mktemp("weights") / "c.safetensors")


def run(weights: Path | None, out: Path, *more: object) -> None:
    settings = [argument for setting in TINY for argument in ("--set", setting)]
    common = ["--cfg", QUICKSTART, "--out", out, "--device", "cpu", "--quiet"]
    if weights is not None:
        common += ["--init", weights]
    train_peer.main([str(argument) for argument in (*common, *settings, *more)])


def test_the_quickstarts_detector(weights, tmp_path, capsys):
    run(weights, tmp_path / "run", "--test", "shapes:3", "test", "--set", "test.score_thresh=0")
    assert "Best figures" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "eval" / "detections.json").read_text())
    assert len({row["image_id"] for row in found}) == 3
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_what_is_at_fault_is_found_before_the_training(weights, tmp_path, monkeypatch):
    """Nothing is begun, and the run that `--overwrite` would replace stays."""
    earlier = tmp_path / "run"
    run(weights, earlier)
    before = {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()}
    monkeypatch.setattr("detres.training.loop.train", lambda *_, **__: pytest.fail("the training has begun"))
    for more in (
        ("--test", "nowhere", "test"),
        ("--test", "shapes:3", "tset"),
        ("--set", "data.train=[{dir: nowhere}]"),
    ):
        with pytest.raises(UserError):
            run(weights, earlier, "--overwrite", *more)
    with pytest.raises(ConfigError, match="torchvision has no plain18"):
        run(None, earlier, "--overwrite", "--set", "model.network.name=plain18")
    for setting, message in (
        ("mode=alternating", "trained jointly"),
        ("milestones=[3 iterations, 2 iterations]", "rise"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(weights, earlier, "--overwrite", "--set", f"train.{setting}")
    assert {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()} == before


def test_losses_side_by_side_on_the_chosen_device(weights, tmp_path, capsys, monkeypatch):
    beta = ("--set", "rcnn.smooth_l1_beta=0.1111111111111111")
    run(weights, tmp_path / "run", "--same-samples", 2, *beta)
    assert "relative difference" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="device cuda:99"):
        run(weights, tmp_path / "run", "--same-samples", 2, *beta, "--device", "cuda:99")
    with pytest.raises(UserError, match="torchvision has 1/9 built in"):
        run(weights, tmp_path / "run", "--same-samples", 2, "--set", "rcnn.smooth_l1_beta=1")
    with pytest.raises(UserError, match="--same-samples 0: should be a number of steps"):
        run(weights, tmp_path / "run", "--same-samples", 0)
