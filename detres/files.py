"""Files that are whole or not there: written beside, synced, renamed.

Whatever the exit status, no half-written file and no earlier result destroyed.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from detres.errors import UserError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` when the block ends well and removed when it does not.

    Args:
        path: The file to make or replace; its folder is made where missing.

    Yields:
        A path in the same folder, with the same suffix.

    Raises:
        UserError: No space left on the device, or the place cannot be written.
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left on the device for {path}: free some or choose another folder"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise UserError(f"cannot write {path}: {error.strerror}; choose another place") from error
        raise
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def refuse_blocked(*paths: str | Path | None) -> None:
    """Refuse, before the work, files that cannot be made: a folder has their name, or a file that of their folder.

    Args:
        paths: Files to be written; None is none.

    Raises:
        UserError: What is in the place of the first such file.
    """
    for path in (Path(path) for path in paths if path is not None):
        try:
            there = path.is_dir()
            parent = path if there else next(place for place in path.absolute().parents if place.exists())
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}; choose another place") from error
        if there or not parent.is_dir():
            raise UserError(f"{path} cannot be written: {parent} is in its place")
        if not os.access(parent, os.W_OK):
            raise UserError(
                f"{path} cannot be written: nothing may be written in {parent}; choose another place"
            )


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text whole or not at all (see `atomic_path`)."""
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as JSON, whole or not at all; a NaN is refused, a figure that does not exist is None."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
