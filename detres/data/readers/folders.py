"""Reads a class-per-folder tree of pictures, on disk or inside a .zip or .tar that is read in place (classification).

`<split>/<class>/...` or `<class>/...`; `words.txt` (`n01443537<tab>goldfish, Carassius auratus`) names WordNet folders.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from detres.data.readers.assembly import PICTURE_SUFFIXES
from detres.data.records import ImageLabels, ReadReport, Strings
from detres.errors import DataError, listed

SPLIT_NAMES = frozenset({"train", "val", "valid", "validation", "test", "training", "testing", "trainval"})
WORDS = "words.txt"
ALL = "all"


def read(path: Path, split: str | None) -> tuple[ImageLabels, ReadReport]:
    """Read the pictures of one split with the class of each.

    Classes are the folders of all splits, sorted by folder name, so that splits agree.

    Args:
        path: The tree's folder, or a `.zip` (stored or compressed) or uncompressed `.tar` of it.
        split: The first folder's name; `all` or None where the tree has no splits.

    Raises:
        DataError: Not such a tree, an unknown split, or no picture in it.
    """
    members, words = _members(path)
    parts = [_parts(member) for member in members]
    depth = _split_depth(parts)
    available = (
        sorted({part[depth - 1] for part in parts}) if depth and _has_splits(parts, depth - 1) else [ALL]
    )
    chosen = split or (available[0] if len(available) == 1 else None)
    if chosen not in available:
        problem = f"split '{split}' is not there" if split else "has several splits; choose one with --split"
        raise DataError(f"{path}: {problem}; it has {listed(available)}")
    report = ReadReport()
    folders = sorted({part[depth] for part in parts if len(part) > depth + 1})
    label_of = {folder: label for label, folder in enumerate(folders)}
    paths: list[str] = []
    labels: list[int] = []
    for member, part in zip(members, parts, strict=True):
        if chosen != ALL and part[depth - 1] != chosen:
            continue
        if len(part) <= depth + 1:
            report.add("picture without class", member, "lies in no class folder: left out")
            continue
        paths.append(f"{path}!{member}" if path.is_file() else str(path / member))
        labels.append(label_of[part[depth]])
    if not paths:
        raise DataError(f"{path} ({chosen}): empty data set: no picture in a class folder")
    names = _class_names(folders, words)
    return ImageLabels(Strings(paths), np.array(labels, dtype=np.int64), names, f"{path} ({chosen})"), report


def splits(path: Path) -> list[str]:
    """Names of the splits of a tree; `all` where it has none."""
    parts = [_parts(member) for member in _members(path)[0]]
    depth = _split_depth(parts)
    return sorted({part[depth - 1] for part in parts}) if depth and _has_splits(parts, depth - 1) else [ALL]


def _members(path: Path) -> tuple[list[str], str]:
    """Pictures as sorted paths relative to the tree's root, and the text of `words.txt` (empty without one)."""
    try:
        if path.is_dir():
            found = _walk(path)
            words = path / WORDS
            text = words.read_text(encoding="utf-8") if words.is_file() else ""
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found = archive.namelist()
                text = archive.read(WORDS).decode("utf-8") if WORDS in found else ""
        elif path.suffix == ".tar":
            with tarfile.open(path, "r:") as archive:
                found = [member.name for member in archive if member.isfile()]
                file = archive.extractfile(WORDS) if WORDS in found else None
                text = file.read().decode("utf-8") if file else ""
        else:
            raise DataError(f"{path} is not a folder, a .zip or an uncompressed .tar of class folders")
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    pictures = sorted(name for name in found if _is_picture(name))
    if not pictures:
        raise DataError(f"{path}: empty data set: no picture in it")
    return pictures, text


def _parts(member: str) -> tuple[str, ...]:
    return tuple(part for part in member.split("/") if part not in ("", "."))


def _is_picture(member: str) -> bool:
    """By its suffix; the resource forks that macOS adds to archives (`__MACOSX/._1.jpg`) are none."""
    return os.path.splitext(member)[1].lower() in PICTURE_SUFFIXES and not member.startswith("__MACOSX/")


def _walk(root: Path) -> list[str]:
    return [
        Path(folder, name).relative_to(root).as_posix()
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
    ]


def _split_depth(parts: list[tuple[str, ...]]) -> int:
    """Place of the class folder in the paths: after a common root of folders of folders, and after the split."""
    depth = 0
    while not _has_splits(parts, depth) and len({part[depth] for part in parts}) == 1:
        if any(len(part) < depth + 3 for part in parts):
            break
        depth += 1
    return depth + 1 if _has_splits(parts, depth) else depth


def _has_splits(parts: list[tuple[str, ...]], depth: int) -> bool:
    return all(len(part) > depth + 1 and part[depth].lower() in SPLIT_NAMES for part in parts)


def _class_names(folders: list[str], words: str) -> tuple[str, ...]:
    """First synonym of each WordNet folder, all synonyms where two folders share the first; else the folder's name."""
    glosses = dict(line.split("\t", 1) for line in words.splitlines() if "\t" in line)
    full = [glosses.get(folder, folder).strip() for folder in folders]
    first = [text.split(",")[0] for text in full]
    names = [short if first.count(short) == 1 else text for short, text in zip(first, full, strict=True)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        names = [
            f"{name} ({folder})" if name in twice else name
            for name, folder in zip(names, folders, strict=True)
        ]
    return tuple(names)
