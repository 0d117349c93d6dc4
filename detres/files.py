"""Atomic writing of files: write to a temporary file, sync, rename.

Whatever the exit status, no file is half-written and no earlier result is lost.
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
    """A path to write to, which is renamed to `path` if the block succeeds and removed if it fails.

    Args:
        path: The file to create or replace; its folder is created if missing.

    Yields:
        A path in the same folder, with the same suffix.

    Raises:
        UserError: No space is left on the device, or the file cannot be written.
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


def check_writable(*paths: str | Path | None) -> None:
    """Refuse, before the work, output files that cannot be written.

    Args:
        paths: The output files; None is skipped.

    Raises:
        UserError: A folder has the name of the file, a file has the name of its folder, or the folder is read-only.
    """
    for path in (Path(path) for path in paths if path is not None):
        try:
            is_folder = path.is_dir()
            parent = path if is_folder else next(place for place in path.absolute().parents if place.exists())
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}; choose another place") from error
        if is_folder or not parent.is_dir():
            raise UserError(f"{path} cannot be written: {parent} is in its place")
        if not os.access(parent, os.W_OK):
            raise UserError(
                f"{path} cannot be written: nothing may be written in {parent}; choose another place"
            )


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text completely or not at all (see `atomic_path`)."""
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as JSON, completely or not at all; NaN is refused, so that a missing figure must be None."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
