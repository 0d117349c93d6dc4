"""What the training tools share: the default run folder, the configuration as it is printed at the start of a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detres.config import Section

log = logging.getLogger("detres")


def default_out(cfg: Path | None, otherwise: str) -> Path:
    """The run folder without `--out`: `runs/` and the name of `cfg`, else of what is trained.

    The name of a shipped recipe has its folder (`voc/r101_c4`), because several folders have files of one name; the
    name of a user's own file is its stem.

    Raises:
        ConfigError: `cfg` is neither a file nor a shipped recipe.
    """
    if cfg is None:
        return Path("runs") / otherwise
    from detres.config import find_recipe, recipes_folder

    path, folder = find_recipe(cfg), recipes_folder()
    if path.resolve().is_relative_to(folder):
        return Path("runs") / path.resolve().relative_to(folder).with_suffix("")
    return Path("runs") / path.stem


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
