"""The three trainings of tests of faults, and a program that starts them again and again without importing anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from whole_runs import MEASURED, RECIPE, ROOT, assert_equal

DETECTOR = RECIPE.replace("workers: 0", "workers: 1")
CLASSIFIER = """\
data: {crop: {size: 32, train_sides: [32, 40], test_side: 32}, train: [{dir: 'shapes:24'}], val: [{dir: 'shapes:8:1'}]}
model: {network: {name: resnet18, width: 0.125}}
train: {batch: 4, accumulate: 2, length: 8 iterations, warmup_iterations: 2, evaluate_every: 4 iterations,
  checkpoint_every: 2 iterations, log_every: 1, workers: 1, ema: 0.9}
"""

# Forks a child for each run, so that nothing is imported again. Each line of standard input is a JSON object: the
# tool's module, its arguments, seconds after which to kill the run (null: let it end). Each line of standard output has
# the exit status (-9: killed) and the seconds.
SERVER = """
import importlib, json, os, signal, sys, time
import cv2, albumentations, torch, torch.utils.tensorboard, pycocotools.coco
from detres.cli import common
import detres.detection.train, detres.classification.task
for line in sys.stdin:
    tool, arguments, seconds = json.loads(line)
    begun, child = time.monotonic(), os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        common.run(importlib.import_module(f"detres.cli.{tool}").main, arguments)
    ended = 0
    while not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        if not ended and seconds is not None and time.monotonic() - begun >= seconds:
            os.kill(child, signal.SIGKILL)
            ended, status = os.waitpid(child, 0)
        time.sleep(0.001)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - begun]), flush=True)
"""


@dataclass(frozen=True)
class Training:
    """A name, the tool and its arguments but for folders."""

    name: str
    tool: str
    arguments: tuple[str, ...] = ()

    def command(self, home: Path, out: Path, *more: str) -> list[str]:
        """Arguments of the tool."""
        recipe = "classifier" if self.tool == "train_cls" else "detector"
        data = () if self.tool == "train_cls" else ("--data", str(home / "scenes/coco"))
        common = ("--cfg", str(home / f"{recipe}.yaml"), "--out", str(out), "--device", "cpu", "--quiet")
        return [*common, *data, *self.arguments, *more]


TRAININGS = (
    Training("joint", "train_det"),
    Training(
        "alternating",
        "train_det",
        ("--set", "train.mode=alternating", "--set", "train.length=3 iterations"),
    ),
    Training("classification", "train_cls"),
)


class Server:
    """A process that starts runs; closed at the end of the block."""

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            text=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def run(
        self, training: Training, arguments: list[str], seconds: float | None = None
    ) -> tuple[int, float]:
        """Exit status and seconds of a run, which is killed after `seconds`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([training.tool, arguments, seconds]) + "\n")
        self._process.stdin.flush()
        status, took = json.loads(self._process.stdout.readline())
        return status, took


def environment() -> dict[str, str]:
    """Of a program that computes as this process does."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}


def assert_same_results(run: Path, expected: Path) -> None:
    """Bit-equal weights, states and figures, in every stage; and nothing half-written anywhere."""
    for place in sorted(path.parent.relative_to(expected) for path in expected.rglob("model.safetensors")):
        ours, theirs = run / place, expected / place
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
        if (theirs / "last").exists():
            assert _metrics(ours) == _metrics(theirs)
            assert (ours / "last").read_text() == (theirs / "last").read_text()
            states = [
                torch.load(folder / (folder / "last").read_text().strip() / "state.pt", weights_only=True)
                for folder in (ours, theirs)
            ]
            for key in ("network", "optimizer", "average", "best"):
                assert_equal(states[0][key], states[1][key])
    assert not list(run.rglob(".*"))


def _metrics(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]
