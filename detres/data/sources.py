"""From the sources that a configuration or command line names to one data set: folders of any format, or drawn shapes."""

from __future__ import annotations

from collections.abc import Sequence

from detres.data.config import Source
from detres.data.discover import read_union, resolve_directory
from detres.data.records import Annotations, ReadReport
from detres.data.shapes import is_shapes, read_shapes
from detres.errors import ConfigError


def read_sources(sources: Sequence[Source]) -> tuple[Annotations, list[ReadReport]]:
    """The union of `sources` as one data set.

    Args:
        sources: Folders with splits (looked up in `DETRES_DATA`, `datasets/`, here), or one `shapes[:COUNT[:SEED]]`.

    Returns:
        Annotations, and for each source what its reader dropped or mended.

    Raises:
        UserError: A source is not there or wrong, class names differ, or drawn and stored data are mixed.
    """
    drawn = [source for source in sources if is_shapes(source.dir)]
    if drawn and len(sources) > 1:
        raise ConfigError(
            f"data '{drawn[0].dir}' is drawn and stands alone: it cannot be joined with other sources"
        )
    if drawn:
        return read_shapes(drawn[0].dir, drawn[0].split), []
    return read_union([(resolve_directory(source.dir), source.split, source.format) for source in sources])
