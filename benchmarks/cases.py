"""What is measured: a case has ours and its peers, each in one or several forms, and says when they agree.

A form is built by `prepare` alone, from numbers and a seed, so that a process of its own can build and measure it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

OURS = "detres"
TORCHVISION = "torchvision"


@dataclass(frozen=True)
class Prepared:
    """A form that is ready.

    Attributes:
        run: One sample of what is timed.
        answer: What is compared with the others' answers.
    """

    run: Callable[[], Any]
    answer: Callable[[], Any]


@dataclass(frozen=True)
class Form:
    """One way to do it, e.g. channels-last.

    Attributes:
        name: A word or two for the table; empty where there is only one form.
        prepare: Builds it.
    """

    name: str
    prepare: Callable[[], Prepared]


@dataclass(frozen=True)
class Side:
    """Ours or a peer, with the forms among which the fastest is taken."""

    name: str
    forms: tuple[Form, ...]


@dataclass(frozen=True)
class Agreement:
    """How two answers compare.

    Attributes:
        difference: The largest difference.
        problem: Why they do not agree; empty where they do.
    """

    difference: float
    problem: str = ""


@dataclass(frozen=True)
class Case:
    """Something that is measured.

    Attributes:
        name: As in `--json`, e.g. `infer float32`.
        ours: Our side.
        peers: What it is measured against; may be empty.
        compare: From our answer and a peer's to how they agree.
        precision: Of the arithmetic, where operations are counted and set against the ceiling.
        units: Things done in one run (e.g. pictures); seconds are given for one of them.
        note: A line under the table.
    """

    name: str
    ours: Side
    peers: tuple[Side, ...] = ()
    compare: Callable[[Any, Any], Agreement] = lambda ours, theirs: Agreement(0.0)
    precision: torch.dtype | None = None
    units: int = 1
    note: str = ""

    @property
    def sides(self) -> tuple[Side, ...]:
        """Ours, then the peers."""
        return (self.ours, *self.peers)


def one_form(name: str, prepare: Callable[[], Prepared]) -> Side:
    """A side that has one form only."""
    return Side(name, (Form("", prepare),))


def same_run_and_answer(run: Callable[[], Any]) -> Prepared:
    """A form that is compared by what its run gives."""
    return Prepared(run, run)


def within(difference: float, tolerance: float, what: str) -> Agreement:
    """Agreement where a difference is a number within the tolerance."""
    if difference <= tolerance:
        return Agreement(difference)
    return Agreement(
        difference, f"the largest difference of {what} is {difference:.3g}, more than {tolerance:g}"
    )
