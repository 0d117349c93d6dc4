"""Files as people's tools leave them: text that must be UTF-8, names that their systems hide.

Readers list folders and read text through here, so that what is no data is left out, and told, alike.
"""

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


def visible(paths: Iterable[Path], under: Path | None = None) -> Iterator[Path]:
    """Those whose names do not begin with a dot: macOS puts `._1.jpg` (no picture) beside `1.jpg` on foreign disks.

    Args:
        paths: Files and folders.
        under: Folders between this one and a path must not be hidden either (`.ipynb_checkpoints`).
    """
    for path in paths:
        names = path.relative_to(under).parts if under else (path.name,)
        if not any(name.startswith(".") for name in names):
            yield path
