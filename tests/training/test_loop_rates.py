"""Rates that depend on how training goes: plateaus of evaluations, a warm-up that waits for the training error.

Truth: rates worked by hand from scripted figures; an unbroken run for one that was resumed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_task
import torch
from torch import Tensor

from detres.errors import ConfigError, UserError


def rates(folder: Path) -> list[float]:
    """The rate of each logged step (every second one)."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["lr"] for line in lines if "lr" in line]


def scripted(figures: Iterator[float]) -> tiny_task.TinyTask:
    return tiny_task.task(tiny_task.network(), evaluate=lambda network: {"score": next(figures)})


PLATEAU = {
    "schedule": "plateau",
    "patience": 2,
    "gamma": 0.5,
    "lr": 0.008,
    "warmup_iterations": 0,
    "milestones": (),
    "evaluate_every": "2 iterations",
    "log_every": 2,
}
FIGURES = (1.0, 0.5, 0.5, 2.0, 1.0, 2.0, 9.0)  # a plateau at the third, another at the sixth


def test_rate_falls_after_evaluations_without_a_better_figure(tmp_path: Path) -> None:
    tiny_task.run(tmp_path / "run", made=scripted(iter(FIGURES)), **PLATEAU, length="14 iterations")
    assert rates(tmp_path / "run") == pytest.approx([0.008] * 3 + [0.004] * 3 + [0.002])


@pytest.mark.parametrize("stop", [4, 6, 10])
def test_resumed_run_remembers_its_plateaus(tmp_path: Path, stop: int) -> None:
    whole, _ = tiny_task.run(
        tmp_path / "whole", made=scripted(iter(FIGURES)), **PLATEAU, length="14 iterations"
    )
    figures = iter(FIGURES)
    tiny_task.run(tmp_path / "run", made=scripted(figures), **PLATEAU, length=f"{stop} iterations")
    resumed, _ = tiny_task.run(
        tmp_path / "run", made=scripted(figures), **PLATEAU, length="14 iterations", resume=True
    )
    assert rates(tmp_path / "run") == rates(tmp_path / "whole")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def with_error(errors: Iterator[float]) -> tiny_task.TinyTask:
    made = tiny_task.task(tiny_task.network(), training_error="wrong")
    inner = made.losses

    def losses(batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        return {**inner(batch, generator), "wrong": torch.tensor(next(errors))}

    made.losses = losses
    return made


HELD = {
    "warmup_until_error": 0.8,
    "warmup_factor": 0.1,
    "warmup_iterations": 0,
    "milestones": (),
    "lr": 0.02,
    "log_every": 2,
}
ERRORS = (0.9, 0.9, 0.75, 0.95, 0.9, 0.6, 0.95, 0.95, 0.95, 0.95)  # means of two: 0.9, 0.85, 0.75, ...


def test_rate_is_held_until_the_mean_training_error_of_a_line_is_low_enough(tmp_path: Path) -> None:
    made = with_error(iter(ERRORS))
    tiny_task.run(tmp_path / "run", made=made, **HELD, length="10 iterations")
    assert rates(tmp_path / "run") == pytest.approx([0.002] * 3 + [0.02] * 2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "lr" in line]
    assert [line["train/wrong"] for line in logged[:3]] == pytest.approx([0.9, 0.85, 0.75])
    assert logged[0]["loss"] == pytest.approx(logged[0]["loss/near"] + logged[0]["loss/sampled"])
    assert "loss/wrong" not in logged[0]


@pytest.mark.parametrize("stop", [2, 6, 8])
def test_resumed_run_remembers_its_warmup(tmp_path: Path, stop: int) -> None:
    errors = iter(ERRORS)
    tiny_task.run(tmp_path / "run", made=with_error(errors), **HELD, length=f"{stop} iterations")
    tiny_task.run(tmp_path / "run", made=with_error(errors), **HELD, length="10 iterations", resume=True)
    assert rates(tmp_path / "run") == pytest.approx([0.002] * 3 + [0.02] * 2)


def test_a_warmup_that_waits_is_not_linear_too(tmp_path: Path) -> None:
    made = with_error(iter(ERRORS))
    tiny_task.run(tmp_path / "run", made=made, **{**HELD, "warmup_iterations": 500}, length="10 iterations")
    assert rates(tmp_path / "run") == pytest.approx([0.002] * 3 + [0.02] * 2)


def test_what_steers_the_rate_may_not_change_at_resume(tmp_path: Path) -> None:
    tiny_task.run(tmp_path / "a", made=scripted(iter(FIGURES)), **PLATEAU, length="4 iterations")
    with pytest.raises(
        UserError, match=r"evaluate_every was 2 iterations, is 4 iterations.*\(only "
    ) as caught:
        tiny_task.run(
            tmp_path / "a",
            made=scripted(iter(FIGURES)),
            **{**PLATEAU, "evaluate_every": "4 iterations", "log_every": 3},
            resume=True,
        )
    assert "log_every was" not in str(caught.value)
    assert "train.evaluate_every" not in str(caught.value)
    tiny_task.run(tmp_path / "b", made=with_error(iter(ERRORS)), **HELD, length="4 iterations")
    with pytest.raises(UserError, match="log_every was 2, is 5"):
        tiny_task.run(tmp_path / "b", made=with_error(iter(ERRORS)), **{**HELD, "log_every": 5}, resume=True)


@pytest.mark.parametrize(("milestone", "told"), [("50 %", ["4 and are now at none"]), ("5 iterations", [])])
def test_a_milestone_of_the_past_that_moves_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, milestone: str, told: list[str]
) -> None:
    tiny_task.run(tmp_path, milestones=(milestone,), length="8 iterations")
    tiny_task.run(tmp_path, milestones=(milestone,), length="20 iterations", resume=True)
    found = [record.getMessage() for record in caplog.records if "milestones up to" in record.getMessage()]
    assert [text.split(":")[0].removeprefix("milestones up to step 8 were at ") for text in found] == told


def test_what_a_task_does_not_measure_cannot_steer_it(tmp_path: Path) -> None:
    without = tiny_task.task(tiny_task.network(), evaluates=False)
    with pytest.raises(ConfigError, match=r"train\.schedule: plateau looks at evaluations.*set data\.val"):
        tiny_task.run(tmp_path / "a", made=without, **PLATEAU)
    with pytest.raises(ConfigError, match=r"train\.warmup_until_error: this task has no training error"):
        tiny_task.run(tmp_path / "b", **HELD)
