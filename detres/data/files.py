"""Reads text and lists folders for all readers, so that encodings and hidden files are treated alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from detres.errors import DataError


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        DataError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def read_names(path: Path) -> list[str]:
    """The class names in a text file with one name a line (`classes.txt`, `obj.names`); empty lines are skipped.

    Raises:
        DataError: It cannot be read, or is not UTF-8.
    """
    return [name for line in read_text(path).splitlines() if (name := line.strip())]


def visible(paths: Iterable[Path], under: Path | None = None) -> Iterator[Path]:
    """The paths whose names do not begin with a dot: macOS puts `._1.jpg` (no image) beside `1.jpg` on some disks.

    Args:
        paths: Files and folders.
        under: If given, the folders between it and a path must not be hidden either (`.ipynb_checkpoints`).
    """
    for path in paths:
        names = path.relative_to(under).parts if under else (path.name,)
        if not any(name.startswith(".") for name in names):
            yield path
