"""Reads a tree with a folder for each class (classification), on disk or in a .zip or .tar, which is not unpacked.

`<split>/<class>/...` or `<class>/...`. The images of a split may lie in one folder if a list gives their classes (see
`label_files`). `words.txt` (`n01443537<tab>goldfish, Carassius auratus`) names the classes of WordNet folders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from detres.data import archives
from detres.data.files import PROGRAMS_OWN, is_image, unread_reason, walk
from detres.data.readers import label_files
from detres.data.records import ImageLabels, ReadReport, Strings
from detres.errors import DataError, listed

SPLIT_NAMES = frozenset({"train", "val", "valid", "validation", "test", "training", "testing", "trainval"})
WORDS = "words.txt"
ALL = "all"
Parts = tuple[str, ...]


def read(path: Path, split: str | None) -> tuple[ImageLabels, ReadReport]:
    """Read the images of one split with the class of each.

    Classes are the folders of all splits, sorted by name, so that the splits agree.

    Args:
        path: The tree's folder, or a `.zip` (stored or compressed) or uncompressed `.tar` of it.
        split: The first folder's name; `all` or None where the tree has no splits.

    Raises:
        DataError: Not such a tree, an unknown split, a class folder without images, no image at all, or a damaged
            archive.
    """
    tree = _read_tree(path)
    available = tree.splits()
    chosen = split or (available[0] if len(available) == 1 else None)
    if chosen not in available:
        problem = f"split '{split}' is not there" if split else "has several splits; choose one with --split"
        raise DataError(f"{path}: {problem}; it has {listed(available)}")
    depth, report = tree.depth, ReadReport()
    lists = {name: tree.label_list(name) for name in available if tree.is_flat(name)}
    flat = set(lists)
    if chosen in flat and lists[chosen] is None:
        raise DataError(
            f"{path}: the pictures of '{chosen}' lie in no class folders, and no list says their classes; looked for "
            + " and ".join(label_files.candidates(chosen))
        )
    in_folders = [part for part in tree.parts if len(part) > depth + 1 and part[depth - 1] not in flat]
    folders = sorted({part[depth] for part in in_folders})
    _check_empty_folders(tree, chosen, flat)
    label_of = {folder: label for label, folder in enumerate(folders)}
    label_list = lists.get(chosen)
    label_of_stem = (
        label_files.parse_label_list(label_list[0], folders, label_list[1]) if label_list else None
    )
    paths: list[str] = []
    labels: list[int] = []
    for member, part in zip(tree.images, tree.parts, strict=True):
        if chosen != ALL and part[depth - 1] != chosen:
            continue
        if label_of_stem is not None:
            label, lacking = label_of_stem.get(PurePosixPath(member).stem), "is not in the split's list"
        else:
            label = label_of[part[depth]] if len(part) > depth + 1 else None
            lacking = "lies in no class folder"
        if label is None:
            report.add("picture without class", member, f"{lacking}: left out")
            continue
        paths.append(f"{path}!{member}" if path.is_file() else str(path / member))
        labels.append(label)
    tree.report_unread(chosen, report)
    if not paths:
        raise DataError(f"{path} ({chosen}): empty data set: no picture in a class folder")
    for label in sorted(set(range(len(folders))) - set(labels)):
        report.add("class without pictures", folders[label], f"other splits have it, {chosen} does not")
    names = _class_names(folders, tree.text(tree.beside_splits(WORDS)) or "")
    return ImageLabels(Strings(paths), np.array(labels, dtype=np.int64), names, f"{path} ({chosen})"), report


def splits(path: Path) -> list[str]:
    """Names of the splits of a tree; `all` where it has none."""
    return _read_tree(path).splits()


@dataclass(frozen=True)
class _Tree:
    """The images and folders of a tree on disk or in an archive.

    Attributes:
        path: The folder or archive.
        images: Sorted paths relative to the root.
        parts: The same, split at slashes.
        folders: All folders on disk, or those with an entry of their own in the archive, split at slashes.
        depth: Index of the class folder in the parts.
        text: The content of a text file; None: it does not exist.
        unread: What is passed over (see `files.walk`).
    """

    path: Path
    images: list[str]
    parts: list[Parts]
    folders: list[Parts]
    depth: int
    text: Callable[[str], str | None]
    unread: list[tuple[str, str, str]]

    def splits(self) -> list[str]:
        if not self.depth or not _has_splits(self.parts, self.depth - 1):
            return [ALL]
        return sorted({part[self.depth - 1] for part in self.parts})

    def report_unread(self, split: str, report: ReadReport) -> None:
        """Name what is passed over in a split."""
        for kind, member, why in self.unread:
            if split == ALL or split in _parts(member)[: self.depth + 1]:
                report.add(kind, member, why)

    def is_flat(self, split: str) -> bool:
        """Whether a split's images are in no class folders, but in its own folder or all in an `images`."""
        own = [part for part in self.parts if split != ALL and part[self.depth - 1] == split]
        return bool(own) and all(len(part) == self.depth + 1 or part[self.depth] == "images" for part in own)

    def label_list(self, split: str) -> tuple[str, str] | None:
        """Text and path of the list of a split's classes."""
        for name in label_files.candidates(split):
            member = self.beside_splits(name)
            text = self.text(member)
            if text is not None:
                return text, f"{self.path}/{member}"
        return None

    def beside_splits(self, name: str) -> str:
        """Path of a file in the folder of the splits (without splits, of the classes)."""
        depth = self.depth - 1 if self.splits() != [ALL] else self.depth
        return "/".join((*self.parts[0][:depth], name))


def _read_tree(path: Path) -> _Tree:
    if path.is_dir():
        listing = walk(path)
        members, unread = [*listing.files, *(f"{folder}/" for folder in listing.folders)], listing.unread
    elif archives.is_archive(path):
        members = [name for name in archives.member_names(path) if not _is_hidden(name)]
        unread = [("picture not read", name, why) for name in members if (why := unread_reason(name))]
    else:
        raise DataError(f"{path} is not a folder, a .zip or an uncompressed .tar of class folders")
    images = sorted(name for name in members if is_image(name))
    if not images:
        passed_over = f"; not read: {listed((name for _, name, _ in unread), 3)}" if unread else ""
        raise DataError(f"{path}: empty data set: no picture in it{passed_over}")
    parts = [_parts(name) for name in images]
    known = frozenset(members)

    def text(name: str) -> str | None:
        if name not in known:
            return None
        content = (path / name).read_bytes() if path.is_dir() else archives.read_member(path, name)
        return content.decode("utf-8", errors="replace")

    folders = [_parts(name) for name in members if name.endswith("/")]
    return _Tree(path, images, parts, folders, _split_depth(parts), text, unread)


def _check_empty_folders(tree: _Tree, chosen: str, flat: set[str]) -> None:
    """Refuse class folders of the split without images, because the class would be silently missing."""
    if chosen in flat:
        return
    depth = tree.depth
    inside = tree.parts[0][:depth] if chosen == ALL else (*tree.parts[0][: depth - 1], chosen)
    filled = {part[: depth + 1] for part in tree.parts}
    empty = [
        "/".join(folder)
        for folder in tree.folders
        if len(folder) == depth + 1 and folder[:depth] == inside and folder not in filled
    ]
    if empty:
        raise DataError(
            f"{tree.path}: class folder without pictures: {listed(sorted(empty))}; put pictures in, or remove it"
        )


def _parts(member: str) -> Parts:
    return tuple(part for part in member.split("/") if part not in ("", "."))


def _is_hidden(member: str) -> bool:
    """Whether a member is hidden, or one that macOS adds (`._1.jpg`, `__MACOSX/`)."""
    return any(part.startswith(".") or part in PROGRAMS_OWN for part in _parts(member))


def _split_depth(parts: list[Parts]) -> int:
    """Index of the class folder in the parts: after the folders that all paths share, and after the split."""
    depth = 0
    while not _has_splits(parts, depth) and len({part[depth] for part in parts}) == 1:
        if any(len(part) < depth + 3 for part in parts):
            break
        depth += 1
    return depth + 1 if _has_splits(parts, depth) else depth


def _has_splits(parts: list[Parts], depth: int) -> bool:
    return all(len(part) > depth + 1 and part[depth].lower() in SPLIT_NAMES for part in parts)


def _class_names(folders: list[str], words: str) -> tuple[str, ...]:
    """The first synonym of each WordNet folder, or all where two folders share the first; else the folder's name."""
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
