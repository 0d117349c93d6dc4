"""What is measured: a case has ours and its peers, each in one or several forms, and says when they agree.

A form is built by a function without arguments that can be pickled, so that a process of its own can build and time it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

OURS = "detres"
TORCHVISION = "torchvision"


@dataclass(frozen=True)
class Prepared:
    """A form that is ready: what is timed, and what gives the answer that is compared (None: `run` does)."""

    run: Callable[[], Any]
    answer: Callable[[], Any] | None = None

    def get_answer(self) -> Any:
        """What is compared."""
        return (self.answer or self.run)()


Prepare = Callable[[], Prepared]
Forms = Mapping[str, Prepare]  # by name, e.g. `channels-last`; the name is empty where there is one form


@dataclass(frozen=True)
class Agreement:
    """How two answers compare: the largest difference, and why they do not agree (empty where they do)."""

    difference: float
    problem: str = ""


@dataclass(frozen=True)
class Case:
    """One row of a comparison.

    Attributes:
        name: As in `--json`, e.g. `infer float32`.
        ours: Builds our side.
        peers: The forms of each peer, the fastest of which is measured; may be empty.
        compare: From our answer and a peer's to how they agree.
        precision: Of the arithmetic, where operations are counted and set against the ceiling.
        units: Things done in one run (e.g. images); seconds are given for one of them.
        note: A line under the table.
    """

    name: str
    ours: Prepare
    peers: Mapping[str, Forms] = field(default_factory=dict)
    compare: Callable[[Any, Any], Agreement] = lambda ours, theirs: Agreement(0.0)
    precision: torch.dtype | None = None
    units: int = 1
    note: str = ""

    @property
    def sides(self) -> dict[str, Forms]:
        """Ours, then the peers."""
        return {OURS: {"": self.ours}, **self.peers}


def torchvision_layouts(prepare: Callable[[bool], Prepared]) -> dict[str, Forms]:
    """Torchvision's side, contiguous and channels-last (the argument of `prepare`)."""
    layouts = {"contiguous": False, "channels-last": True}
    return {TORCHVISION: {name: partial(prepare, channels_last) for name, channels_last in layouts.items()}}


def autocast(device: str, low: bool) -> AbstractContextManager[object]:
    """bfloat16 by autocast where `low`, else nothing."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=low)


def within(difference: float, tolerance: float, what: str) -> Agreement:
    """Agreement where a difference is a number within the tolerance."""
    if difference <= tolerance:
        return Agreement(difference)
    problem = f"the largest difference of {what} is {difference:.3g}, more than {tolerance:g}"
    return Agreement(difference, problem)
