"""Measuring cases: that the sides agree, then times in turns (A B A B), each side in a process of its own.

Samples during which other processes used the CPU are dropped (see `load`); medians of the rest.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.alone import Sample, Sampled
from benchmarks.cases import Case, Form, Prepared, Side
from detres.console import progress
from detres.networks.arithmetic import counted_operations

FEWEST_OPERATIONS = 1e6  # another runtime's networks are not counted, what is ours around them would be
MOST_OTHER_LOAD = 0.05  # share of the machine that others may use during a sample


class DisagreementError(Exception):
    """The sides of a case do not compute the same, so that their times say nothing."""


@dataclass(frozen=True)
class Times:
    """Seconds of one run over the samples kept.

    Attributes:
        median: Of the kept samples.
        fastest: The smallest.
        slowest: The largest.
        samples: How many were kept.
        dropped: How many were not, for other load; where all were disturbed none is dropped and `disturbed` says so.
        disturbed: Whether other load was there in every sample.
    """

    median: float
    fastest: float
    slowest: float
    samples: int
    dropped: int
    disturbed: bool


@dataclass(frozen=True)
class SideResult:
    """One side of a case, measured.

    Attributes:
        name: The side's.
        form: The form that was fastest.
        times: Seconds of one unit.
        operations: Multiply-adds of one unit, None where they are not counted.
        ceiling_share: Share of the measured ceiling, None where there is none.
        difference: From ours; 0 for ours.
        peak_mib: Peak memory of a process that runs this side alone.
    """

    name: str
    form: str
    times: Times
    operations: float | None
    ceiling_share: float | None
    difference: float
    peak_mib: float | None


def measure(
    case: Case,
    rounds: int,
    *,
    ceiling: float | None,
    start: Callable[[Side, Form], Sampled],
    quiet: bool = False,
) -> list[SideResult]:
    """Ours first, then its peers.

    Args:
        case: What to measure.
        rounds: Samples of each side, taken in turns.
        ceiling: Multiply-adds a second of a large product or convolution in the case's precision; None counts nothing.
        start: Starts a form of a side where it is to be sampled.
        quiet: No progress.

    Raises:
        DisagreementError: A peer's answer is not ours.
    """
    differences, operations = agreement_and_operations(case, count=ceiling is not None)
    sides: dict[str, tuple[Form, Sampled]] = {}
    try:
        for side in case.sides:
            sides[side.name] = _fastest(side, start)
        samples = interleaved(
            {name: side for name, (_, side) in sides.items()}, rounds, case.name, quiet=quiet
        )
        results = []
        for name, (form, side) in sides.items():
            times = summary([Sample(s.seconds / case.units, s.other_load) for s in samples[name]])
            count = operations.get(name)
            share = count / times.median / ceiling if count and ceiling else None
            difference = differences.get(name, 0.0)
            results.append(SideResult(name, form.name, times, count, share, difference, side.peak_mib()))
        return results
    finally:
        for _, side in sides.values():
            side.close()


def agreement_and_operations(case: Case, *, count: bool) -> tuple[dict[str, float], dict[str, float | None]]:
    """The largest difference of each peer from ours, and the multiply-adds of one unit of each side.

    Args:
        case: What is measured.
        count: Whether operations are counted; a side of which PyTorch sees less than `FEWEST_OPERATIONS` has None.
    """
    built = {side.name: [(form, form.prepare()) for form in side.forms] for side in case.sides}
    differences = check_agreement(case, built)
    if not count:
        return differences, {}
    runs = {name: forms[0][1].run for name, forms in built.items()}
    counts = {name: counted_operations(run) for name, run in runs.items()}
    known = {name: count / case.units for name, count in counts.items() if count >= FEWEST_OPERATIONS}
    return differences, {name: known.get(name) for name in runs}


def check_agreement(case: Case, built: dict[str, list[tuple[Form, Prepared]]]) -> dict[str, float]:
    """The largest difference of each peer's answers, whatever its form, from ours.

    Raises:
        DisagreementError: One of them is beyond the case's tolerance.
    """
    with torch.backends.cudnn.flags(
        enabled=True, allow_tf32=False
    ):  # its rounding is another in each order of sums
        ours = built[case.ours.name][0][1].answer()
        answers = {peer.name: [(form, one.answer()) for form, one in built[peer.name]] for peer in case.peers}
    differences = {}
    for peer in case.peers:
        for form, answer in answers[peer.name]:
            agreement = case.compare(ours, answer)
            if agreement.problem:
                raise DisagreementError(f"{case.name}: {label(peer, form)} and ours: {agreement.problem}")
            differences[peer.name] = max(agreement.difference, differences.get(peer.name, 0.0))
    return differences


def label(side: Side, form: Form) -> str:
    """A side's name with its form's, for people."""
    return f"{side.name} ({form.name})" if form.name else side.name


def interleaved(
    sides: Mapping[str, Sampled], rounds: int, description: str = "", *, quiet: bool = True
) -> dict[str, list[Sample]]:
    """`rounds` samples of each, in turns: A B A B; one before them warms each up."""
    for side in sides.values():
        side.sample()
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for _ in progress(range(rounds), description, quiet=quiet):
        for name, side in sides.items():
            samples[name].append(side.sample())
    return samples


def summary(samples: Sequence[Sample], most: float = MOST_OTHER_LOAD) -> Times:
    """Median, smallest and largest of the samples that others did not disturb.

    Args:
        samples: At least one.
        most: Share of the machine that others may use; a sample above it is dropped. Where all are above it, all are
            kept and `disturbed` is set.
    """
    kept = [sample.seconds for sample in samples if sample.other_load is None or sample.other_load <= most]
    disturbed = not kept
    if disturbed:
        kept = [sample.seconds for sample in samples]
    return Times(
        median=statistics.median(kept),
        fastest=min(kept),
        slowest=max(kept),
        samples=len(kept),
        dropped=len(samples) - len(kept),
        disturbed=disturbed,
    )


def _fastest(side: Side, start: Callable[[Side, Form], Sampled]) -> tuple[Form, Sampled]:
    """The form whose sample is fastest, started; a single one is taken as it is."""
    started: list[tuple[Form, Sampled]] = []
    with contextlib.ExitStack() as at_failure:
        for form in side.forms:
            started.append((form, start(side, form)))
            at_failure.callback(started[-1][1].close)
        one = len(started) == 1
        fastest = started[0] if one else min(started, key=lambda pair: pair[1].sample().seconds)
        at_failure.pop_all()
    for _, other in started:
        if other is not fastest[1]:
            other.close()
    return fastest
