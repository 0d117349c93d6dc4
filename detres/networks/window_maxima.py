"""Maxima over many windows of a map at once, and where they are: what RoI max pooling asks for.

A table of maxima over blocks of 2^i x 2^j pixels answers any window with four of its entries (sparse table).
Girshick 2015, §2.1, is what it is for.

Glossary: N images, C channels, H and W the sides of a map, U windows (image, top, bottom, left, right; bottom
and right exclusive; all 0 where empty). A *pixel row* is the C values of one place: row (n * H + y) * W + x
of (N * H * W, C).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHANNEL_BLOCK = 256  # channels worked on at a time, so that tables and gathered rows stay in the cache


def window_maxima(
    rows: Tensor, windows: Tensor, sides: tuple[int, int, int], with_places: bool
) -> tuple[Tensor, Tensor | None]:
    """Maximum of each window and channel (U, C), 0 in empty windows, and the row where it comes first, int32.

    Goes through the channels in blocks, so that tables and gathered rows stay in the cache.
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
    """Windows that the table of level (i, j) answers, and the table's rows that together cover each."""

    i: int
    j: int
    covers: list[Tensor]


def _queries(windows: Tensor, sides: tuple[int, int, int]) -> list[_Query]:
    """Windows, sorted by level, as one query for each level: up to four blocks cover a window."""
    _, height, width = sides
    queries = []
    pairs, counts = torch.unique_consecutive(levels(windows), dim=0, return_counts=True)
    for (i, j), group in zip(pairs.tolist(), windows.split(counts.tolist()), strict=True):
        image, top, bottom, left, right = group.unbind(1)
        lines = (top, bottom - 2**i) if i else (top,)
        columns = (left, right - 2**j) if j else (left,)
        covers = [((image * height + line) * width + column) for line in lines for column in columns]
        queries.append(_Query(i, j, [cover.to(torch.int32) for cover in covers]))
    return queries


def _block_maxima(rows: Tensor, queries: list[_Query], sides: tuple[int, int, int]) -> Tensor:
    """Maximum of each window.

    The table of level (i, j) holds at (y, x) the maximum over 2^i lines and 2^j columns from there; it is
    made of two entries of the level before, and dropped when its windows are done.
    """
    found = []
    lines = table = rows.view(*sides, -1)
    i = j = 0
    for query in queries:
        while i < query.i:
            lines = _doubled(lines, 2**i, dim=1)
            table, i, j = lines, i + 1, 0
        while j < query.j:
            table, j = _doubled(table, 2**j, dim=2), j + 1
        flat = table.view(len(rows), -1)
        maxima = flat.index_select(0, query.covers[0])
        for cover in query.covers[1:]:
            torch.maximum(maxima, flat.index_select(0, cover), out=maxima)
        found.append(maxima)
    return torch.cat(found) if found else rows[:0]


def _doubled(table: Tensor, step: int, dim: int) -> Tensor:
    """Entries joined with those `step` further; the last `step` along `dim` have none and are never asked for."""
    length = table.shape[dim] - step
    joined = table.clone()
    torch.maximum(
        table.narrow(dim, 0, length), table.narrow(dim, step, length), out=joined.narrow(dim, 0, length)
    )
    return joined


def levels(windows: Tensor) -> Tensor:
    """floor(log2) of lines and columns of each window, (U, 2) int64; 0 for empty ones."""
    lengths = torch.stack((windows[:, 2] - windows[:, 1], windows[:, 4] - windows[:, 3]), dim=1)
    return (torch.frexp(lengths.clamp(min=1).double()).exponent - 1).to(torch.int64)


def _to_keys(rows: Tensor) -> Tensor:
    """int64 whose order is that of the values, equal values in reverse order of their rows.

    High half: the float's bits, made monotone by flipping the magnitude of negative ones (+ 0.0 removes the
    minus zero). Low half: -1 - row, unsigned.
    """
    bits = (rows.float() + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    place = 0xFFFFFFFF - torch.arange(len(rows))
    return (ordered.to(torch.int64) << 32) | place[:, None]


def _from_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The values (float32) and the rows (int32) that the keys were made of."""
    ordered = (keys >> 32).to(torch.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32), -1 - keys.to(torch.int32)
