"""What people see while they wait: progress on standard error, tables of results on standard output.

On a terminal a bar (rich); elsewhere one plain line every few seconds.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
log = logging.getLogger("detres")

PLAIN_LINE_SECONDS = 10.0


def progress(
    items: Iterable[Item], description: str, *, total: int | None = None, quiet: bool = False
) -> Iterator[Item]:
    """Yield `items`, showing how far along they are on standard error.

    Args:
        items: What to go through.
        description: The word in front of the bar.
        total: Their number, where `len(items)` does not give it.
        quiet: Show nothing.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if quiet:
        yield from items
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, description, total=total, console=Console(stderr=True), transient=True)
    else:
        yield from _plain_progress(items, description, total)


def _plain_progress(items: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    started = shown = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown >= PLAIN_LINE_SECONDS:
            shown = now
            of_total = f"/{total}, {(now - started) / count * (total - count):.0f} s to go" if total else ""
            print(f"{description}: {count}{of_total}", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on standard output: numbers to the right, text to the left; None reads `n/a`.

    Args:
        title: Above it; may be empty.
        columns: Their names.
        rows: Cells; a float gets three digits, text that reads as a number stands as a number does.
    """
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    rows = list(rows)
    for place, column in enumerate(columns):
        numbers = all(_is_number(row[place]) for row in rows)
        shown.add_column(column, justify="right" if numbers and rows else "left")
    for row in rows:
        shown.add_row(*(_cell(value) for value in row))
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(shown)


def _is_number(value: object) -> bool:
    """Whether a cell holds a number, or nothing that would be text beside numbers."""
    if value is None or value == "":
        return True
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool)


def _cell(value: object) -> str:
    if value is None:
        return "n/a"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
