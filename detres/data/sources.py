"""From the sources that a configuration or command line names to one data set, and what readers dropped told."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from detres.data.config import Source
from detres.data.formats import read_union, resolve_directory
from detres.data.records import Annotations, ReadReport
from detres.errors import listed

log = logging.getLogger("detres")


def read_sources(sources: Sequence[Source]) -> tuple[Annotations, list[ReadReport]]:
    """The union of `sources` as one data set (see `read_union`).

    Args:
        sources: Folders with splits, looked up in `DETRES_DATA`, `datasets/`, here; or drawn `shapes[:COUNT[:SEED]]`.

    Returns:
        Annotations, and for each source what its reader dropped or mended (to `log_reports`: never silent).

    Raises:
        UserError: A source is not there or wrong, or class names differ.
    """
    return read_union([(resolve_directory(source.dir), source.split, source.format) for source in sources])


def log_reports(reports: Iterable[ReadReport]) -> None:
    """Warn of what readers dropped or mended: one line for each kind, with its count and the first places."""
    for report in reports:
        for kind, count in report.counts().items():
            where = [defect.where for defect in report.defects if defect.kind == kind]
            log.warning("data: %d x %s: %s", count, kind, listed(where, 5))
