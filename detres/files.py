"""Files are written whole or not at all, and nothing that a user owns is replaced unasked.

A file is written under a temporary name in the folder where it will lie, synced, and renamed. Links are resolved first:
the file that a link leads to is replaced, and the link stays. Pipes and devices cannot be replaced, so the finished
content is copied into them.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from detres.errors import UserError, listed

TEMPORARY = ".detres-"  # how the names of files begin that are being written
LONGEST_SUFFIX = 16  # characters: a longer "suffix" is a name with a dot in it
_numbers = itertools.count()


@contextmanager
def atomic_path(path: str | Path, *, follow_link: bool = True) -> Iterator[Path]:
    """A path to write to; its file takes the place of `path` when the block ends well and is removed when it does not.

    A file that is replaced leaves its mode to the new one.

    Args:
        path: The file to make or replace; its folder is made where it is missing.
        follow_link: Whether a link at `path` is resolved; else the link itself is replaced.

    Yields:
        A path with the same suffix.

    Raises:
        UserError: The file cannot be written: no space, no permission, a limit on its size, a folder that is gone.
    """
    path = Path(path)
    target = Path(os.path.realpath(path)) if follow_link else path
    try:
        special = _is_special(target)
        if not special:
            target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explained(error, path) from error
    beside = _temporary(Path(tempfile.gettempdir()) if special else target.parent, path)
    try:
        yield beside
        if special:
            with open(beside, "rb") as content, open(target, "wb") as stream:
                shutil.copyfileobj(content, stream)
        else:
            _replace(beside, target)
    except OSError as error:
        if _concerns_writing(error, target):
            raise _explained(error, path) from error
        raise
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """A block that writes `path` by other means: what the system refuses is the same `UserError` as `atomic_path`'s."""
    try:
        yield
    except OSError as error:
        if _concerns_writing(error, Path(path)):
            raise _explained(error, Path(path)) from error
        raise


def check_outputs(
    outputs: Iterable[str | Path | None], inputs: Iterable[str | Path | None] = (), *, overwrite: bool = False
) -> None:
    """Refuse, before the work, outputs that would destroy an input, each other, or what exists.

    Files are compared as they lie on the disk, so that a link or another spelling of a path makes no difference. Pipes
    and devices are never refused.

    Args:
        outputs: Files to be written; None is none.
        inputs: Files and folders that are read. A file in a folder that is read is never replaced.
        overwrite: Whether other files that exist may be replaced.

    Raises:
        UserError: What is wrong with the first such output; nothing has been written.
    """
    files = [Path(path) for path in outputs if path is not None]
    check_writable(*files)
    files = [path for path in files if not _is_special(path)]
    read = {identity for path in inputs if path is not None for identity in _identities(Path(path))}
    written: set[object] = set()
    for path in files:
        identities = _identities(path)
        if not identities.isdisjoint(read):
            raise UserError(
                f"{path} is read by this command and would be replaced: choose another place for the output"
            )
        folders = Path(os.path.realpath(path)).parents
        folder = next((folder for folder in folders if str(folder) in read), None)
        if folder is not None and path.exists():
            raise UserError(
                f"{path} is a file of {folder} and would be replaced: choose another place for the output"
            )
        if not identities.isdisjoint(written):
            raise UserError(f"{path} would be written twice by this command: choose different outputs")
        written |= identities
    existing = [path for path in files if path.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{listed(existing, 3)} already there: --overwrite replaces what exists, or choose another place"
        )


def check_writable(*paths: str | Path | None) -> None:
    """Refuse, before the work, files that cannot be made: a folder has their name, or a file that of their folder.

    Args:
        paths: Files to be written; None is none.

    Raises:
        UserError: What is in the place of the first such file.
    """
    for path in (Path(os.path.realpath(path)) for path in paths if path is not None):
        try:
            if _is_special(path):
                continue
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


def write_text(path: str | Path, text: str, *, follow_link: bool = True) -> None:
    """Write UTF-8 text whole or not at all (see `atomic_path`); names that are not Unicode keep their bytes."""
    with atomic_path(path, follow_link=follow_link) as beside:
        beside.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: str | Path, value: object, *, follow_link: bool = True) -> None:
    """Write `value` as JSON, whole or not at all; a number that is not finite becomes null, for JSON has none."""
    write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n", follow_link=follow_link)


def remove_temporary(folder: Path) -> None:
    """Remove what a program that was killed left half-written in a folder of ours."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            path.unlink()


def _temporary(folder: Path, path: Path) -> Path:
    """A short name that no other process uses, because a long one beside a long name would be too long."""
    suffix = path.suffix if len(path.suffix) <= LONGEST_SUFFIX else ""
    return folder / f"{TEMPORARY}{os.getpid()}-{next(_numbers)}{suffix}"


def _replace(beside: Path, target: Path) -> None:
    """Sync the written file, give it the mode of the one it replaces, rename it, and sync the folder.

    What a new link leads to is somebody else's: it is neither synced nor given another mode.
    """
    if not beside.is_symlink():
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
    with contextlib.suppress(FileNotFoundError, PermissionError):
        if not (beside.is_symlink() or target.is_symlink()):
            os.chmod(beside, stat.S_IMODE(target.stat().st_mode))
    os.replace(beside, target)
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):  # some file systems cannot sync a folder
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _is_special(path: Path) -> bool:
    """Whether a pipe, socket or device is there, which cannot be replaced by a file."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _identities(path: Path) -> set[object]:
    """What a path has in common with another of the same file: its real path and, if it exists, device and inode."""
    identities: set[object] = {os.path.realpath(path)}
    with suppress(OSError):
        status = os.stat(path)
        identities.add((status.st_dev, status.st_ino))
    return identities


def _concerns_writing(error: OSError, target: Path) -> bool:
    if error.errno == errno.ENOENT:
        return not target.parent.exists()
    return error.errno in _REASONS


_REASONS = {
    errno.ENOSPC: "no space left on the device for {path}: free some or choose another folder",
    errno.EDQUOT: "no space left on the device for {path}: free some or choose another folder",
    errno.EFBIG: "{path} is larger than a file may be here (ulimit -f, or the file system's limit): choose another"
    " place",
    errno.EIO: "the device of {path} fails ({reason}): check it, then run the command again",
    errno.ESTALE: "the network folder of {path} is gone ({reason}): mount it again, then run the command again",
    errno.ENOENT: "the folder of {path} is gone: somebody removed it during the work",
    **dict.fromkeys(
        (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EEXIST,
            errno.EISDIR,
            errno.ENAMETOOLONG,
            errno.ELOOP,
        ),
        "cannot write {path}: {reason}; choose another place",
    ),
}


def _explained(error: OSError, path: Path) -> UserError:
    text = _REASONS.get(error.errno or 0, "cannot write {path}: {reason}; choose another place")
    return UserError(text.format(path=path, reason=error.strerror or error))


def _finite(value: object) -> object:
    """`value` with None for numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
