"""Reads Pascal VOC XML: devkit folders of one or several years, and flat folders as LabelImg writes them.

VOC's box is 1-based with inclusive corners: (a, b, c, d) is (a - 1, b - 1, c, d) in continuous coordinates.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detres.console import progress
from detres.data.files import read_text, visible
from detres.data.readers.common import (
    Findings,
    Objects,
    assemble,
    fill_sizes,
    images_in,
    only_split,
)
from detres.data.readers.voc_xml import VocAnnotation, parse_voc_xml
from detres.data.records import Annotations
from detres.errors import DataError, listed

VOC_CLASSES = (
    *(
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
    ),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", "img")
XML_FOLDERS = ("Annotations", "annotations", "annots", "Annots", "annotation", "xmls", "xml", "labels")
ALL = "all"


@dataclass(frozen=True)
class VocImage:
    """One image of a split: its id, its XML, and the image file (None: it is missing)."""

    image_id: str
    xml: Path
    file: Path | None


def recognize(directory: Path) -> bool:
    """Whether `directory` holds VOC XML."""
    if _years(directory):
        return True
    return any(_is_annotation(path) for path in _flat_xml(directory))


def splits(directory: Path) -> list[str]:
    """Names of the splits that `directory` has."""
    years = _years(directory)
    if years:
        return sorted({name for year in years for name in _lists(year)}) or [ALL]
    return sorted({_flat_split(path, directory) for path in _flat_xml(directory)})


def scan(directory: Path, split: str | None, need_images: bool = True) -> tuple[Annotations, Findings]:
    """Read one split of a folder of VOC XML; errors are gathered, and what they concern is left out.

    Args:
        directory: A devkit year (`JPEGImages/`, `Annotations/`, `ImageSets/Main/`), the folder of several years, which
            are united, or a folder with XML files and images.
        split: A list of `ImageSets/`; in flat folders the sub-folder's name, or `all`.
        need_images: Whether a missing image is an error.

    Raises:
        DataError: There is no such split.
    """
    findings = Findings()
    available = splits(directory)
    split = only_split(directory, available) if split is None else split
    years = _years(directory)
    images, every_xml = (
        _devkit_images(years, split, findings) if years else _flat_images(directory, split, findings)
    )
    if not images and not findings.errors:
        raise DataError(
            f"{directory}: split '{split}' is not there or empty; it has {listed(available) or 'none'}"
        )
    if need_images:
        for image in images:
            if image.file is None:
                findings.error(
                    "missing picture", str(image.xml), f"no picture named '{image.image_id}' beside it"
                )
        images = [image for image in images if image.file is not None]
    own = dict.fromkeys(image.xml for image in images)
    contents = _parse_all([*own, *(path for path in every_xml if path not in own)], findings)
    images = [image for image in images if image.xml in contents]
    names = {name for content in contents.values() for name in content.names}
    class_names = VOC_CLASSES if years and names <= set(VOC_CLASSES) else tuple(sorted(names))
    return _gather(images, contents, class_names, f"{directory} ({split})", need_images, findings), findings


def scan_unlabeled(directory: Path, split: str, need_images: bool) -> tuple[Annotations, Findings] | None:
    """Read the images of a devkit's split whose objects are not public (VOC 2012's test); None: another split.

    Fewer than half of such a split's images have an XML (some have one of another task, which is ignored). It tells no
    class names. Sizes are read from the images, so the result is None where they are not needed.
    """
    if not need_images:
        return None
    findings = Findings()
    lists = [(year, path) for year in _years(directory) if (path := _lists(year).get(split))]
    ids: list[str] = []
    files: list[Path | None] = []
    labeled = 0
    for year, path in lists:
        images = images_in(year / "JPEGImages")
        for stem in _listed_stems(path, findings):
            ids.append(f"{year.name}/{stem}" if len(lists) > 1 else stem)
            files.append(images.get(stem))
            labeled += os.path.isfile(year / "Annotations" / f"{stem}.xml")
            if files[-1] is None:
                findings.error("missing picture", f"{path}, '{stem}'", f"is not in {year / 'JPEGImages'}")
    if 2 * labeled >= len(ids):
        return None
    paths = [str(file) for file in files if file is not None]
    kept = [image_id for image_id, file in zip(ids, files, strict=True) if file is not None]
    sizes = np.zeros((len(paths), 2), dtype=np.int64)
    fill_sizes(paths, sizes, range(len(paths)), findings)
    objects = Objects.from_rows([], [], [], str)
    return assemble(paths, kept, sizes, objects, (), None, f"{directory} ({split})", findings), findings


def _gather(
    images: list[VocImage],
    parsed: dict[Path, VocAnnotation],
    class_names: tuple[str, ...],
    source: str,
    need_images: bool,
    findings: Findings,
) -> Annotations:
    contents = [parsed[image.xml] for image in images]
    paths = [str(image.file or image.xml.with_suffix(".jpg").name) for image in images]
    sizes = np.array([(content.height, content.width) for content in contents], dtype=np.int64).reshape(-1, 2)
    if need_images:
        fill_sizes(paths, sizes, np.flatnonzero((sizes <= 0).any(axis=1)).tolist(), findings)
    corners = np.array([box for content in contents for box in content.corners], dtype=np.float64).reshape(
        -1, 4
    )
    _check_sides(corners, source, findings)
    degenerate = (corners[:, 2] <= corners[:, 0]) | (corners[:, 3] <= corners[:, 1])
    boxes = corners - [1, 1, 0, 0]
    boxes[degenerate, 2:] = boxes[
        degenerate, :2
    ]  # no size in the file's numbers means a click, not one pixel
    places = [(index, line) for index, content in enumerate(contents) for line in content.lines]
    label_of = {name: label for label, name in enumerate(class_names)}
    names = [name for content in contents for name in content.names]

    def where(row: int) -> str:
        index, line = places[row]
        return f"{images[index].xml}, line {line}, {names[row]}"

    objects = Objects.from_rows(
        [index for index, _ in places],
        boxes,
        [label_of[name] for name in names],
        where,
        [flag for content in contents for flag in content.difficult],
    )
    ids = [image.image_id for image in images]
    return assemble(paths, ids, sizes, objects, class_names, None, source, findings)


def _check_sides(corners: np.ndarray, source: str, findings: Findings) -> None:
    """An error where most boxes end before they begin: [x, y, width, height] was written instead of corners."""
    inverted = (corners[:, 2] < corners[:, 0]) | (corners[:, 3] < corners[:, 1])
    if len(corners) and inverted.mean() > 0.5:
        what = f"{inverted.mean():.0%} of the boxes have xmax < xmin or ymax < ymin: they look like x, y, width, height"
        findings.error("boxes look like xywh", source, f"{what}; VOC wants xmin, ymin, xmax, ymax")


# Where the files are


def _years(directory: Path) -> list[Path]:
    """The devkit years at or under `directory`."""
    places = [directory, *sorted(directory.glob("VOC20*")), *sorted(directory.glob("VOCdevkit/VOC20*"))]
    years = [place for place in places if (place / "Annotations").is_dir() and (place / "ImageSets").is_dir()]
    return [year for year in years if not (year / "Annotations" / "DET").is_dir()]  # not ImageNet DET


def _lists(year: Path) -> dict[str, Path]:
    """Split lists of a year by split: those of `Main` under their name, others with their folder (`Layout/train`)."""
    lists = {}
    for path in visible(sorted(year.glob("ImageSets/*/*.txt")) + sorted(year.glob("ImageSets/*.txt"))):
        folder = path.parent.name
        if not _is_of_one_class(path):
            lists[path.stem if folder in ("Main", "ImageSets") else f"{folder}/{path.stem}"] = path
    return lists


def _is_of_one_class(path: Path) -> bool:
    """Whether a list is `<class>_<another list>`, whose rows say whether the image shows the class."""
    name, _, whole = path.stem.partition("_")
    if name not in VOC_CLASSES or not path.with_name(f"{whole}.txt").is_file():
        return False
    with open(path, "rb") as file:
        return all(row[1:] in ([b"-1"], [b"0"], [b"1"]) for line in file if (row := line.split()))


def _devkit_images(years: list[Path], split: str, findings: Findings) -> tuple[list[VocImage], list[Path]]:
    """The images of a split in all years that have it, and every XML of these years."""
    images: list[VocImage] = []
    every_xml = [path for year in years for path in sorted(visible((year / "Annotations").glob("*.xml")))]
    lists = {year: _lists(year).get(split) or year / "ImageSets" / "Main" / f"{split}.txt" for year in years}
    lists = {year: path for year, path in lists.items() if split == ALL or path.is_file()}
    for year, path in lists.items():
        prefix = f"{year.name}/" if len(lists) > 1 else ""
        if path.is_file():
            stems = _listed_stems(path, findings)
        else:
            stems = [xml.stem for xml in every_xml if xml.parent.parent == year]
        files = images_in(year / "JPEGImages")
        for stem in stems:
            xml = year / "Annotations" / f"{stem}.xml"
            if os.path.isfile(xml):  # also where the name is too long
                images.append(VocImage(prefix + stem, xml, files.get(stem)))
            else:
                findings.error("missing annotation", f"{path}, '{stem}'", f"there is no {xml}")
    return images, every_xml


def _listed_stems(path: Path, findings: Findings) -> list[str]:
    """Stems of a list, without those that a class list's second column marks with -1 (the class is not shown)."""
    rows = [line.split() for line in read_text(path).splitlines() if line.strip()]
    stems = [Path(row[0]).name for row in rows if len(row) < 2 or row[1] != "-1"]
    for stem, count in sorted(Counter(stems).items()):
        if count > 1:
            findings.error("duplicate image id", str(path), f"'{stem}' is listed {count} times")
    return list(dict.fromkeys(stems))


def _flat_xml(directory: Path) -> list[Path]:
    return sorted(
        visible(path for pattern in ("*.xml", "*/*.xml", "*/*/*.xml") for path in directory.glob(pattern))
    )


def _is_annotation(path: Path) -> bool:
    with open(path, "rb") as file:
        return b"<annotation" in file.read(4096)


def _flat_split(path: Path, directory: Path) -> str:
    """The split of an XML: the first folder above it whose name is not just a word for annotations or images."""
    folders = path.parent.relative_to(directory).parts
    return next((name for name in folders if name not in (*XML_FOLDERS, *IMAGE_FOLDERS)), ALL)


def _flat_images(directory: Path, split: str, findings: Findings) -> tuple[list[VocImage], list[Path]]:
    """The images of a split of a flat folder, and every XML of the folder."""
    every_xml = _flat_xml(directory)
    chosen = [path for path in every_xml if split == ALL or _flat_split(path, directory) == split]
    listings: dict[Path, dict[str, Path]] = {}
    images: dict[str, VocImage] = {}
    for xml in chosen:
        file = next(
            (f for folder in _image_places(xml, directory) if (f := _find_image(folder, xml.stem, listings))),
            None,
        )
        if xml.stem in images:
            findings.error("duplicate image id", str(xml), f"{images[xml.stem].xml} has the same name")
        else:
            images[xml.stem] = VocImage(xml.stem, xml, file)
    used = {image.file for image in images.values()}
    for folder, files in listings.items():
        for path in files.values() if any(file in used for file in files.values()) else ():
            if path not in used and not (split != ALL and folder == directory):
                findings.report.add("picture without annotation file", str(path), "left out")
    return list(images.values()), every_xml


def _image_places(xml: Path, directory: Path) -> Iterable[Path]:
    """Folders in which an XML's image may lie: its own, then image folders beside or above it."""
    below = xml.parent.relative_to(directory).parts
    inner = [name for name in below if name not in XML_FOLDERS]
    yield xml.parent
    for base in dict.fromkeys([xml.parent.parent if below else directory, directory]):
        for name in IMAGE_FOLDERS:
            yield base.joinpath(name, *inner)
            yield base / name
    yield directory.joinpath(*inner)


def _find_image(folder: Path, stem: str, listings: dict[Path, dict[str, Path]]) -> Path | None:
    if folder not in listings:
        listings[folder] = images_in(folder)
    return listings[folder].get(stem)


def _parse_all(paths: Iterable[Path], findings: Findings) -> dict[Path, VocAnnotation]:
    contents = {}
    for path in progress(list(paths), "annotations"):
        try:
            contents[path] = parse_voc_xml(path)
        except DataError as error:
            findings.error("malformed XML", str(path), str(error).removeprefix(f"{path}: "))
    return contents
