"""What was measured, for people (a table) and for machines (`--json`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cases import Case
from benchmarks.measuring import SideResult
from detres.console import table

COLUMNS = ("", "median", "min - max", "ratio", "peak MiB", "GMAC", "ceiling", "difference", "samples")


def print_case(case: Case, results: Sequence[SideResult]) -> None:
    """A table of ours and its peers.

    Args:
        case: What was measured.
        results: From `measure`.
    """
    ours = results[0]
    rows = [_row(result, ours) for result in results]
    table(case.name, COLUMNS, rows)
    if any(result.times.disturbed for result in results):
        print("(*) other processes used the CPU during every sample: none was dropped, do not rely on these")
    if case.note:
        print(case.note)


def _row(result: SideResult, ours: SideResult) -> tuple[str, ...]:
    """As `COLUMNS`."""
    return (
        f"{result.name} ({result.form})" if result.form else result.name,
        duration(result.times.median),
        f"{duration(result.times.fastest)} - {duration(result.times.slowest)}",
        "" if result is ours else f"{ratio(result, ours):.2f}",
        "n/a" if result.peak_mib is None else f"{result.peak_mib:.0f}",
        "n/a" if result.operations is None else f"{result.operations / 1e9:.1f}",
        "n/a" if result.ceiling_share is None else f"{100 * result.ceiling_share:.0f} %",
        "" if result is ours else f"{result.difference:.2g}",
        samples_of(result),
    )


def print_together(title: str, results: Mapping[str, SideResult]) -> None:
    """One table of cases that have no peers.

    Args:
        title: Over the table.
        results: Of ours, by the case's name.
    """
    rows = [
        (name, *row[1:3], *row[4:7], row[8])
        for name, result in results.items()
        for row in (_row(result, ours=result),)
    ]
    table(title, (*COLUMNS[:3], *COLUMNS[4:7], COLUMNS[8]), rows)


def samples_of(result: SideResult) -> str:
    """Samples kept, and how many were dropped for other load."""
    times = result.times
    dropped = f", {times.dropped} dropped" if times.dropped else ""
    return f"{times.samples}{' (*)' if times.disturbed else ''}{dropped}"


def ratio(peer: SideResult, ours: SideResult) -> float:
    """How many times as long the peer takes: medians, peer / ours."""
    return peer.times.median / ours.times.median


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
                "ratio": ratio(peer, ours),
                "peak_rss_mib": peer.peak_mib,
                "difference": peer.difference,
            }
            for peer in peers
        },
    }


def sampling_as_json(results: Sequence[SideResult]) -> dict[str, Any]:
    """How each side's samples lay: form, smallest, largest, kept and dropped; its multiply-adds."""
    return {
        result.name: {
            "form": result.form,
            "fastest": result.times.fastest,
            "slowest": result.times.slowest,
            "samples": result.times.samples,
            "dropped": result.times.dropped,
            "disturbed": result.times.disturbed,
            "multiply_adds": result.operations,
            "ceiling_share": result.ceiling_share,
        }
        for result in results
    }


def duration(seconds: float) -> str:
    """Seconds with a unit that suits them."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
