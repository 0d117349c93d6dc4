"""Reads text and lists folders for all readers, so that encodings, hidden files and links are treated alike."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detres.errors import DataError

_READ = ".jpg .jpeg .jpe .jfif .png .bmp .webp .tif .tiff .gif .avif .jp2 .ppm .pgm .pbm"
_UNREAD = ".heic .heif .jxl .raw .cr2 .cr3 .nef .arw .orf .rw2 .raf .dng .psd .xcf .svg .eps .tga .pcx .ico .exr .hdr"
IMAGE_SUFFIXES = frozenset(_READ.split())  # what OpenCV decodes and Pillow knows the header of
UNREAD_SUFFIXES = frozenset(_UNREAD.split())
PROGRAMS_OWN = frozenset({"__MACOSX", "__pycache__"})  # folders that programs put beside a user's files


@dataclass
class Listing:
    """What lies in a folder and in those below it.

    Attributes:
        files: Paths relative to the folder, with slashes.
        folders: The same of the folders below it.
        unread: Kind, relative path and reason of what is passed over: see `walk`.
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    unread: list[tuple[str, str, str]] = field(default_factory=list)


def walk(root: Path) -> Listing:
    """All files below a folder but the hidden ones, each real folder once; links that lead elsewhere are followed.

    A folder that lies below `root` keeps its own path whatever leads to it; of others the first link counts. What looks
    like an image and is not read, links that lead nowhere or to a folder that is listed already, and folders that may
    not be read are passed over and named in `unread`.
    """
    listing = Listing()
    around = [root.resolve(), *root.resolve().parents]
    seen = {_identity(folder) for folder in around[1:]}
    pending = [""]
    while pending:  # first the real folders, then the links that were met on the way, by name
        links: list[str] = []
        for folder in pending:
            _list_below(root, folder, seen, links, listing)
        pending = sorted(links)
    listing.unread += [
        ("picture not read", name, why) for name in listing.files if (why := unread_reason(name))
    ]
    return listing


def _list_below(
    root: Path, folder: str, seen: set[tuple[int, int]], links: list[str], listing: Listing
) -> None:
    """Add what lies in a folder and in the real folders below it; links to folders go to `links`."""
    stack = [folder]
    while stack:
        folder = stack.pop()
        try:
            identity = _identity(root / folder)
            if identity in seen:
                listing.unread.append(
                    ("folder linked twice", folder, "leads to a folder that is read already")
                )
                continue
            seen.add(identity)
            listing.folders += [folder] if folder else []
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            listing.unread.append(("folder not read", folder, str(error.strerror)))
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith(".") or entry.name in PROGRAMS_OWN:
                continue
            if entry.is_dir(follow_symlinks=False):
                stack.append(name)
            elif entry.is_file():
                listing.files.append(name)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                links.append(name)
            else:
                kind = "broken link" if entry.is_symlink() else "picture not read"
                what = "leads nowhere" if entry.is_symlink() else "is a pipe, socket or device"
                listing.unread.append((kind, name, what))


def search(text: str) -> Listing:
    """The files that a folder or a glob (`**` too) means, as paths from the current folder; folders as `walk` says."""
    path = Path(text)
    parts, found = path.parts, Listing()
    place = parts.index("**") if "**" in parts else len(parts)
    head = Path(*parts[:place])

    def fits(name: str) -> bool:
        return _fits(parts[place:], name.split("/"))

    for folder in [head] if head.is_dir() else sorted(map(Path, glob.glob(str(head)))):
        if not folder.is_dir():
            unread = unread_reason(folder.name)
            found.files += [] if unread or not folder.is_file() else [str(folder)]
            found.unread += [("picture not read", str(folder), unread)] if unread else []
            continue
        below = walk(folder)
        found.files += [str(folder / name) for name in below.files if fits(name)]
        found.unread += [(kind, str(folder / name), what) for kind, name, what in below.unread if fits(name)]
    return found


def _fits(pattern: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a path, or a folder that it is in, fits a glob; both are split at the slashes."""
    if not pattern or tuple(pattern) == ("**",):
        return True
    if pattern[0] == "**":
        return any(_fits(pattern[1:], names[place:]) for place in range(len(names)))
    return bool(names) and fnmatch.fnmatch(names[0], pattern[0]) and _fits(pattern[1:], names[1:])


def is_image(name: str) -> bool:
    """Whether a file is an image by its suffix."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def unread_reason(name: str) -> str:
    """Why a file that looks like an image is not read; empty where it is read, or is no image."""
    suffix = os.path.splitext(name)[1].lower()
    return f"{suffix} is not decoded: save it as .png or .jpg" if suffix in UNREAD_SUFFIXES else ""


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


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
