"""Maxima over many windows of a map at once, and their positions, for RoI max pooling (Girshick 2015, §2.1).

The maximum of any window follows from four entries of a table of maxima over blocks of 2^i x 2^j pixels (sparse table).

Glossary: N images, C channels, H and W the sides of a map, U windows (image, top, bottom, left, right; bottom and right
exclusive; all 0 if empty). A *pixel row* is the C values at one position: row (n * H + y) * W + x of (N * H * W, C).
"""

# pyright: reportUnknownMemberType=false
# because torch leaves some functions partly untyped.

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

CHANNEL_BLOCK = 256  # channels at a time


def window_maxima(
    rows: Tensor, windows: Tensor, sides: tuple[int, int, int], with_places: bool
) -> tuple[Tensor, Tensor | None]:
    """Maximum of each window and channel (U, C), 0 in empty windows, and the first row that has it, int32.

    Channels are processed in blocks, so that tables and gathered rows stay in the cache.
    """
    queries = _queries(windows, sides)
    maxima = rows.new_empty(len(windows), rows.shape[1])
    places = torch.empty(maxima.shape, dtype=torch.int32) if with_places else None
    for first in range(0, rows.shape[1], CHANNEL_BLOCK):
        block = slice(first, first + CHANNEL_BLOCK)
        if places is None:
            maxima[:, block] = _block_maxima(rows[:, block].contiguous(), queries, sides)
        else:
            keys = _block_maxima(_to_keys(rows[:, block]), queries, sides)
            maxima[:, block], places[:, block] = _from_keys(keys)
    maxima[is_empty(windows)] = 0.0
    return maxima, places


def is_empty(windows: Tensor) -> Tensor:
    """(U, 5) to (U,) bool."""
    return windows[:, 1] == windows[:, 2]


@dataclass(frozen=True)
class _Query:
    """The windows of level (i, j), as rows of that level's table.

    Attributes:
        i: log2 of the lines of the table's blocks.
        j: log2 of their columns.
        covers: For each of up to four blocks that together cover a window, the table's rows, int32.
    """

    i: int
    j: int
    covers: list[Tensor]


def _queries(windows: Tensor, sides: tuple[int, int, int]) -> list[_Query]:
    """Windows, sorted by level, as one query for each level."""
    _, height, width = sides
    queries: list[_Query] = []
    pairs, counts = cast(
        "tuple[Tensor, Tensor]",
        torch.unique_consecutive(levels(windows), dim=0, return_counts=True),
    )
    groups = cast("tuple[Tensor, ...]", windows.split(cast("list[int]", counts.tolist())))
    for (i, j), group in zip(cast("list[list[int]]", pairs.tolist()), groups, strict=True):
        image, top, bottom, left, right = group.unbind(1)
        lines = (top, bottom - 2**i) if i else (top,)
        columns = (left, right - 2**j) if j else (left,)
        covers = [((image * height + line) * width + column) for line in lines for column in columns]
        queries.append(_Query(i, j, [cover.to(torch.int32) for cover in covers]))
    return queries


def _block_maxima(rows: Tensor, queries: list[_Query], sides: tuple[int, int, int]) -> Tensor:
    """Maximum of each window.

    The table of level (i, j) has at (y, x) the maximum over the 2^i lines and 2^j columns from there. An entry is the
    maximum of two entries of the level before. A table is dropped when its windows are done.
    """
    parts: list[Tensor] = []
    lines = table = rows.view(*sides, -1)
    i = j = 0
    for query in queries:
        while i < query.i:
            lines = _double(lines, 2**i, dim=1)
            table, i, j = lines, i + 1, 0
        while j < query.j:
            table, j = _double(table, 2**j, dim=2), j + 1
        flat = table.view(len(rows), -1)
        maxima = flat.index_select(0, query.covers[0])
        for cover in query.covers[1:]:
            torch.maximum(maxima, flat.index_select(0, cover), out=maxima)
        parts.append(maxima)
    return torch.cat(parts) if parts else rows[:0]


def _double(table: Tensor, step: int, dim: int) -> Tensor:
    """Maxima of entries and those `step` further; the last `step` along `dim` have none and are never read."""
    length = table.shape[dim] - step
    doubled = table.clone()
    torch.maximum(
        table.narrow(dim, 0, length), table.narrow(dim, step, length), out=doubled.narrow(dim, 0, length)
    )
    return doubled


def levels(windows: Tensor) -> Tensor:
    """floor(log2) of lines and columns of each window, (U, 2) int64; 0 for empty windows."""
    lengths = torch.stack((windows[:, 2] - windows[:, 1], windows[:, 4] - windows[:, 3]), dim=1)
    return (torch.frexp(lengths.clamp(min=1).double()).exponent - 1).to(torch.int64)


def _to_keys(rows: Tensor) -> Tensor:
    """int64 keys in the order of the values, with equal values in reverse order of their rows.

    High half: the float's bits, made monotone by flipping the magnitude of negative values (+ 0.0 turns -0 into 0). Low
    half: -1 - row, unsigned.
    """
    bits = (rows.float() + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    place = 0xFFFFFFFF - torch.arange(len(rows))
    return (ordered.to(torch.int64) << 32) | place[:, None]


def _from_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The values (float32) and the rows (int32) of the keys."""
    ordered = (keys >> 32).to(torch.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32), -1 - keys.to(torch.int32)
