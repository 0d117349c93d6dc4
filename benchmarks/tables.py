"""What was measured, for people (a table) and for machines (`--json`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import OURS
from detres.console import table

COLUMNS = ("", "median", "min - max", "ratio", "peak MiB", "GMAC", "ceiling", "difference", "samples")


@dataclass(frozen=True)
class Times:
    """Seconds of one run: median, smallest and largest of the `samples` that were kept.

    `dropped` were not, for other load. Where there was other load in every sample, none is dropped and `disturbed` is
    set.
    """

    median: float
    fastest: float
    slowest: float
    samples: int
    dropped: int
    disturbed: bool


@dataclass(frozen=True)
class SideResult:
    """One side of a case, measured in the form that was fastest.

    Times and multiply-adds are of one unit. `difference` is from ours. What does not exist is None.
    """

    name: str
    form: str
    times: Times
    operations: float | None
    ceiling_share: float | None
    difference: float
    peak_mib: float | None


def label(name: str, form: str) -> str:
    """A side's name with its form's, for people."""
    return f"{name} ({form})" if form else name


def print_table(title: str, results: Sequence[tuple[str, SideResult]], note: str = "") -> None:
    """A table of results, each with the name of its row; ratios are to the first, which is ours."""
    ours = results[0][1]
    table(title, COLUMNS, [(name, *_cells(result, ours)) for name, result in results])
    if any(result.times.disturbed for _, result in results):
        print("(*) other processes used the CPU during every sample: none was dropped, do not rely on these")
    if note:
        print(note)


def _cells(result: SideResult, ours: SideResult) -> tuple[str, ...]:
    """As `COLUMNS`, without the first."""
    times = result.times
    return (
        duration(times.median),
        f"{duration(times.fastest)} - {duration(times.slowest)}",
        "" if result.name == OURS else f"{times.median / ours.times.median:.2f}",
        "n/a" if result.peak_mib is None else f"{result.peak_mib:.0f}",
        "n/a" if result.operations is None else f"{result.operations / 1e9:.1f}",
        "n/a" if result.ceiling_share is None else f"{100 * result.ceiling_share:.0f} %",
        "" if result.name == OURS else f"{result.difference:.2g}",
        f"{times.samples}{' (*)' if times.disturbed else ''}{f', {times.dropped} dropped' if times.dropped else ''}",
    )


def as_json(results: Sequence[SideResult]) -> dict[str, Any]:
    """A case as `--json` has it: seconds are medians, the ratio is peer / ours."""
    ours, *peers = results
    return {
        "seconds": ours.times.median,
        "peak_rss_mib": ours.peak_mib,
        "ceiling_share": ours.ceiling_share,
        "peers": {
            peer.name: {
                "seconds": peer.times.median,
                "ratio": peer.times.median / ours.times.median,
                "peak_rss_mib": peer.peak_mib,
                "difference": peer.difference,
            }
            for peer in peers
        },
    }


def duration(seconds: float) -> str:
    """Seconds with a unit that suits them."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
