"""Schedules against values worked by hand."""

from __future__ import annotations

import pytest

from detres.training.schedules import Plateau, cosine_decay, linear_warmup, rate_factor, step_decay


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


def test_plateaus_and_a_held_warmup():
    def factor(plateaus: int, held: bool, iteration: int) -> float:
        return rate_factor(
            iteration,
            iterations=100,
            schedule="plateau",
            milestones=(1,),
            gamma=0.1,
            warmup_iterations=10,
            warmup_factor=0.2,
            plateaus=plateaus,
            held=held,
        )

    assert factor(0, False, 50) == 1
    assert factor(2, False, 50) == pytest.approx(0.01)
    assert factor(1, False, 5) == pytest.approx(0.1 * 0.6)
    assert factor(0, True, 50) == factor(0, True, 0) == 0.2


@pytest.mark.parametrize("lower_is_better", [True, False])
def test_plateau_after_evaluations_that_are_no_better(lower_is_better: bool):
    """By hand: patience 2, margin 1; a better one forgets those before it; after a plateau the count begins anew."""
    plateau = Plateau()
    figures = [9.0, 8.5, 7.9, 7.0, 7.2, 6.5, 6.9, 6.95, 5.0]
    #         first  -    *    -    !    *    -    !     *    (* better than the best by more than 1; ! plateau)
    expected = [0, 0, 0, 0, 1, 1, 1, 2, 2]
    for figure, met in zip(figures, expected, strict=True):
        signed = figure if lower_is_better else -figure
        found = plateau.add(signed, lower_is_better=lower_is_better, patience=2, margin=1.0)
        assert (plateau.met, found) == (met, figure in (7.2, 6.95))
    assert plateau.best == (5.0 if lower_is_better else -5.0)
    equal = Plateau()
    assert [equal.add(1.0, lower_is_better=True, patience=1, margin=0.0) for _ in range(3)] == [
        False,
        True,
        True,
    ]
