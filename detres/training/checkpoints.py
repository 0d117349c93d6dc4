"""Checkpoints: the whole state of a run after a step, as tensors and plain values, never half-written.

The file is `checkpoints/<step>/state.pt`. `last` and `best` in the run folder are text files that name a checkpoint.
"""

from __future__ import annotations

import logging
import re
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from detres.errors import UserError
from detres.files import atomic_path, write_text

log = logging.getLogger("detres")

FORMAT = 2


def save_checkpoint(
    folder: Path, step: int, state: dict[str, Any], *, best_step: int | None, keep: int
) -> Path:
    """Write `state` as the checkpoint of `step`, name it in `last`, and remove old checkpoints.

    Args:
        folder: The run folder.
        step: Iterations done.
        state: Tensors and plain values (dict, list, str, numbers, None).
        best_step: The checkpoint that `best` names, which is never removed; None: there is none.
        keep: Number of newest checkpoints to keep.

    Raises:
        UserError: No space, or the place cannot be written; earlier checkpoints are untouched.
    """
    path = folder / "checkpoints" / str(step) / "state.pt"
    if not folder.is_dir():
        raise UserError(f"{folder} is gone: somebody removed it during the run")
    try:
        write_tensors(path, {"format": FORMAT, "step": step, **state})
    except BaseException:
        with suppress(OSError):
            path.parent.rmdir()  # unless an older one is in it
        raise
    write_text(folder / "last", f"checkpoints/{step}\n")
    if best_step is not None:
        write_text(folder / "best", f"checkpoints/{best_step}\n")
    _prune(folder, [number for number in _steps(folder) if number <= step][:keep], best_step)
    return path


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values by `torch.save`, whole or not at all.

    Raises:
        UserError: No space, or the place cannot be written.
    """
    with atomic_path(path) as beside, open(beside, "wb") as file:
        try:
            torch.save(content, file)
        except (
            RuntimeError
        ) as error:  # on a full device torch fails again while it closes its archive, which hides the cause
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _prune(folder: Path, newest: list[int], best_step: int | None) -> None:
    """Remove all checkpoints but the `newest` and the best, and files that a killed program left half-written."""
    for path in (folder / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) not in (*newest, best_step):
            shutil.rmtree(path)
    for half_written in (folder / "checkpoints").glob("*/.*"):
        half_written.unlink()


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read the state that `last` names; where it is damaged, the newest whole one before it, with a warning.

    Returns:
        The state on the CPU with its `step`, or None where the run has no checkpoint yet.

    Raises:
        UserError: None of the checkpoints can be read, or one was written by another version.
    """
    steps = _steps(folder)
    last = _named(folder / "last")
    candidates = [step for step in steps if last is None or step <= last] or steps
    damaged = []
    for step in candidates:
        path = folder / "checkpoints" / str(step) / "state.pt"
        try:
            state = _read(path)
        except Exception as error:  # damage may show itself as anything
            damaged.append(str(path))
            log.warning(
                "checkpoint %s cannot be read (%s): trying the one before", path, str(error).split("\n")[0]
            )
            continue
        if state.get("format") != FORMAT:
            raise UserError(
                f"{path} has format {state.get('format')}, this version of detres reads {FORMAT}: "
                "resume with the version that wrote it"
            )
        return state
    if damaged:
        raise UserError(
            f"no checkpoint in {folder} can be read ({', '.join(damaged)} damaged): restore one from a copy, "
            "or start again with --overwrite"
        )
    return None


def read_checkpoint(folder: Path, step: int) -> dict[str, Any] | None:
    """The state of one step; None where it is missing or damaged."""
    try:
        return _read(folder / "checkpoints" / str(step) / "state.pt")
    except Exception:  # damage may show itself as anything
        return None


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()  # torch.load itself does not compare checksums
    if broken:
        raise zipfile.BadZipFile(f"wrong checksum of {broken}")
    return torch.load(path, map_location="cpu", weights_only=True)


def _steps(folder: Path) -> list[int]:
    """Steps that have a state file, newest first."""
    found = [
        int(path.parent.name)
        for path in (folder / "checkpoints").glob("*/state.pt")
        if path.parent.name.isdigit()
    ]
    return sorted(found, reverse=True)


def _named(path: Path) -> int | None:
    match = (
        re.fullmatch(r"checkpoints/(\d+)", path.read_text(encoding="utf-8", errors="replace").strip())
        if path.exists()
        else None
    )
    return int(match[1]) if match else None
