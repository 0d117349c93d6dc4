"""Where a training stops: between micro-batches, when nothing comes, and at weights that are not numbers.

Truth: the state of the last whole step of an unbroken run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_task
import torch
from safetensors.torch import load_file
from torch import nn

from detres.errors import DataError, DivergedError, UserError
from detres.training.checkpoints import load_checkpoint
from detres.training.config import make_plan, schedule_warnings


def saved(folder: Path) -> dict:
    state = load_checkpoint(folder)
    assert state is not None
    return state


def test_a_signal_between_micro_batches_drops_the_step(tmp_path: Path) -> None:
    """Statistics of BN, which moved in the dropped step, are those of the step before."""
    tiny_task.run(tmp_path / "short", accumulate=4, length="2 iterations", evaluate_every=None)
    made = tiny_task.interrupted(
        tiny_task.task(tiny_task.network()), 10, lambda: signal.raise_signal(signal.SIGTERM)
    )
    with pytest.raises(KeyboardInterrupt):
        tiny_task.run(tmp_path / "run", made=made, accumulate=4, evaluate_every=None, milestones=())
    state, expected = saved(tmp_path / "run"), saved(tmp_path / "short")
    assert state["step"] == 2
    for name, tensor in expected["network"].items():
        assert torch.equal(state["network"][name], tensor), name


def test_an_image_at_fault_does_not_lose_the_steps_before(tmp_path: Path) -> None:
    class Samples(tiny_task.Samples):
        def __getitem__(self, key):
            if key == bad:
                raise DataError("image-3.jpg is damaged")
            return super().__getitem__(key)

    bad = (1, 3)
    made = tiny_task.task(tiny_task.network(), dataset=Samples())
    with pytest.raises(DataError, match=r"image-3\.jpg"):
        tiny_task.run(tmp_path, made=made, checkpoint_every="99 iterations", evaluate_every=None)
    assert saved(tmp_path)["step"] >= 3


def test_checkpoints_by_the_clock(tmp_path: Path) -> None:
    rare = {"checkpoint_every": "99 iterations", "evaluate_every": None, "length": "5 iterations"}
    tiny_task.run(tmp_path / "a", **rare)
    tiny_task.run(tmp_path / "b", **rare, checkpoint_minutes=1e-9, keep=9)
    steps = [sorted(int(path.name) for path in (tmp_path / run / "checkpoints").iterdir()) for run in "ab"]
    assert steps == [[5], [1, 2, 3, 4, 5]]


def test_a_read_that_hangs_ends_the_run(tmp_path: Path) -> None:
    class Samples(tiny_task.Samples):
        def __getitem__(self, key):
            if key[0] == 1:
                time.sleep(60)
            return super().__getitem__(key)

    made = tiny_task.task(tiny_task.network(), dataset=Samples())
    with pytest.raises(UserError, match=r"waited 0\.02 minutes .* in vain for the images of step 4"):
        tiny_task.run(
            tmp_path, made=made, checkpoint_every="99 iterations", hang_minutes=0.02, evaluate_every=None
        )
    assert saved(tmp_path)["step"] == 3


DEAF = """
import sys, time, signal
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tiny_task
from detres.training import watch
watch.REACTION_SECONDS = 1.0

class Samples(tiny_task.Samples):
    def __getitem__(self, key):
        if key[0] == 1:
            signal.pthread_sigmask(signal.SIG_BLOCK, [watch.SIGNAL])
            time.sleep(60)
        return super().__getitem__(key)

made = tiny_task.task(tiny_task.network(), dataset=Samples())
tiny_task.run(Path(sys.argv[2]), made=made, checkpoint_every="99 iterations", hang_minutes=0.02, evaluate_every=None)
"""


def test_a_read_that_no_signal_wakes_ends_the_run_too(tmp_path: Path) -> None:
    """As on a network folder that is gone."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", DEAF, str(Path(__file__).parent), str(tmp_path / "run")]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=50)
    assert process.returncode == 2, process.stderr
    assert process.stderr.splitlines()[-1].startswith("error: waited 0.02 minutes")
    assert saved(tmp_path / "run")["step"] == 3


@pytest.mark.parametrize("evaluate_every", [None, "2 iterations"])
def test_the_last_update_is_looked_at(tmp_path: Path, evaluate_every: str | None) -> None:
    """One step at such a rate: every loss that was computed is finite, and the weights are of no use."""
    with pytest.raises(DivergedError, match="diverged at step 1: after its update"):
        tiny_task.run(
            tmp_path,
            length="1 iterations",
            lr=1e30,
            warmup_iterations=0,
            milestones=(),
            evaluate_every=evaluate_every,
        )
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_of_an_evaluation_whose_losses_are_nan_are_not_the_best(tmp_path: Path) -> None:
    made = tiny_task.task(tiny_task.network())
    made.validation_losses = lambda network: {"near": float("nan")}
    with pytest.raises(KeyError):
        tiny_task.run(tmp_path, made=made)[1]["score"]
    assert not (tmp_path / "best").exists()


@pytest.mark.parametrize("figure", [0.0, 0.25])
def test_of_equal_figures_the_later_weights_are_kept(
    tmp_path: Path, figure: float, caplog: pytest.LogCaptureFixture
) -> None:
    made = tiny_task.task(tiny_task.network())
    made.evaluate = lambda network: {"score": figure}
    network, _ = tiny_task.run(tmp_path, made=made)
    assert (tmp_path / "best").read_text() == "checkpoints/12\n"
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(tensor, network.state_dict()[name])
    assert ("val/score was 0 at every evaluation" in caplog.text) == (figure == 0)


@pytest.mark.parametrize("evaluate_every", [None, "4 iterations"])
def test_weights_that_are_gone_are_written_again(tmp_path: Path, evaluate_every: str | None) -> None:
    """Those of the best evaluation, here not the last."""
    scores = iter([1.0, 3.0, 2.0])
    made = tiny_task.task(tiny_task.network())
    made.evaluate = lambda network: {"score": next(scores)}
    tiny_task.run(tmp_path, made=made, evaluate_every=evaluate_every, ema=0.9)
    before = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    again: nn.Module = tiny_task.run(tmp_path, resume=True, evaluate_every=evaluate_every, ema=0.9)[0]
    after = load_file(tmp_path / "model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    for name, tensor in saved(tmp_path)["network"].items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_schedules_that_do_not_fit() -> None:
    config = tiny_task.config(warmup_iterations=500, milestones=("100 iterations",))
    warmup, milestones = schedule_warnings(config, make_plan(config, 7))
    assert "the run ends at step 12, within the warm-up of 500" in warmup
    assert "the rate does not fall at 100" in milestones
    fitting = tiny_task.config()
    assert schedule_warnings(fitting, make_plan(fitting, 7)) == []
