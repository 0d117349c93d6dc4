"""Whole runs of the tools: their command lines, in this process or one of their own, and what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from detres.cli import train_det
from detres.cli.common import _status
from detres.data.shapes import shapes_annotations
from detres.data.writers import WRITERS

ROOT = Path(__file__).resolve().parents[2]
TRAINING, VALIDATION = 6, 3
STEPS = 6

RECIPE = f"""\
data: {{short_side: 96, long_side: 128}}
model: {{network: {{name: resnet18, width: 0.125}}, pooler: roi_align, freeze_at: 0}}
rpn:
  {{channels: 16, anchor_sizes: [16, 32, 64], batch_size_per_image: 32, pre_nms_top_n: 100, proposals: 20, min_size: 2}}
rcnn: {{batch_size_per_image: 8}}
train:
  batch: 2
  lr: 0.01
  length: {STEPS} iterations
  warmup_iterations: 2
  evaluate_every: 3 iterations
  checkpoint_every: 2 iterations
  log_every: 1
  workers: 0
test: {{proposals: 10}}
"""
# What of metrics.jsonl is measured and so differs from run to run.
MEASURED = {"seconds", "images_per_second", "data/wait_share", "memory_mib"}


@dataclass(frozen=True)
class Ended:
    """How a tool ended: exit status, standard output, standard error without the log."""

    status: int
    out: str
    err: str


def write_scenes(root: Path) -> None:
    """Drawn scenes as COCO, VOC and YOLO, by the package's writers."""
    for split, count in (("train", TRAINING), ("val", VALIDATION)):
        for name, write in WRITERS.items():
            write(shapes_annotations(split, count), root / name, split)


def call(
    capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int | None], *arguments: object
) -> Ended:
    """Run a tool in this process, with the exit status that its program would have."""
    capsys.readouterr()
    status = _status(main, [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Ended(status, captured.out, captured.err)


def train(capsys: pytest.CaptureFixture[str], recipe: Path, data: Path, out: Path, *more: object) -> Ended:
    """`train-det` on the CPU, quietly."""
    common = ("--cfg", recipe, "--data", data, "--out", out, "--device", "cpu", "--quiet")
    return call(capsys, train_det.main, *common, *more)


def in_own_process(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Python code with arguments, as a process of its own group with as many threads as this one has."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def assert_one_line(ended: Ended, *words: str) -> None:
    """Status 2 and one line on standard error, with these words in it."""
    assert ended.status == 2, ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1, ended.err
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err


def change(path: Path, old: str, new: str) -> None:
    """Replace the first `old` in a text file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def metrics(run: Path) -> list[dict[str, float | None]]:
    """The lines of metrics.jsonl less what is measured."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def assert_same_runs(run: Path, expected: Path, steps: int = STEPS) -> None:
    """Bit-equal: weights ready for use, all state of the last checkpoint, every figure of every line."""
    assert metrics(run) == metrics(expected)
    assert (run / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert (run / "last").read_text() == (expected / "last").read_text() == f"checkpoints/{steps}\n"
    assert (run / "best").read_text() == (expected / "best").read_text()
    ours, theirs = (
        torch.load(path / "checkpoints" / str(steps) / "state.pt", weights_only=True)
        for path in (run, expected)
    )
    assert_equal(ours["network"], theirs["network"])
    assert_equal(ours["optimizer"], theirs["optimizer"])


def assert_equal(value: object, expected: object) -> None:
    """Equal through and through, tensors bit by bit."""
    assert type(value) is type(expected)
    if isinstance(value, torch.Tensor):
        assert torch.equal(value, expected)  # type: ignore[arg-type]
    elif isinstance(value, dict):
        assert value.keys() == expected.keys()  # type: ignore[attr-defined]
        for key in value:
            assert_equal(value[key], expected[key])  # type: ignore[index]
    elif isinstance(value, list):
        assert len(value) == len(expected)  # type: ignore[arg-type]
        for one, other in zip(value, expected, strict=True):  # type: ignore[call-overload]
            assert_equal(one, other)
    else:
        assert value == expected
