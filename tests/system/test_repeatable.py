"""The same seed gives the same run, bit by bit, on a CPU: with any number of workers, killed or stopped and resumed.

Truth: an unbroken run of the same recipe in this process.
"""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from whole_runs import STEPS, assert_same_runs, call, in_own_process, metrics, train

import detres.training.loop as loop
from detres.cli import train_det

# A program that gets a signal at a step: before it, or in the middle of the evaluation after it.
SIGNALLED = """
import os, signal, sys
from detres.cli import common, train_det
import detres.training.loop as loop
number, step, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
owner = loop._Loop if place == "evaluate" else loop
inner = getattr(owner, place)

def signalled(first, *arguments):
    state = next(part for part in (getattr(first, "state", None), *arguments) if isinstance(part, loop.State))
    if state.step == step:
        os.kill(os.getpid(), number)
    return inner(first, *arguments)

setattr(owner, place, signalled)
common.run(train_det.main, sys.argv[4:])
"""


@pytest.fixture(scope="module")
def unbroken(written_scenes, tmp_path_factory):
    """An unbroken run, and its recipe."""
    from whole_runs import RECIPE

    from detres.cli.common import _status

    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "tiny.yaml").write_text(RECIPE)
    common = ["--cfg", str(folder / "tiny.yaml"), "--data", str(written_scenes / "coco")]
    assert _status(train_det.main, [*common, "--out", str(folder / "run"), "--device", "cpu", "--quiet"]) == 0
    return folder / "run"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_whatever_the_number_of_workers(workers, unbroken, written_scenes, recipe, tmp_path, capsys):
    ended = train(capsys, recipe, written_scenes / "coco", tmp_path, "--set", f"train.workers={workers}")
    assert ended.status == 0
    assert_same_runs(tmp_path, unbroken)


def test_another_seed_is_another_run(unbroken, written_scenes, recipe, tmp_path, capsys):
    train(capsys, recipe, written_scenes / "coco", tmp_path, "--set", "train.seed=1")
    assert metrics(tmp_path)[0]["loss"] != metrics(unbroken)[0]["loss"]


# Checkpoints are at 2, 3, 4 and 6, evaluations after 3 and 6: between two of them, and in an evaluation.
@pytest.mark.parametrize(("step", "place"), [(5, "train_step"), (3, "evaluate")])
def test_killed_and_resumed(step, place, unbroken, written_scenes, recipe, tmp_path, capsys):
    data, run = written_scenes / "coco", tmp_path / "run"
    arguments = ("--cfg", recipe, "--data", data, "--out", run, "--device", "cpu", "--set", "train.workers=1")
    with in_own_process(SIGNALLED, int(signal.SIGKILL), step, place, *arguments, "--quiet") as process:
        assert process.wait(timeout=120) == -signal.SIGKILL  # its workers notice some seconds later
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
    assert len(metrics(run)) < len(metrics(unbroken))
    ended = train(capsys, recipe, data, run, "--resume")
    assert (ended.status, ended.err) == (0, "")
    assert_same_runs(run, unbroken)


def test_killed_anywhere_and_resumed(unbroken, written_scenes, recipe, tmp_path, capsys, monkeypatch):
    """At every step in turn, as a program sees it that dies without cleaning up: stopped there, resumed, and so on."""

    class Killed(BaseException):
        pass

    inner = loop.train_step
    for dies_at in range(1, STEPS):

        def dying(task, config, plan, state, *rest, dies_at=dies_at):
            if state.step == dies_at:
                raise Killed
            return inner(task, config, plan, state, *rest)

        monkeypatch.setattr(loop, "train_step", dying)
        with pytest.raises(Killed):
            train(capsys, recipe, written_scenes / "coco", tmp_path, "--resume")
    monkeypatch.setattr(loop, "train_step", inner)
    assert train(capsys, recipe, written_scenes / "coco", tmp_path, "--resume").status == 0
    assert_same_runs(tmp_path, unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_and_resumed(
    number, unbroken, written_scenes, recipe, tmp_path, capsys, monkeypatch
):
    """The running step is finished and saved; status 130; nothing is trained twice."""
    data = written_scenes / "coco"
    inner = loop.train_step

    def signalled(task, config, plan, state, *rest):
        if state.step == 4:
            os.kill(os.getpid(), number)
        return inner(task, config, plan, state, *rest)

    monkeypatch.setattr(loop, "train_step", signalled)
    ended = train(capsys, recipe, data, tmp_path)
    assert (ended.status, ended.err) == (130, "stopped\n")
    assert (tmp_path / "last").read_text() == "checkpoints/5\n"
    assert "stopped at step 5 of 6: --resume goes on" in (tmp_path / "log.txt").read_text()
    monkeypatch.setattr(loop, "train_step", inner)
    assert train(capsys, recipe, data, tmp_path, "--resume").status == 0
    assert_same_runs(tmp_path, unbroken)


def test_ctrl_c_on_a_program_with_workers(unbroken, written_scenes, recipe, tmp_path, capsys):
    """The signal goes to the whole group, as a terminal sends it: one line of the program, none of its workers."""
    data, run = written_scenes / "coco", tmp_path / "run"
    arguments = ["--cfg", recipe, "--data", data, "--out", run, "--device", "cpu", "--set", "train.workers=2"]
    code = SIGNALLED.replace("os.kill(os.getpid(), number)", "os.killpg(os.getpgid(0), number)")
    process = in_own_process(code, int(signal.SIGINT), 3, "train_step", *arguments, "--quiet")
    try:
        _, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.endswith("stopped\n")
    assert (run / "last").read_text() == "checkpoints/4\n"
    assert train(capsys, recipe, data, run, "--resume").status == 0
    assert_same_runs(run, unbroken)


def test_a_finished_run_is_left_alone(unbroken, written_scenes, recipe, tmp_path, capsys):
    """`--resume` of what is done trains nothing and gives its figures again."""
    import json
    import shutil

    run = shutil.copytree(unbroken, tmp_path / "run")
    before = {
        path.name: path.read_bytes() for path in run.iterdir() if path.suffix in (".safetensors", ".jsonl")
    }
    ended = call(
        capsys, train_det.main, "--cfg", recipe, "--data", written_scenes / "coco", "--out", run, "--resume",
        "--device", "cpu", "--quiet", "--json", tmp_path / "figures.json",
    )  # fmt: skip
    assert ended.status == 0
    assert {name: (run / name).read_bytes() for name in before} == before
    best = max(line["val/AP"] or 0 for line in metrics(run) if "val/AP" in line)
    assert json.loads((tmp_path / "figures.json").read_text())["figures"]["AP"] == best
