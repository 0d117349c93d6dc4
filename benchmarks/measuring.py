"""Measuring cases: that the sides agree, then times in turns (A B A B), each side in a process of its own.

Samples during which other processes used the CPU are dropped (see `sampling`); medians of the rest.
"""

from __future__ import annotations

import contextlib
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.cases import OURS, Case, Forms, Prepare, Prepared
from benchmarks.ceiling import measure_ceiling
from benchmarks.sampling import STAT, Sample, Sampled, SideAlone
from benchmarks.tables import SideResult, Times, as_json, label, print_table
from detres.console import progress
from detres.networks.arithmetic import count_dispatched_multiply_adds

FEWEST_OPERATIONS = 1e6  # another runtime's networks are not counted, what is ours around them would be
MOST_OTHER_LOAD = 0.05  # share of the machine that others may use during a sample
Start = Callable[[str, Prepare], Sampled]  # from a side's name and a form of it


class DisagreementError(Exception):
    """The sides of a case do not compute the same, so that their times say nothing."""


def measure_cases(
    cases: Sequence[Case],
    *,
    rounds: int,
    device: torch.device,
    title: str = "",
    same_allocator: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure the ceilings, then case by case; print a table of each, and give what `--json` holds.

    Args:
        cases: What to measure.
        rounds: Samples of each side.
        device: Where it runs.
        title: Of one table for all cases, which then have no peers.
        same_allocator: Peers keep freed memory as our tools do; else they run as PyTorch's defaults have it.
        quiet: No progress.

    Returns:
        `cases` by name (see `tables.as_json`), and `measurement`: machine, threads, ceilings, how the samples lay.

    Raises:
        DisagreementError: A peer's answer is not ours.
    """
    precisions = dict.fromkeys(case.precision for case in cases if case.precision)
    ceilings = {precision: measure_ceiling(precision, device) for precision in precisions}
    flops = {str(precision).removeprefix("torch."): 2 * value for precision, value in ceilings.items()}
    _print_machine(device, flops)

    def start(name: str, prepare: Prepare) -> Sampled:
        return SideAlone(prepare, device, keep_memory=same_allocator or name == OURS)

    results = {}
    for case in cases:
        ceiling = ceilings[case.precision] if case.precision else None
        results[case.name] = measure(case, rounds, ceiling=ceiling, start=start, quiet=quiet)
        if not title:
            print_table(case.name, [(label(r.name, r.form), r) for r in results[case.name]], case.note)
    if title:
        print_table(title, [(name, ours) for name, (ours,) in results.items()])
    measurement = {
        "machine": platform.platform(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "same_allocator": same_allocator,
        "ceilings": flops,
        "samples": {name: [asdict(side) for side in sides] for name, sides in results.items()},
    }
    return {"cases": {name: as_json(sides) for name, sides in results.items()}, "measurement": measurement}


def measure(
    case: Case, rounds: int, *, ceiling: float | None, start: Start, quiet: bool = False
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
    differences, operations = check_and_count(case, count=ceiling is not None)
    with contextlib.ExitStack() as at_end:
        forms: dict[str, str] = {}
        sides: dict[str, Sampled] = {}
        for name, candidates in case.sides.items():
            forms[name], sides[name] = _start_fastest(name, candidates, start)
            at_end.callback(sides[name].close)
        samples = sample_in_turns(sides, rounds, case.name, quiet=quiet)
        results = []
        for name, side in sides.items():
            times = summarize([Sample(s.seconds / case.units, s.other_load) for s in samples[name]])
            count = operations.get(name)
            share = count / times.median / ceiling if count and ceiling else None
            difference = differences.get(name, 0.0)
            results.append(SideResult(name, forms[name], times, count, share, difference, side.peak_mib()))
    return results


def check_and_count(case: Case, *, count: bool) -> tuple[dict[str, float], dict[str, float]]:
    """The largest difference of each peer from ours, and the multiply-adds of one unit of each side.

    Args:
        case: What is measured.
        count: Whether operations are counted; a side of which PyTorch sees less than `FEWEST_OPERATIONS` has none.

    Raises:
        DisagreementError: A form of a peer is beyond the case's tolerance.
    """
    built = {name: {form: prepare() for form, prepare in forms.items()} for name, forms in case.sides.items()}
    differences = _largest_differences(case, built)
    if not count:
        return differences, {}
    counts = {
        name: count_dispatched_multiply_adds(next(iter(forms.values())).run) / case.units
        for name, forms in built.items()
    }
    return differences, {
        name: count for name, count in counts.items() if count * case.units >= FEWEST_OPERATIONS
    }


def _largest_differences(case: Case, built: Mapping[str, Mapping[str, Prepared]]) -> dict[str, float]:
    # TF32 rounds differently in each order of sums.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        answers = {
            (name, form): one.get_answer() for name, forms in built.items() for form, one in forms.items()
        }
    ours = answers.pop((OURS, ""))
    differences: dict[str, float] = {}
    for (name, form), answer in answers.items():
        agreement = case.compare(ours, answer)
        if agreement.problem:
            raise DisagreementError(f"{case.name}: {label(name, form)} and ours: {agreement.problem}")
        differences[name] = max(agreement.difference, differences.get(name, 0.0))
    return differences


def sample_in_turns(
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


def summarize(samples: Sequence[Sample]) -> Times:
    """Median, smallest and largest of the samples that others did not disturb.

    A sample is dropped where others used more than `MOST_OTHER_LOAD` of the machine. Where all are above it, all are
    kept and `disturbed` is set.
    """
    kept = [s.seconds for s in samples if s.other_load is None or s.other_load <= MOST_OTHER_LOAD]
    disturbed = not kept
    if disturbed:
        kept = [sample.seconds for sample in samples]
    dropped = len(samples) - len(kept)
    return Times(statistics.median(kept), min(kept), max(kept), len(kept), dropped, disturbed)


def _start_fastest(name: str, forms: Forms, start: Start) -> tuple[str, Sampled]:
    """The form whose sample is fastest, started; a single one is taken as it is."""
    started: dict[str, Sampled] = {}
    with contextlib.ExitStack() as at_failure:
        for form, prepare in forms.items():
            started[form] = start(name, prepare)
            at_failure.callback(started[form].close)
        first = next(iter(forms))
        best = first if len(forms) == 1 else min(started, key=lambda form: started[form].sample().seconds)
        at_failure.pop_all()
    for form, side in started.items():
        if form != best:
            side.close()
    return best, started[best]


def _print_machine(device: torch.device, flops: Mapping[str, float]) -> None:
    """Where it runs, and the ceiling of each precision."""
    reached = ", ".join(f"{precision} {value / 1e9:.0f} GFLOP/s" for precision, value in flops.items())
    ceiling = f"; ceiling (a large product or convolution): {reached}" if reached else ""
    print(f"{device_name(device)}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}{ceiling}")
    if not STAT.exists():
        print(f"{STAT} is not there: load of other processes is not known, no sample is dropped for it")


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
