"""Progress on standard error and tables of results on standard output.

Progress is a bar (rich) on a terminal and a plain line every few seconds elsewhere.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, TypeVar, cast

Item = TypeVar("Item")
log = logging.getLogger("detres")

PLAIN_LINE_SECONDS = 10.0


def progress(
    items: Iterable[Item], description: str, *, total: int | None = None, quiet: bool = False
) -> Iterator[Item]:
    """Yield `items` and show the progress on standard error.

    Args:
        items: What to iterate over.
        description: The text in front of the bar.
        total: Their number, if `len(items)` does not give it.
        quiet: Show nothing.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(cast(Sized, items))
    if quiet:
        yield from items
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, description, total=total, console=Console(stderr=True), transient=True)
    else:
        yield from _plain_progress(items, description, total)


def _plain_progress(items: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    start = last_line = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last_line >= PLAIN_LINE_SECONDS:
            last_line = now
            of_total = f"/{total}, {(now - start) / count * (total - count):.0f} s to go" if total else ""
            print(f"{description}: {count}{of_total}", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on standard output, numbers right-aligned and text left-aligned; None reads `n/a`.

    Args:
        title: The line above the table; may be empty.
        columns: The names of the columns.
        rows: The cells; a float gets three digits, and text that reads as a number is aligned as one.
    """
    from rich.console import Console
    from rich.table import Table

    table_view = Table(title=title, title_justify="left")
    rows = list(rows)
    for place, column in enumerate(columns):
        numbers = all(_is_number(row[place]) for row in rows)
        table_view.add_column(column, justify="right" if numbers and rows else "left")
    for row in rows:
        table_view.add_row(*(_cell(value) for value in row))
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(table_view)


def _is_number(value: object) -> bool:
    """Whether a cell is aligned as a number: a number, text that reads as one, or nothing."""
    if value is None or value == "":
        return True
    try:
        float(cast(Any, value))
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool)


def _cell(value: object) -> str:
    if value is None:
        return "n/a"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
