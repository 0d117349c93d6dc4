"""Reads YOLO text labels: a file for each image, a line for each object, `class center-x center-y width height`.

Boxes are fractions of the upright image's width and height. A longer line is a polygon, whose bounding box is taken.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from detres.console import progress
from detres.data.files import is_image, read_names, read_text, visible, walk
from detres.data.readers.common import (
    Findings,
    Objects,
    assemble,
    only_split,
    upright_size,
)
from detres.data.readers.yolo_yaml import find_data_yaml, read_data_yaml
from detres.data.records import Annotations
from detres.errors import DataError, listed

NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels/classes.txt")
LARGEST_CLASS = 100_000  # that a number alone may make: every smaller one becomes a class too
SPLIT_KEYS = ("train", "val", "valid", "test")
ALL = "all"


def recognize(directory: Path) -> bool:
    """Whether `directory` holds YOLO labels or a `data.yaml`."""
    return find_data_yaml(directory) is not None or any(
        _holds_text(folder) for folder in _label_folders(directory).values()
    )


def splits(directory: Path) -> list[str]:
    """Names of the splits that `directory` has."""
    return _splits(directory, read_data_yaml(find_data_yaml(directory)))


def scan(directory: Path, split: str | None, need_images: bool = True) -> tuple[Annotations, Findings]:
    """Read one split of a YOLO folder; errors are gathered, and what they concern is left out.

    Args:
        directory: Holds `data.yaml`, or `images/` and `labels/` (with or without a sub-folder for each split), or
            `<split>/images` and `<split>/labels`.
        split: A key of `data.yaml` or the sub-folder's name.
        need_images: Of no effect: images are always needed, because their sizes are read from their headers.

    Raises:
        DataError: There is no such split, or `data.yaml` or the list of names is malformed.
    """
    del need_images
    findings = Findings()
    data_yaml = read_data_yaml(find_data_yaml(directory))
    available = _splits(directory, data_yaml)
    split = only_split(directory, available) if split is None else split
    images = _images(directory, split, data_yaml, findings)
    if images is None:
        raise DataError(
            f"{directory}: split '{split}' is not there or empty; it has {listed(available) or 'none'}"
        )
    labels = {image: _label_path(image) for image in images}
    _report_strays(set(labels.values()), findings)
    names, ids = _class_names(directory, data_yaml, labels.values())
    sizes = np.zeros((len(images), 2), dtype=np.int64)
    rows: list[tuple[int, int, list[float], int]] = []  # image, class, fractions xyxy, line
    for index, image in enumerate(progress(images, "pictures and labels")):
        try:
            sizes[index] = upright_size(str(image))
        except DataError as error:
            findings.error("unreadable picture", str(image), str(error))
            continue
        if labels[image].is_file():
            rows += [(index, *row) for row in parse_labels(labels[image], len(names), findings)]
        else:
            findings.report.add(
                "picture without label file", str(image), "taken as a picture without objects"
            )
    fractions = np.array([row[2] for row in rows], dtype=np.float64).reshape(-1, 4)
    _check_fractions(fractions, str(directory), findings)
    indices = [row[0] for row in rows]
    objects = Objects.from_rows(
        indices,
        fractions * sizes[indices][:, [1, 0, 1, 0]],
        [row[1] for row in rows],
        lambda row: f"{labels[images[rows[row][0]]]}, line {rows[row][3]}",
    )
    annotations = assemble(
        [str(image) for image in images],
        _image_ids(images, findings),
        sizes,
        objects,
        names,
        ids,
        f"{directory} ({split})",
        findings,
    )
    return annotations, findings


def parse_labels(path: Path, classes: int, findings: Findings) -> list[tuple[int, list[float], int]]:
    """Class, box as fractions (x1, y1, x2, y2) and line number of each object of a label file."""
    objects = []
    try:
        lines = read_text(path).splitlines()
    except DataError as error:
        findings.error("malformed label", str(path), str(error).removeprefix(f"{path}: "))
        return []
    for line, text in enumerate(lines, start=1):
        where = f"{path}, line {line}"
        try:
            number, *values = [float(value) for value in text.split()]
        except ValueError:
            if text.strip():
                findings.error("malformed label", where, f"'{text[:80]}' holds something that is no number")
            continue
        is_polygon = len(values) >= 6 and len(values) % 2 == 0
        if len(values) != 4 and not is_polygon:
            findings.error(
                "malformed label", where, f"{1 + len(values)} values; a box has 5, a polygon an odd number"
            )
        elif not number.is_integer():
            findings.error("malformed label", where, f"class {number} is not a whole number")
        elif not 0 <= number < classes:
            what = f"class {int(number)}; there are {classes} (0 to {classes - 1})"
            findings.error("unknown category", where, what)
        elif is_polygon:
            points = np.array(values).reshape(-1, 2)
            objects.append((int(number), [*points.min(axis=0), *points.max(axis=0)], line))
        else:
            x, y, width, height = values
            objects.append(
                (int(number), [x - width / 2, y - height / 2, x + width / 2, y + height / 2], line)
            )
    return objects


def _check_fractions(fractions: np.ndarray, source: str, findings: Findings) -> None:
    """An error where most boxes end far outside their image: pixels were written instead of fractions."""
    if not len(fractions):
        return
    share = np.mean((fractions > 1.5).any(axis=1))
    if share > 0.5:
        what = f"{share:.0%} of the boxes reach beyond 1.5 times their picture: they look like pixels"
        findings.error("boxes look like pixels", source, f"{what}; YOLO wants fractions of width and height")


# Where the files are


def _label_folders(directory: Path) -> dict[str, Path]:
    """Label folders by split: `labels/<split>`, `<split>/labels`, or `labels` itself as `all`."""
    labels = directory / "labels"
    folders = {path.name: path for path in sorted(visible(labels.glob("*"))) if path.is_dir()}
    folders |= {path.parent.name: path for path in sorted(directory.glob("*/labels")) if path.is_dir()}
    return folders or ({ALL: labels} if labels.is_dir() else {})


def _holds_text(folder: Path) -> bool:
    return any(path.suffix == ".txt" and path.name not in NAME_FILES for path in visible(folder.iterdir()))


def _splits(directory: Path, data_yaml: dict) -> list[str]:
    return [key for key in SPLIT_KEYS if data_yaml.get(key)] or list(_label_folders(directory))


def _images(directory: Path, split: str, data_yaml: dict, findings: Findings) -> list[Path] | None:
    """The images of a split, in the order of data.yaml; None: there is no such split, or it is empty."""
    entries = data_yaml.get(split)
    if entries:
        base = directory / str(data_yaml.get("path") or "")
        entries = entries if isinstance(entries, list) else [entries]
        return [
            image for entry in entries for image in _images_of_entry(str(entry), base, directory, findings)
        ]
    places = [directory / "images" / split, directory / split / "images", directory / split]
    places = [directory / "images", directory] if split == ALL else places
    for place in filter(Path.is_dir, places):
        images = _images_under(place, findings)
        if images:
            return images
    return None


def _images_of_entry(entry: str, base: Path, directory: Path, findings: Findings) -> list[Path]:
    """The images of an entry of data.yaml: a folder or list, relative to `path`, to the file, or after `../`."""
    inside = entry
    while inside.startswith("../"):
        inside = inside[3:]
    tried = list(dict.fromkeys([base / entry, directory / entry, directory / inside]))
    place = next((path for path in tried if os.path.exists(path)), None)  # also where a name is too long
    if place is None:
        raise DataError(f"data.yaml of {directory}: '{entry}' is not there; looked at {listed(tried)}")
    if place.is_dir():
        return _images_under(place, findings)
    images = []
    for line in read_text(place).split("\n"):
        if line.strip():
            options = [place.parent / line.strip(), base / line.strip(), directory / line.strip()]
            image = next((path for path in options if os.path.isfile(path)), None)
            if image is None:
                findings.error("missing picture", f"{place}, '{line.strip()}'", "does not exist")
            else:
                images.append(image)
    return images


def _images_under(folder: Path, findings: Findings) -> list[Path]:
    listing = walk(folder)
    for kind, name, why in listing.unread:
        findings.report.add(kind, str(folder / name), why)
    return sorted(folder / name for name in listing.files if is_image(name))


def _label_path(image: Path) -> Path:
    """The label file of an image: the last folder `images` becomes `labels`; without one it lies beside the image."""
    parts = list(image.parts)
    places = [number for number, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _report_strays(labels: set[Path], findings: Findings) -> None:
    for folder in sorted({path.parent for path in labels}):
        for path in sorted(visible(folder.glob("*.txt"))):
            if path not in labels and path.name not in NAME_FILES:
                findings.report.add("label without picture", str(path), "left out")


def _image_ids(images: list[Path], findings: Findings) -> list[str]:
    """The stems where they are unique, else the file names with their folders."""
    stems = [image.stem for image in images]
    if len(set(stems)) == len(stems):
        return stems
    for image in sorted({p for p in images if images.count(p) > 1}):
        findings.error("duplicate image id", str(image), "is listed twice")
    return [f"{image.parent.name}/{image.name}" for image in images]


def _class_names(
    directory: Path, data_yaml: dict, labels: Iterable[Path]
) -> tuple[list[str], list[int] | None]:
    """Declared names and ids; where nothing declares names, the numbers up to the largest in the folder."""
    names = data_yaml.get("names")
    path = next((directory / name for name in NAME_FILES if (directory / name).is_file()), None)
    if names is None and path is not None:
        names = read_names(path)
    if names is None:
        folders = {path.parent for path in labels} | set(_label_folders(directory).values())
        return [str(number) for number in range(_largest_class(folders) + 1)], None
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{directory}: class names {listed(twice)} occur twice; names must tell classes apart"
        )
    return names, list(range(len(names)))


def _largest_class(folders: Iterable[Path]) -> int:
    largest = -1
    for path in (path for folder in folders for path in visible(folder.rglob("*.txt"), folder)):
        for line, text in enumerate(_lines(path), start=1):
            first = (text.split() or [""])[0]
            if first.replace(".", "", 1).isdecimal():
                number = float(first)
                if number > LARGEST_CLASS:
                    raise DataError(
                        f"{path}, line {line}: class {number:.12g} without a list of names (data.yaml,"
                        f" {NAME_FILES[0]}), where {LARGEST_CLASS:,} is the largest: name the classes, or mend the line"
                    )
                largest = max(largest, int(number))
    return largest


def _lines(path: Path) -> list[str]:
    """Lines of a label file of any split; reading that split tells whether they are well formed."""
    return path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
