"""Members of a .zip or an uncompressed .tar, listed and read in place; what is wrong with an archive is one line.

A path `archive.zip!folder/member.jpg` names a member.
"""

from __future__ import annotations

import functools
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from detres.errors import DataError

MEMBER = re.compile(r"(?P<archive>.+?\.(?:zip|tar))!(?P<member>.+)", re.IGNORECASE)
TAR_BLOCK = 512
ZIP_START = b"PK\x03\x04"
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz"}


def is_archive(path: Path) -> bool:
    """Whether a file is a .zip by its content (truncated ones too) or a .tar by its name."""
    if not path.is_file():
        return False
    return path.suffix.lower() == ".tar" or zipfile.is_zipfile(path) or _starts_with(path, ZIP_START)


def member_names(path: Path) -> list[str]:
    """Names of all members, folders that have entries of their own with a slash at the end.

    Raises:
        DataError: Truncated, damaged or compressed as a whole.
    """
    try:
        if path.suffix.lower() == ".tar":
            return list(_index_tar(path))
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise _unusable(path, error) from error


def read_member(archive: str | Path, member: str) -> bytes:
    """The content of a member.

    Raises:
        DataError: No such member, or it or the archive is damaged.
    """
    try:
        return _reader(str(archive), os.getpid())(member)
    except KeyError as error:
        raise DataError(f"picture {archive}!{member}: the archive has no such member") from error
    except FileNotFoundError as error:
        raise DataError(f"picture {archive}!{member}: the archive does not exist") from error
    # zlib: damaged content; the last two: encrypted, or an unknown compression
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(f"picture {archive}!{member} cannot be read: {error}") from error


@functools.lru_cache(maxsize=4)
def _reader(archive: str, process: int) -> Callable[[str], bytes]:
    """A function from a member's name to its bytes.

    `process` is part of the key: a forked loader worker must not share its parent's place in the file.
    """
    if archive.lower().endswith(".zip"):
        return zipfile.ZipFile(archive).read
    members = _index_tar(Path(archive))
    file = open(archive, "rb")  # noqa: SIM115 (kept open for the life of the process)

    def read(name: str) -> bytes:
        offset, size = members[name]
        file.seek(offset)
        content = file.read(size)
        if len(content) < size:
            raise OSError(f"{size} bytes expected, the archive ends after {len(content)}")
        return content

    return read


def _index_tar(path: Path) -> dict[str, tuple[int, int]]:
    """Place and size of each file's content by name; folders (ending in a slash) have size 0."""
    members: dict[str, tuple[int, int]] = {}
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile():
                    members[member.name] = (member.offset_data, member.size)
                    end = member.offset_data + -(-member.size // TAR_BLOCK) * TAR_BLOCK
                else:
                    end = member.offset_data
                    if member.isdir():
                        members[f"{member.name}/"] = (end, 0)
    except tarfile.TarError as error:
        raise _unusable(path, error) from error
    with open(path, "rb") as file:  # a whole archive ends in blocks of zeros; tarfile does not insist
        file.seek(end)
        block = file.read(TAR_BLOCK)
    if len(block) < TAR_BLOCK or any(block):
        raise _unusable(path, OSError("its end is missing" if len(block) < TAR_BLOCK else "a broken header"))
    return members


def _unusable(path: Path, error: Exception) -> DataError:
    size = path.stat().st_size if path.exists() else 0
    for start, program in COMPRESSED.items():
        if _starts_with(path, start):
            return DataError(
                f"{path} is compressed as a whole, its members cannot be read in place: `{program}` it"
            )
    return DataError(f"{path} is truncated or damaged ({error}; {size} bytes): copy it again")


def _starts_with(path: Path, start: bytes) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(start)) == start
