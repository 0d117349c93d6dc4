"""From the sources that a configuration or command line names to one data set."""

from __future__ import annotations

from collections.abc import Sequence

from detres.data.config import Source
from detres.data.discover import read_union, resolve_directory
from detres.data.records import Annotations, ReadReport


def read_sources(sources: Sequence[Source]) -> tuple[Annotations, list[ReadReport]]:
    """The union of `sources` as one data set (see `read_union`).

    Args:
        sources: Folders with splits, looked up in `DETRES_DATA`, `datasets/`, here; or drawn `shapes[:COUNT[:SEED]]`.

    Returns:
        Annotations, and for each source what its reader dropped or mended.

    Raises:
        UserError: A source is not there or wrong, or class names differ.
    """
    return read_union([(resolve_directory(source.dir), source.split, source.format) for source in sources])
