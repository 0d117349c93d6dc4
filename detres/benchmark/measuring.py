"""Measuring cases: that the sides agree, then times in turns (A B A B), memory in processes of their own.

Samples during which other processes used the CPU are dropped (see `load`); medians of the rest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from detres.benchmark import load
from detres.benchmark.cases import Case, Form, Prepared, Side
from detres.benchmark.operations import counted_operations
from detres.console import progress

SHORTEST_SAMPLE = (
    0.1  # seconds; shorter runs are repeated within a sample (/proc/stat counts in steps of 0.01 s)
)
MOST_OTHER_LOAD = 0.05  # share of the machine that others may use during a sample


class DisagreementError(Exception):
    """The sides of a case do not compute the same, so that their times say nothing."""


@dataclass(frozen=True)
class Sample:
    """One timed sample: seconds of one run, and the share of the machine that others used (None: not known)."""

    seconds: float
    other_load: float | None


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
    device: torch.device,
    *,
    ceiling: float | None,
    peak_mib: Callable[[str, str], float | None],
    quiet: bool = False,
) -> list[SideResult]:
    """Ours first, then its peers.

    Args:
        case: What to measure.
        rounds: Samples of each side, taken in turns.
        device: Where it runs.
        ceiling: Multiply-adds a second of a large product or convolution in the case's precision; None counts nothing.
        peak_mib: From the names of a side and a form to the peak memory of a process that runs it alone.
        quiet: No progress.

    Raises:
        DisagreementError: A peer's answer is not ours.
    """
    built = {side.name: [(form, form.prepare()) for form in side.forms] for side in case.sides}
    differences = check_agreement(case, built)
    fastest = {name: _fastest(forms, device) for name, forms in built.items()}
    built.clear()  # the other forms' memory goes
    operations = {
        name: (counted_operations(prepared.run) / case.units or None) if ceiling else None  # 0: not PyTorch's
        for name, (_, prepared) in fastest.items()
    }
    runs = {name: prepared.run for name, (_, prepared) in fastest.items()}
    samples = interleaved(runs, rounds, device, description=case.name, quiet=quiet)
    del runs
    forms = {name: form.name for name, (form, _) in fastest.items()}
    fastest.clear()
    results = []
    for side in case.sides:
        times = summary([Sample(s.seconds / case.units, s.other_load) for s in samples[side.name]])
        count = operations[side.name]
        results.append(
            SideResult(
                side.name,
                forms[side.name],
                times,
                count,
                count / times.median / ceiling if count and ceiling else None,
                differences.get(side.name, 0.0),
                peak_mib(side.name, forms[side.name]),
            )
        )
    return results


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
    runs: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    *,
    description: str = "",
    quiet: bool = True,
) -> dict[str, list[Sample]]:
    """`rounds` samples of each, in turns: A B A B.

    Short runs are repeated so that a sample lasts; the run that finds out how often is a warm-up.
    """
    repeats = {}
    for name, run in runs.items():
        first = _seconds(run, device, 1)
        repeats[name] = max(1, round(SHORTEST_SAMPLE / max(first, 1e-6)))
    cores = load.cores()
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for _ in progress(range(rounds), description, quiet=quiet):
        for name, run in runs.items():
            before = load.read_cpu_times()
            seconds = _seconds(run, device, repeats[name])
            other = load.other_load(before, load.read_cpu_times(), cores)
            samples[name].append(Sample(seconds, other))
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


def _fastest(forms: list[tuple[Form, Prepared]], device: torch.device) -> tuple[Form, Prepared]:
    """The form whose second run is fastest; a single one is taken as it is."""
    if len(forms) == 1:
        return forms[0]
    for _, prepared in forms:
        _seconds(prepared.run, device, 1)
    return min(forms, key=lambda form: _seconds(form[1].run, device, 1))


def _seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of one run, over `repeats` of them; a GPU is waited for."""
    _synchronise(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        run()
    _synchronise(device)
    return (time.perf_counter() - begun) / repeats


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
