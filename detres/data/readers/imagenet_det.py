"""Reads ImageNet's detection data (ILSVRC DET, 200 classes): VOC's XML with WordNet ids for names.

Russakovsky et al. 2015. Corners are inclusive and count from 0: (a, b, c, d) is (a, b, c + 1, d + 1) in continuous
coordinates. N pictures, M objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detres.console import progress
from detres.data.decoding import read_header
from detres.data.files import read_text
from detres.data.readers.common import Findings, Objects, assemble, raise_on_errors
from detres.data.readers.voc_xml import Described, parse
from detres.data.records import Annotations, ReadReport
from detres.errors import DataError, listed

LISTS, XML, IMAGES = Path("ImageSets/DET"), Path("Annotations/DET"), Path("Data/DET")
CLASS_MAP, BLACKLIST = "map_det.txt", "ILSVRC20*_det_validation_blacklist.txt"
TRAIN, PARTS = "train", ("train", "val")
OF_ONE_CLASS = re.compile(
    r"train_\d+"
)  # train_1.txt .. train_200.txt: pictures and whether they show the class
SHOWN_NOT_AT_ALL = "-1"


@dataclass(frozen=True)
class Class:
    """A line of the development kit's `map_det.txt`."""

    wnid: str
    number: int
    name: str


def read(directory: Path, split: str | None, *, need_images: bool = True) -> tuple[Annotations, ReadReport]:
    """Read one split of ImageNet DET.

    Args:
        directory: `ILSVRC/` with `Annotations/DET`, `Data/DET` and `ImageSets/DET`, or the folder that holds it; the
            classes are in the development kit's `map_det.txt`, in there or beside it.
        split: A list of `ImageSets/DET` whose name begins with `train` or `val`; `train` itself is the union of
            `train_1.txt` to `train_200.txt`, less the pictures that are there as negatives.
        need_images: Whether a picture that is not there is an error; without, it is counted, as whether its boxes
            are drawn on another size than it has is not known.

    Raises:
        DataError: Anything docs/data.md calls an error.
    """
    return raise_on_errors(*scan(directory, split, need_images=need_images))


def recognize(directory: Path) -> bool:
    """Whether `directory` holds ILSVRC's detection folders."""
    return _root(directory) is not None


def splits(directory: Path) -> list[str]:
    """Names of the splits that have annotations (the test pictures have none)."""
    root = _known_root(directory)
    names = [path.stem for path in (root / LISTS).glob("*.txt")]
    names = [TRAIN if OF_ONE_CLASS.fullmatch(name) else name for name in names]
    return sorted({name for name in names if _part(name) and (root / XML / str(_part(name))).is_dir()})


def scan(directory: Path, split: str | None, *, need_images: bool = True) -> tuple[Annotations, Findings]:
    """As `read`, but errors are gathered and what they concern is left out."""
    findings, root = Findings(), _known_root(directory)
    available = splits(directory)
    if split is None and len(available) == 1:
        split = available[0]
    if split not in available:
        chosen = f"split '{split}' is not there" if split else "there are several splits"
        hint = (
            "; datasets/prepare_imagenet_det.py writes val1 and val2"
            if str(split) in ("val1", "val2")
            else ""
        )
        raise DataError(f"{directory}: {chosen}; it has {listed(available) or 'none'}{hint}")
    part = str(_part(split))
    classes = read_classes(directory)
    stems = _listed_stems(root, split)
    described = _parse_all(root, part, stems, findings)
    stems = [stem for stem in stems if stem in described]
    paths = {stem: str(root / IMAGES / part / f"{stem}.JPEG") for stem in stems}
    sizes = _sizes(paths, described, findings, need_images)
    stems = [stem for stem in stems if stem in sizes]
    annotations = _gather(
        root / XML / part, stems, paths, described, sizes, classes, f"{directory} ({split})", findings
    )
    return annotations, findings


def read_classes(directory: Path) -> list[Class]:
    """The classes in order of their numbers, from the development kit's `map_det.txt`.

    Raises:
        DataError: It is not there, or a line is not `wnid number name`.
    """
    path = _in_kit(directory, CLASS_MAP)
    if path is None:
        raise DataError(
            f"{directory}: {CLASS_MAP}, which names the classes, is not there; it is in the development kit's data/:"
            " put the kit's folder `devkit` or that file in here"
        )
    classes = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split(maxsplit=2)
        if not words:
            continue
        if len(words) < 3 or not words[1].isdigit():
            raise DataError(f"{path}, line {number}: should be `wnid number name`, is {line!r}")
        classes.append(Class(words[0], int(words[1]), words[2].strip()))
    for key in ("wnid", "number", "name"):
        values = [getattr(entry, key) for entry in classes]
        twice = sorted({str(value) for value in values if values.count(value) > 1})
        if twice:
            raise DataError(f"{path}: {key} {listed(twice, 3)} stands there twice")
    return sorted(classes, key=lambda entry: entry.number)


def read_blacklist(directory: Path, annotations: Annotations) -> set[tuple[int, int]]:
    """(picture, label) pairs of `annotations` that the kit's evaluation leaves out, where the kit is there.

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
            raise DataError(f"{path}: should be `number wnid` in every line, one is {line!r}")
        number, wnid = words[:2]
        label = labels.get(wnid)
        if label is None:
            raise DataError(f"{path}: class '{wnid}' is not one of {annotations.source}")
        if number in places:
            pairs.add((places[number], label))
    return pairs


def write_list(directory: Path, split: str, image_ids: Iterable[str]) -> Path:
    """Write a part of `val` as a list of its own, in the form of `val.txt`: id and number, so that the kit reads it."""
    from detres.files import write_text

    folder = _known_root(directory) / LISTS
    numbers = _numbers(folder / "val.txt")
    text = "".join(f"{image_id} {numbers[image_id]}\n" for image_id in image_ids)
    write_text(folder / f"{split}.txt", text)
    return folder / f"{split}.txt"


def listed_images(directory: Path, split: str) -> tuple[Path, list[str]]:
    """The list of a part of `val`, and the pictures in it."""
    path = _known_root(directory) / LISTS / f"{split}.txt"
    return path, [line.split()[0] for line in _lines(path)]


def _gather(
    folder: Path,
    stems: list[str],
    paths: dict[str, str],
    described: dict[str, Described],
    sizes: dict[str, tuple[int, int]],
    classes: list[Class],
    source: str,
    findings: Findings,
) -> Annotations:
    """The pictures' objects, those of unknown classes reported, boxes in pixels of the pictures as they are."""
    label_of = {entry.wnid: label for label, entry in enumerate(classes)}
    unknown: dict[str, list[tuple[str, str]]] = {}  # by wnid the pictures' stems and the places
    images, boxes, labels, places = [], [], [], []
    for index, stem in enumerate(stems):
        content = described[stem]
        height, width = sizes[stem]
        factor_y, factor_x = height / (content.height or height or 1), width / (content.width or width or 1)
        for name, (a, b, c, d), line in zip(content.names, content.corners, content.lines, strict=True):
            where = f"{folder / stem}.xml, line {line}"
            if name not in label_of:
                unknown.setdefault(name, []).append((stem, where))
                continue
            right, bottom = (c + 1 if c >= a else a), (d + 1 if d >= b else b)  # (a, a): one pixel wide
            if content.width and content.height:  # the last pixel may be counted from 1 all the same
                right, bottom = min(right, max(content.width, c)), min(bottom, max(content.height, d))
            images.append(index)
            boxes.append((a * factor_x, b * factor_y, right * factor_x, bottom * factor_y))
            labels.append(label_of[name])
            places.append(f"{where}, {classes[label_of[name]].name}")
    for name, found in unknown.items():
        what = f"'{name}' is not in {CLASS_MAP} ({len(found)} objects in {len({stem for stem, _ in found})} files)"
        findings.error("unknown category", found[0][1], what)
    objects = Objects(
        images=np.array(images, dtype=np.int64),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        crowd=np.zeros(len(boxes), dtype=bool),
        difficult=np.zeros(len(boxes), dtype=bool),
        areas=np.full(len(boxes), np.nan),
        where=places.__getitem__,
    )
    return assemble(
        [paths[stem] for stem in stems],
        stems,
        np.array([sizes[stem] for stem in stems], dtype=np.int64).reshape(-1, 2),
        objects,
        [entry.name for entry in classes],
        [entry.number for entry in classes],
        source,
        findings,
        exhaustive=folder.name != TRAIN,
    )


def _sizes(
    paths: dict[str, str], described: dict[str, Described], findings: Findings, need_images: bool
) -> dict[str, tuple[int, int]]:
    """Height and width of each picture, in the orientation that its annotation was drawn on.

    A picture that is not there is an error where it is needed; elsewhere the annotation's size is taken, counted.
    Where the annotation states another size than the picture has, its boxes are drawn on a copy of that size, and are
    rescaled: counted.
    """
    sizes = {}
    for stem, path in progress(list(paths.items()), "picture sizes"):
        said = described[stem].height, described[stem].width
        if not need_images and not Path(path).exists():
            sizes[stem] = said
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
        sizes[stem] = (height, width) if said == (height, width) else upright
        if 0 not in said and said != sizes[stem]:
            what = f"annotated at {said[1]} x {said[0]} (width x height), is {upright[1]} x {upright[0]}: rescaled"
            findings.report.add("size differs from the annotation", path, what)
    return sizes


def _parse_all(root: Path, part: str, stems: list[str], findings: Findings) -> dict[str, Described]:
    """What each picture's XML says; in `train` a picture may have none, which says nothing was annotated."""
    described = {}
    for stem in progress(stems, "annotations"):
        path = root / XML / part / f"{stem}.xml"
        try:
            described[stem] = parse(path)
        except DataError as error:
            if path.exists():
                findings.error("malformed XML", str(path), str(error).removeprefix(f"{path}: "))
            elif part == TRAIN:
                findings.report.add("picture without annotation file", stem, f"there is no {path}: left out")
            else:
                findings.error("missing annotation", stem, f"there is no {path}")
    return described


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


def _listed_stems(root: Path, split: str) -> list[str]:
    """Stems of a split; of `train` the union of the lists by class, less negatives."""
    of_class = [path for path in (root / LISTS).glob("train_*.txt") if OF_ONE_CLASS.fullmatch(path.stem)]
    if split == TRAIN and of_class:
        lines = [line.split() for path in sorted(of_class) for line in _lines(path)]
        return sorted({words[0] for words in lines if len(words) < 2 or words[1] != SHOWN_NOT_AT_ALL})
    return list(dict.fromkeys(line.split()[0] for line in _lines(root / LISTS / f"{split}.txt")))


def _numbers(path: Path) -> dict[str, str]:
    """The number that the kit's evaluation calls each picture by: the second column, else the line."""
    words = [line.split() for line in _lines(path)]
    return {row[0]: row[1] if len(row) > 1 else str(number) for number, row in enumerate(words, start=1)}


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path} is not there")
    return [line for line in read_text(path).splitlines() if line.strip()]
