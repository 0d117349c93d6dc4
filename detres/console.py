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
    """Print a table on standard output; None reads `n/a`, fractions get three digits."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        shown.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        shown.add_row(*(_cell(value) for value in row))
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(shown)


def _cell(value: object) -> str:
    if value is None:
        return "n/a"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
