"""Processes that read images, when they or the whole run are told to stop: one line, the right status, all saved.

Truth: an unbroken run without such processes.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from whole_runs import RECIPE, assert_same_runs, in_own_process, train

from detres.cli.common import _status
from detres.cli.train_det import main

# A program whose workers, and then itself, get a signal (0: none) when it has taken three steps, or as many as asked.
SIGNALLED = """
import multiprocessing, os, sys
from detres.cli import common, train_det
import detres.training.loop as loop
of_workers, of_program = int(sys.argv[1]), int(sys.argv[2])
steps = [int(step) for step in sys.argv[3].split(",")]
inner = loop.train_step

def signalled(task, config, plan, state, *rest):
    if state.step in steps:
        steps.remove(state.step)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, of_workers)
            if of_workers == 9:
                worker.join()
        if of_program:
            os.kill(os.getpid(), of_program)
    return inner(task, config, plan, state, *rest)

loop.train_step = signalled
common.run(train_det.main, sys.argv[4:])
"""
# More steps than two workers read ahead.
LONG = RECIPE.replace("length: 6 iterations", "length: 12 iterations").replace(
    "checkpoint_every: 2", "checkpoint_every: 20"
)


@pytest.fixture(scope="module")
def unbroken(written_scenes, tmp_path_factory) -> Path:
    """An unbroken run of `LONG`."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "tiny.yaml").write_text(LONG)
    common = ["--cfg", str(folder / "tiny.yaml"), "--data", str(written_scenes / "coco"), "--quiet"]
    assert _status(main, [*common, "--out", str(folder / "run"), "--device", "cpu"]) == 0
    return folder / "run"


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(LONG)
    return path


def signalled(
    of_workers: int, of_program: int, recipe: Path, data: Path, out: Path, *more: object, steps: str = "3"
) -> tuple[int, str]:
    """Exit status and standard error."""
    arguments = ["--cfg", recipe, "--data", data, "--out", out, "--device", "cpu", "--quiet"]
    workers = ["--set", "train.workers=2"]
    process = in_own_process(SIGNALLED, of_workers, of_program, steps, *arguments, *workers, *more)
    try:
        _, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, err


@pytest.mark.parametrize("of_workers", [signal.SIGTERM, signal.SIGKILL])
def test_sigterm_to_every_process_of_a_run(of_workers, unbroken, written_scenes, recipe, tmp_path, capsys):
    """As `systemctl stop` sends it; the run goes on bit-equal, also where the workers were killed outright."""
    data, run = written_scenes / "coco", tmp_path / "run"
    status, err = signalled(int(of_workers), int(signal.SIGTERM), recipe, data, run)
    assert status == 130, err
    assert "Traceback" not in err
    assert err.endswith("stopped\n")
    assert (run / "last").read_text() == "checkpoints/4\n"
    assert train(capsys, recipe, data, run, "--resume").status == 0
    assert_same_runs(run, unbroken, steps=12)


def test_sigterm_to_the_workers_alone_changes_nothing(unbroken, written_scenes, recipe, tmp_path):
    data, run = written_scenes / "coco", tmp_path / "run"
    status, err = signalled(int(signal.SIGTERM), 0, recipe, data, run)
    assert (status, "Traceback" in err) == (0, False)
    assert_same_runs(run, unbroken, steps=12)


def test_killed_workers_are_started_again_once(unbroken, written_scenes, recipe, tmp_path):
    """As when memory runs out: found between steps, and the same steps follow."""
    run = tmp_path / "run"
    status, err = signalled(int(signal.SIGKILL), 0, recipe, written_scenes / "coco", run)
    assert (status, err.count("They are started again, once, at step ")) == (0, 1), err
    assert "Traceback" not in err
    assert_same_runs(run, unbroken, steps=12)


def test_workers_killed_twice_are_one_line_and_nothing_is_lost(
    unbroken, written_scenes, recipe, tmp_path, capsys
):
    """No checkpoint was due before."""
    data, run = written_scenes / "coco", tmp_path / "run"
    never = ("--set", "train.evaluate_every=null")
    status, err = signalled(int(signal.SIGKILL), 0, recipe, data, run, *never, steps="3,5")
    assert status == 2, err
    line = err.splitlines()[-1]
    assert line.startswith("error: a process that reads images was killed")
    assert "train.workers" in line
    assert "Traceback" not in err
    assert int((run / "last").read_text().removeprefix("checkpoints/")) >= 5
    assert train(capsys, recipe, data, run, "--resume").status == 0


def test_a_stopped_worker_ends_the_run(written_scenes, recipe, tmp_path):
    """It says what it waited for, and saves what was done."""
    run = tmp_path / "run"
    more = ("--set", "train.hang_minutes=0.05", "--set", "train.evaluate_every=null")
    status, err = signalled(int(signal.SIGSTOP), 0, recipe, written_scenes / "coco", run, *more)
    assert status == 2, err
    line = err.splitlines()[-1]
    assert line.startswith("error: waited 0.05 minutes (train.hang_minutes) in vain for the images of step ")
    assert "Traceback" not in err
    assert (run / "last").exists()


def test_ctrl_c_while_a_worker_is_stopped(written_scenes, recipe, tmp_path):
    run = tmp_path / "run"
    arguments = [
        "--cfg",
        recipe,
        "--data",
        written_scenes / "coco",
        "--out",
        run,
        "--device",
        "cpu",
        "--quiet",
    ]
    process = in_own_process(SIGNALLED, int(signal.SIGSTOP), 0, "3", *arguments, "--set", "train.workers=2")
    deadline = time.monotonic() + 60
    while not any('step": 4' in text for text in _metrics(run)) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert err.endswith("stopped\n")
    assert "Traceback" not in err


def _metrics(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
