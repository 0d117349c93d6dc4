"""What the training tools share: the configuration as it is printed at the start of a run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detres.config import Section

log = logging.getLogger("detres")


def log_configuration(config: Section) -> None:
    """Log the keys that differ from the defaults, one a line as `--set` takes them; the whole is in config.yaml."""
    from detres.config import differences

    changed = differences(config)
    lines = "".join(f"\n  {key}={_flow(_without_nulls(value))}" for key, value in changed.items())
    log.info("configuration, where it differs from the defaults:%s", lines or " nowhere")


def _without_nulls(value: object) -> object:
    """The value without keys of mappings that say nothing (a source's split and format, where none is given)."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def _flow(value: object) -> str:
    """YAML in one line: `[{dir: bccd, split: train}]`."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
