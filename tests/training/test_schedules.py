"""Schedules against values worked by hand."""

from __future__ import annotations

import pytest

from detres.training.schedules import cosine_decay, linear_warmup, rate_factor, step_decay


@pytest.mark.parametrize(
    ("iteration", "factor"), [(0, 0.2), (1, 0.4), (2, 0.6), (3, 0.8), (4, 1.0), (100, 1.0)]
)
def test_warmup_is_a_line(iteration: int, factor: float) -> None:
    assert linear_warmup(iteration, 4, 0.2) == pytest.approx(factor)


def test_no_warmup() -> None:
    assert linear_warmup(0, 0, 0.2) == 1.0


@pytest.mark.parametrize(
    ("iteration", "factor"), [(0, 1.0), (9, 1.0), (10, 0.1), (19, 0.1), (20, 0.01), (99, 0.01)]
)
def test_steps_fall_at_the_milestones(iteration: int, factor: float) -> None:
    assert step_decay(iteration, (10, 20), 0.1) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("iteration", "factor"), [(0, 1.0), (2, 0.75), (3, 0.5), (4, 0.25), (6, 0.0), (7, 0.0)]
)
def test_cosine(iteration: int, factor: float) -> None:
    """cos(pi / 3) = 1/2, cos(pi / 2) = 0, cos(2 pi / 3) = -1/2."""
    assert cosine_decay(iteration, 6) == pytest.approx(factor, abs=1e-12)


def test_warmup_multiplies_the_schedule() -> None:
    def factor(schedule: str) -> float:
        return rate_factor(
            2,
            iterations=6,
            schedule=schedule,  # type: ignore[arg-type]
            milestones=(1,),
            gamma=0.5,
            warmup_iterations=4,
            warmup_factor=0.0,
        )

    assert factor("step") == pytest.approx(0.5 * 0.5)
    assert factor("cosine") == pytest.approx(0.5 * 0.75)
