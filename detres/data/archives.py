"""Lists and reads the members of a .zip or an uncompressed .tar without unpacking it.

A path `archive.zip!folder/member.jpg` names a member.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
import tarfile
import zipfile
from collections.abc import Callable, Container, Mapping
from pathlib import Path

from detres.errors import DataError
from detres.unpickling import DAMAGE

MEMBER = re.compile(r"(?P<archive>.+?\.(?:zip|tar))!(?P<member>.+)", re.IGNORECASE)
TAR_BLOCK = 512
LARGEST_MEMBER = 2**29  # bytes, unpacked: more than any image that is decoded
ZIP_START = b"PK\x03\x04"
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz"}


def is_archive(path: Path) -> bool:
    """Whether a file is a .zip by its content (also if truncated) or a .tar by its name."""
    if not path.is_file():
        return False
    return path.suffix.lower() == ".tar" or zipfile.is_zipfile(path) or _starts_with(path, ZIP_START)


def member_names(path: Path) -> list[str]:
    """Names of all members; folders with entries of their own end in a slash.

    A leading `./` and doubled slashes are removed from the names.

    Raises:
        DataError: The archive is truncated, damaged or compressed as a whole, is a zip by another name, or has links to
            files outside.
    """
    try:
        if path.suffix.lower() == ".tar":
            return list(_index_tar(path))
        if path.suffix.lower() != ".zip":
            raise DataError(
                f"{path} is a zip by its content, but only a file with the suffix .zip is read: name it .zip"
            )
        with zipfile.ZipFile(path) as archive:
            return list(_index_zip(archive))
    except DAMAGE as error:
        raise _archive_error(path, error) from error


def read_member(archive: str | Path, member: str) -> bytes:
    """The content of a member.

    Raises:
        DataError: No such member, one of more than `LARGEST_MEMBER` bytes, or it or the archive is damaged.
    """
    try:
        return _reader(str(archive), os.getpid())(member)
    except KeyError as error:
        raise DataError(f"picture {archive}!{member}: the archive has no such member") from error
    except FileNotFoundError as error:
        raise DataError(f"picture {archive}!{member}: the archive does not exist") from error
    except DAMAGE as error:  # also of encrypted members and unknown compressions
        raise DataError(f"picture {archive}!{member} cannot be read: {error}") from error


@functools.lru_cache(maxsize=64)  # a data set may have several archives, none of which should be listed twice
def _reader(archive: str, process: int) -> Callable[[str], bytes]:
    """A function from a member's name to its bytes.

    `process` is part of the cache's key, because a forked loader worker must not share its parent's file position.
    """
    if archive.lower().endswith(".zip"):
        content = zipfile.ZipFile(archive)  # kept open for the life of the process
        entries = _index_zip(content)

        def unpack(name: str) -> bytes:
            _check_member(entries[name].file_size)
            with content.open(entries[name]) as member:
                return member.read(entries[name].file_size + 1)  # never more than was declared

        return unpack
    members = _index_tar(Path(archive))
    file = open(archive, "rb")  # noqa: SIM115 (kept open for the life of the process)

    def read(name: str) -> bytes:
        offset, size = members[name]
        _check_member(size)
        file.seek(offset)
        content = file.read(size)
        if len(content) < size:
            raise OSError(f"{size} bytes expected, the archive ends after {len(content)}")
        return content

    return read


def _check_member(size: int) -> None:
    if size > LARGEST_MEMBER:
        raise OSError(f"{size:,} bytes unpacked, where at most {LARGEST_MEMBER:,} are read: it is too large")


def _index_zip(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {_plain_name(entry.filename): entry for entry in archive.infolist()}


def _index_tar(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of each file's content by name; folders, which end in a slash, have size 0.

    A link has the offset of its target.
    """
    members: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = _plain_name(member.name)
                if member.isfile():
                    members[name] = (member.offset_data, member.size)
                    end = member.offset_data + -(-member.size // TAR_BLOCK) * TAR_BLOCK
                    continue
                end = member.offset_data
                if member.isdir():
                    members[f"{name}/"] = (end, 0)
                elif member.islnk():
                    links[name] = _plain_name(member.linkname)
                elif member.issym():
                    links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
    except (tarfile.TarError, *DAMAGE) as error:
        raise _archive_error(path, error) from error
    for name in links:
        members[name] = members[_link_target(path, name, links, members)]
    with open(path, "rb") as file:  # a whole archive ends in blocks of zeros, which tarfile does not check
        file.seek(end)
        block = file.read(TAR_BLOCK)
    if len(block) < TAR_BLOCK or any(block):
        raise _archive_error(
            path, OSError("its end is missing" if len(block) < TAR_BLOCK else "a broken header")
        )
    return members


def _link_target(path: Path, name: str, links: Mapping[str, str], files: Container[str]) -> str:
    """The file that a link leads to, directly or over other links."""
    target = links[name]
    for _ in links:
        if target not in links:
            break
        target = links[target]
    if target not in files:
        raise DataError(
            f"{path}!{name} is a link to {links[name]}, which is no file of the archive: pack the files themselves"
            " (`tar --dereference`)"
        )
    return target


def _plain_name(name: str) -> str:
    """A name without leading `./` and doubled slashes; the slash at the end of a folder is kept."""
    plain = "/".join(part for part in name.split("/") if part not in ("", "."))
    return f"{plain}/" if name.endswith("/") else plain


def _archive_error(path: Path, error: Exception) -> DataError:
    size = path.stat().st_size if path.exists() else 0
    for start, program in COMPRESSED.items():
        if _starts_with(path, start):
            return DataError(
                f"{path} is compressed as a whole, so its members cannot be read in place: `{program}` it"
            )
    if path.suffix.lower() == ".tar" and _starts_with(path, ZIP_START):
        return DataError(f"{path} is a zip by its content, not a tar: name it .zip")
    return DataError(f"{path} is truncated or damaged ({error}; {size} bytes): copy it again")


def _starts_with(path: Path, start: bytes) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(start)) == start
