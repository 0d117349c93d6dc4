"""Reads ImageNet's detection data (ILSVRC DET, 200 classes): VOC's XML with WordNet ids instead of names.

Russakovsky et al. 2015. Corners are inclusive and count from 0: (a, b, c, d) is (a, b, c + 1, d + 1) in continuous
coordinates. N images, M objects.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detres.console import progress
from detres.data.decoding import read_header
from detres.data.files import read_text
from detres.data.readers.common import Findings, Objects, assemble, only_split
from detres.data.readers.voc_xml import VocAnnotation, parse_voc_xml
from detres.data.records import Annotations
from detres.errors import DataError, listed

LISTS, XML, IMAGES = Path("ImageSets/DET"), Path("Annotations/DET"), Path("Data/DET")
CLASS_MAP, BLACKLIST = "map_det.txt", "ILSVRC20*_det_validation_blacklist.txt"
TRAIN, PARTS = "train", ("train", "val")
# train_1.txt .. train_200.txt: images, and in the second column whether they show the class.
CLASS_LIST = re.compile(r"train_\d+")
NEGATIVE = "-1"


@dataclass(frozen=True)
class DetClass:
    """A line of the development kit's `map_det.txt`."""

    wnid: str
    number: int
    name: str


def recognize(directory: Path) -> bool:
    """Whether `directory` holds the folders of ILSVRC DET."""
    return _root(directory) is not None


def splits(directory: Path) -> list[str]:
    """Names of the splits that have annotations (the test images have none)."""
    root = _known_root(directory)
    names = [path.stem for path in (root / LISTS).glob("*.txt")]
    names = [TRAIN if CLASS_LIST.fullmatch(name) else name for name in names]
    return sorted({name for name in names if _part(name) and (root / XML / str(_part(name))).is_dir()})


def scan(directory: Path, split: str | None, need_images: bool = True) -> tuple[Annotations, Findings]:
    """Read one split of ImageNet DET; errors are gathered, and what they concern is left out.

    Args:
        directory: `ILSVRC/` with `Annotations/DET`, `Data/DET` and `ImageSets/DET`, or the folder that holds it; the
            development kit's `map_det.txt`, which names the classes, is in it or beside it.
        split: A list of `ImageSets/DET` whose name begins with `train` or `val`. `train` itself is the union of
            `train_1.txt` to `train_200.txt`, without the images that are negatives.
        need_images: Whether a missing image is an error. If not, missing ones are counted, because it is not known
            whether their boxes belong to an image of another size.

    Raises:
        DataError: There is no such split, or the classes cannot be read.
    """
    findings, root = Findings(), _known_root(directory)
    available = splits(directory)
    split = only_split(directory, available) if split is None else split
    if split not in available:
        hint = "; datasets/prepare_imagenet_det.py writes val1 and val2" if split in ("val1", "val2") else ""
        raise DataError(
            f"{directory}: split '{split}' is not there; it has {listed(available) or 'none'}{hint}"
        )
    part = str(_part(split))
    classes = read_classes(directory)
    stems = _read_stems(root, split)
    contents = _parse_all(root, part, stems, findings)
    paths = {stem: str(root / IMAGES / part / f"{stem}.JPEG") for stem in stems if stem in contents}
    sizes = _sizes(paths, contents, findings, need_images)
    paths = {stem: path for stem, path in paths.items() if stem in sizes}
    annotations = _gather(
        root / XML / part, paths, contents, sizes, classes, f"{directory} ({split})", findings
    )
    return annotations, findings


def read_classes(directory: Path) -> list[DetClass]:
    """The classes in order of their numbers, from the development kit's `map_det.txt`.

    Raises:
        DataError: It is not there, or a line is not `wnid number name`.
    """
    path = _in_kit(directory, CLASS_MAP)
    if path is None:
        raise DataError(
            f"{directory}: {CLASS_MAP}, which names the classes, is not there: put the development kit's folder"
            " `devkit`, or that file of its data/, in here"
        )
    classes = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split(maxsplit=2)
        if not words:
            continue
        if len(words) < 3 or not words[1].isdigit():
            raise DataError(f"{path}, line {number}: should be `wnid number name`, is {line!r}")
        classes.append(DetClass(words[0], int(words[1]), words[2].strip()))
    for key in ("wnid", "number", "name"):
        values = [getattr(entry, key) for entry in classes]
        twice = sorted({str(value) for value in values if values.count(value) > 1})
        if twice:
            raise DataError(f"{path}: duplicate {key} {listed(twice, 3)}")
    return sorted(classes, key=lambda entry: entry.number)


def read_blacklist(directory: Path, annotations: Annotations) -> set[tuple[int, int]]:
    """The (image, label) pairs of `annotations` that the development kit's evaluation ignores; none without the kit.

    Raises:
        DataError: A line is not `number wnid`, or names a class that `annotations` does not have.
    """
    path = _in_kit(directory, BLACKLIST)
    if path is None:
        return set()
    numbers = _numbers(_known_root(directory) / LISTS / "val.txt")
    places = {numbers.get(annotations.image_ids[index], ""): index for index in range(len(annotations))}
    label_of = {name: label for label, name in enumerate(annotations.class_names)}
    labels = {entry.wnid: label_of.get(entry.name) for entry in read_classes(directory)}
    pairs = set()
    for line in _lines(path):
        words = line.split()
        if len(words) < 2 or not words[0].isdecimal():
            raise DataError(f"{path}: every line should be `number wnid`, one is {line!r}")
        number, wnid = words[:2]
        label = labels.get(wnid)
        if label is None:
            raise DataError(f"{path}: class '{wnid}' is not one of {annotations.source}")
        if number in places:
            pairs.add((places[number], label))
    return pairs


def write_list(directory: Path, split: str, image_ids: Iterable[str]) -> Path:
    """Write a part of `val` as a list with ids and numbers as in `val.txt`, which the development kit can read."""
    from detres.files import write_text

    folder = _known_root(directory) / LISTS
    numbers = _numbers(folder / "val.txt")
    text = "".join(f"{image_id} {numbers[image_id]}\n" for image_id in image_ids)
    write_text(folder / f"{split}.txt", text)
    return folder / f"{split}.txt"


def read_list(directory: Path, split: str) -> tuple[Path, list[str]]:
    """The path of the list that `write_list` writes, and the image ids in it."""
    path = _known_root(directory) / LISTS / f"{split}.txt"
    return path, [line.split()[0] for line in _lines(path)]


def _gather(
    folder: Path,
    paths: dict[str, str],
    contents: dict[str, VocAnnotation],
    sizes: dict[str, tuple[int, int]],
    classes: list[DetClass],
    source: str,
    findings: Findings,
) -> Annotations:
    """The images of `paths` with their objects, boxes in pixels of the images; unknown classes are errors."""
    label_of = {entry.wnid: label for label, entry in enumerate(classes)}
    unknown: dict[str, list[tuple[str, str]]] = {}  # wnid -> images' stems and places of the objects
    images, boxes, labels, places = [], [], [], []
    for index, stem in enumerate(paths):
        content = contents[stem]
        height, width = sizes[stem]
        factor_y, factor_x = height / (content.height or height or 1), width / (content.width or width or 1)
        for name, (a, b, c, d), line in zip(content.names, content.corners, content.lines, strict=True):
            where = f"{folder / stem}.xml, line {line}"
            if name not in label_of:
                unknown.setdefault(name, []).append((stem, where))
                continue
            right, bottom = (c + 1 if c >= a else a), (d + 1 if d >= b else b)  # (a, a): one pixel wide
            if content.width and content.height:  # some files count the last pixel from 1
                right, bottom = min(right, max(content.width, c)), min(bottom, max(content.height, d))
            images.append(index)
            boxes.append((a * factor_x, b * factor_y, right * factor_x, bottom * factor_y))
            labels.append(label_of[name])
            places.append(f"{where}, {classes[label_of[name]].name}")
    for name, objects in unknown.items():
        what = f"'{name}' is not in {CLASS_MAP} ({len(objects)} objects in {len({stem for stem, _ in objects})} files)"
        findings.error("unknown category", objects[0][1], what)
    return assemble(
        list(paths.values()),
        list(paths),
        np.array([sizes[stem] for stem in paths], dtype=np.int64).reshape(-1, 2),
        Objects.from_rows(images, boxes, labels, places.__getitem__),
        [entry.name for entry in classes],
        [entry.number for entry in classes],
        source,
        findings,
        exhaustive=folder.name != TRAIN,
    )


def _sizes(
    paths: dict[str, str], contents: dict[str, VocAnnotation], findings: Findings, need_images: bool
) -> dict[str, tuple[int, int]]:
    """Height and width of each image, in the orientation that its boxes were drawn on.

    A missing image is an error where images are needed; otherwise the annotation's size is taken, with a count. Where
    the annotation states another size, its boxes were drawn on a copy of that size; they are rescaled, with a count.
    """
    sizes = {}
    for stem, path in progress(list(paths.items()), "picture sizes"):
        stated = contents[stem].height, contents[stem].width
        if not need_images and not Path(path).exists():
            sizes[stem] = stated
            findings.report.add(
                "size not checked", path, "the picture is not there: its annotation's is taken"
            )
            continue
        try:
            height, width, orientation = read_header(path)
        except DataError as error:
            kind = "unreadable picture" if Path(path).exists() else "missing picture"
            findings.error(kind, path, str(error).removeprefix(f"{path}: "))
            continue
        upright = (width, height) if orientation >= 5 else (height, width)
        sizes[stem] = (height, width) if stated == (height, width) else upright
        if 0 not in stated and stated != sizes[stem]:
            what = f"annotated at {stated[1]} x {stated[0]} (width x height), is {upright[1]} x {upright[0]}: rescaled"
            findings.report.add("size differs from the annotation", path, what)
    return sizes


def _parse_all(root: Path, part: str, stems: list[str], findings: Findings) -> dict[str, VocAnnotation]:
    """The content of each image's XML. In `train` some images have none, because they were not annotated."""
    contents = {}
    for stem in progress(stems, "annotations"):
        path = root / XML / part / f"{stem}.xml"
        try:
            contents[stem] = parse_voc_xml(path)
        except DataError as error:
            if path.exists():
                findings.error("malformed XML", str(path), str(error).removeprefix(f"{path}: "))
            elif part == TRAIN:
                findings.report.add("picture without annotation file", stem, f"there is no {path}: left out")
            else:
                findings.error("missing annotation", stem, f"there is no {path}")
    return contents


# Where the files are


def _root(directory: Path) -> Path | None:
    places = (directory, directory / "ILSVRC")
    return next((place for place in places if (place / XML).is_dir() and (place / LISTS).is_dir()), None)


def _known_root(directory: Path) -> Path:
    root = _root(directory)
    if root is None:
        raise DataError(f"{directory} holds no {XML} with {LISTS} (ImageNet DET as ILSVRC packs it)")
    return root


def _in_kit(directory: Path, name: str) -> Path | None:
    """A file of the development kit, in the data set's folder or beside it."""
    root = _known_root(directory)
    patterns = (name, f"devkit/data/{name}", f"*devkit*/data/{name}", f"data/{name}")
    return next(
        (path for place in (root, root.parent) for p in patterns for path in sorted(place.glob(p))), None
    )


def _part(split: str) -> str | None:
    return next((part for part in PARTS if split.startswith(part)), None)


def _read_stems(root: Path, split: str) -> list[str]:
    """Stems of a split; of `train` those in the lists of the classes that are not negatives."""
    class_lists = [path for path in (root / LISTS).glob("train_*.txt") if CLASS_LIST.fullmatch(path.stem)]
    if split == TRAIN and class_lists:
        lines = [line.split() for path in sorted(class_lists) for line in _lines(path)]
        return sorted({words[0] for words in lines if len(words) < 2 or words[1] != NEGATIVE})
    return list(dict.fromkeys(line.split()[0] for line in _lines(root / LISTS / f"{split}.txt")))


def _numbers(path: Path) -> dict[str, str]:
    """The number of each image in the development kit's evaluation: the second column, else the line number."""
    words = [line.split() for line in _lines(path)]
    return {row[0]: row[1] if len(row) > 1 else str(number) for number, row in enumerate(words, start=1)}


def _lines(path: Path) -> list[str]:
    if not os.path.isfile(path):
        raise DataError(f"{path} is not there")
    return [line for line in read_text(path).splitlines() if line.strip()]
