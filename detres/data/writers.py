"""Writes a split to disk as COCO, VOC or YOLO.

Every writer returns a `ReadReport` of what the format cannot hold, so that nothing is lost silently.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detres.console import progress
from detres.data.files import IMAGE_SUFFIXES, is_image, read_names, visible
from detres.data.readers.common import images_in
from detres.data.readers.yolo_yaml import read_data_yaml
from detres.data.records import Annotations, ReadReport
from detres.errors import DataError, UserError, listed
from detres.files import atomic_path, refuse_blocked, write_json, write_text

Placement = Literal["copy", "link", "none"]
FOLDERS = {  # of each format: where its images lie, then its other files
    "coco": ("{split}", "annotations"),
    "voc": ("JPEGImages", "Annotations", "ImageSets/Main"),
    "yolo": ("images/{split}", "labels/{split}", "."),
}


@dataclass(frozen=True)
class _Object:
    """One object: its row in the annotations, class name, flags, and corners in pixels; `where` is for messages."""

    row: int
    label: int
    name: str
    crowd: bool
    difficult: bool
    corners: tuple[float, float, float, float]
    where: str


def write_coco(
    annotations: Annotations, directory: Path, split: str, *, images: Placement = "copy"
) -> ReadReport:
    """Write `annotations/instances_<split>.json`, and the images into `<split>/`.

    Args:
        annotations: The split.
        directory: The data set's folder; its other splits are kept.
        split: Its name.
        images: Copy them, link to them, or leave them out. Images that are no files (drawn, in an archive) are written
            as PNG.

    Returns:
        What the format cannot hold.
    """
    report = ReadReport()
    names = plan_images(annotations, directory, split, "coco", images)
    _place_images(annotations, directory / split, names, images)
    numbers = _numbers(annotations, report)
    ids = annotations.category_ids or tuple(range(1, len(annotations.class_names) + 1))
    image_rows, rows = [], []
    for index, name in enumerate(names):
        height, width = annotations.sizes[index].tolist()
        image_rows.append({"id": numbers[index], "file_name": name, "height": height, "width": width})
        for entry in _objects(annotations, index):
            x1, y1, x2, y2 = entry.corners
            row = {
                "id": entry.row + 1,
                "image_id": numbers[index],
                "category_id": ids[entry.label],
                "bbox": [_rounded(value) for value in (x1, y1, x2 - x1, y2 - y1)],
                "area": _rounded(float(annotations.areas[entry.row])),
                "iscrowd": int(entry.crowd),
            }
            rows.append(row | ({"difficult": 1} if entry.difficult else {}))
    categories = [
        {"id": number, "name": name} for number, name in zip(ids, annotations.class_names, strict=True)
    ]
    content = {"images": image_rows, "annotations": rows, "categories": categories}
    write_json(directory / "annotations" / f"instances_{split}.json", content, follow_link=False)
    return report


def write_voc(
    annotations: Annotations, directory: Path, split: str, *, images: Placement = "copy"
) -> ReadReport:
    """Write `Annotations/`, `JPEGImages/` and `ImageSets/Main/<split>.txt` (see `write_coco`).

    VOC has no crowds. They become difficult objects, which evaluation ignores in the same way. All splits share the
    folders, so that an image whose name another split has is written with its split in front.
    """
    report = ReadReport()
    names = plan_images(annotations, directory, split, "voc", images)
    names = _voc_names(annotations, names, directory, split, report)
    _place_images(annotations, directory / "JPEGImages", names, images)
    for index, name in enumerate(names):
        text = _voc_xml(annotations, index, name, report)
        write_text(directory / "Annotations" / f"{Path(name).stem}.xml", text, follow_link=False)
    stems = "".join(f"{Path(name).stem}\n" for name in names)
    write_text(directory / "ImageSets" / "Main" / f"{split}.txt", stems, follow_link=False)
    return report


def write_yolo(
    annotations: Annotations, directory: Path, split: str, *, images: Placement = "copy"
) -> ReadReport:
    """Write `images/<split>/`, `labels/<split>/` and `data.yaml` (see `write_coco`).

    YOLO has no flags: crowds are left out, and difficult objects become ordinary ones; both are counted.

    Raises:
        DataError: The folder's `data.yaml` has other class names, or is malformed.
    """
    import yaml

    report = ReadReport()
    path, names = directory / "data.yaml", list(annotations.class_names)
    content = (read_data_yaml(path) if path.is_file() else {}) or {"path": "."}
    if content.setdefault("names", names) != names:
        raise DataError(f"{path} has other class names: {content['names']} against {names}")
    image_names = plan_images(annotations, directory, split, "yolo", images)
    _place_images(annotations, directory / "images" / split, image_names, images)
    for index, name in enumerate(image_names):
        height, width = annotations.sizes[index].tolist()
        lines = []
        for entry in _objects(annotations, index):
            if entry.crowd:
                report.add("crowd left out", entry.where, "YOLO has no crowds")
                continue
            if entry.difficult:
                report.add("difficult written as ordinary", entry.where, "YOLO has no such flag")
            x1, y1, x2, y2 = entry.corners
            values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(f"{entry.label} {' '.join(f'{value:.8f}' for value in values)}\n")
        label_path = directory / "labels" / split / f"{Path(name).stem}.txt"
        write_text(label_path, "".join(lines), follow_link=False)
    content[split] = f"images/{split}"
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True), follow_link=False)
    return report


WRITERS: dict[str, Callable[..., ReadReport]] = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}


def plan_images(
    annotations: Annotations,
    directory: Path,
    split: str,
    form: str,
    images: Placement = "copy",
    source: Path | None = None,
) -> list[str]:
    """The file names that a split's images will have, named by their ids; nothing is written.

    Args:
        annotations: The split.
        directory: Where it will be written.
        split: Its name.
        form: A name of `WRITERS`.
        images: See `write_coco`.
        source: The data set that is read.

    Raises:
        UserError: The split would be written into what is read or through a link to a folder, two images would have
            one name, or images of before would join a YOLO split.
    """
    _check_folders(annotations, directory, split, form, source)
    names = []
    for index in range(len(annotations)):
        suffix = Path(annotations.paths[index]).suffix.lower()
        unchanged = images == "none" or _is_file_as_annotated(annotations, index)
        stem = re.sub(r'[\\/:*?"<>|\s]', "_", _stem(annotations, index))
        names.append(stem + (suffix if unchanged and suffix in IMAGE_SUFFIXES else ".png"))
    repeated = [stem for stem, count in Counter(Path(name).stem for name in names).items() if count > 1]
    if repeated:
        raise DataError(f"{annotations.source}: several pictures would get the name {listed(repeated, 5)}")
    folder = directory / "images" / split
    existing = visible(folder.iterdir()) if form == "yolo" and folder.is_dir() else ()
    others = {path.name for path in existing if is_image(path.name)} - {*names}
    if others:
        held = listed(sorted(others), 5)
        raise UserError(
            f"{folder} holds other pictures, which would join the split: {held}; choose another --out"
        )
    return names


def _check_folders(
    annotations: Annotations, directory: Path, split: str, form: str, source: Path | None
) -> None:
    """Refuse folders that are read, or that are links to somebody else's."""
    real_directory = Path(os.path.realpath(directory))
    read: set[str] = set()
    if source and source.exists():
        root = Path(os.path.realpath(source if source.is_dir() else source.parent))
        read = {str(real_directory if root in real_directory.parents else root)}
    for index in range(len(annotations)):
        path = annotations.paths[index]
        read |= {os.path.realpath(os.path.dirname(path)), os.path.dirname(os.path.realpath(path))}
    for name in (".", *FOLDERS[form]):
        folder = directory / name.format(split=split)
        refuse_blocked(folder / "file")
        real = os.path.realpath(folder)
        if real in read:
            raise UserError(f"{folder} is in the data set that is read: choose another --out")
        if real != str(real_directory / folder.relative_to(directory)):
            raise UserError(f"{folder} is a link to {real}, and would be written into: remove it")


def _objects(annotations: Annotations, index: int) -> Iterator[_Object]:
    """The objects of an image."""
    rows = annotations.objects(index)
    for row in range(rows.start, rows.stop):
        label = int(annotations.labels[row])
        x1, y1, x2, y2 = annotations.boxes[row].tolist()
        yield _Object(
            row=row,
            label=label,
            name=annotations.class_names[label],
            crowd=bool(annotations.crowd[row]),
            difficult=bool(annotations.difficult[row]),
            corners=(x1, y1, x2, y2),
            where=f"{annotations.paths[index]}, object {row - rows.start + 1}",
        )


def _place_images(annotations: Annotations, folder: Path, names: Sequence[str], images: Placement) -> None:
    """Put the images into `folder` under `names`; links that are in the way are replaced, never followed."""
    from detres.data.decoding import read_image
    from detres.data.drawing import encode_image

    if images == "none":
        return
    for index, name in enumerate(progress(names, "images")):
        path = annotations.paths[index]
        with atomic_path(folder / name, follow_link=False) as beside:
            if not _is_file_as_annotated(annotations, index):
                pixels = read_image(path, upright=_is_upright(annotations, index))
                beside.write_bytes(encode_image(folder / name, pixels))
            elif images == "copy":
                shutil.copyfile(path, beside)
            else:
                beside.symlink_to(Path(path).resolve())


def _voc_names(
    annotations: Annotations, names: Sequence[str], directory: Path, split: str, report: ReadReport
) -> list[str]:
    """`names` with the split in front of those whose stem is another image's: another split's or another suffix's."""
    lists = [path for path in directory.glob("ImageSets/Main/*.txt") if path.stem != split]
    lists = [path for path in lists if not path.stem.endswith(f"_{split}")]  # the devkit's lists of a class
    taken = {line.split()[0] for path in lists for line in read_names(path)}
    existing = images_in(directory / "JPEGImages")
    taken |= {Path(name).stem for name in names if existing.get(Path(name).stem, Path(name)).name != name}
    own = {Path(name).stem for name in names}
    result = []
    for index, name in enumerate(names):
        unique = name
        if Path(name).stem in taken and not _is_shared(annotations, index, directory, name):
            while Path(unique).stem in taken | own:
                unique = f"{split}_{unique}"
            own.add(Path(unique).stem)
            report.add("picture renamed", annotations.paths[index], f"{name} is another picture's: {unique}")
        result.append(unique)
    return result


def _is_shared(annotations: Annotations, index: int, directory: Path, name: str) -> bool:
    """Whether the same image with the same objects has been written for another split (VOC's train and trainval)."""
    image, xml = directory / "JPEGImages" / name, directory / "Annotations" / f"{Path(name).stem}.xml"
    source = Path(annotations.paths[index])
    if not (image.is_file() and xml.is_file() and source.is_file()):
        return False
    text = _voc_xml(annotations, index, name, ReadReport())
    return xml.read_bytes() == text.encode() and filecmp.cmp(image, source, shallow=False)


def _voc_xml(annotations: Annotations, index: int, name: str, report: ReadReport) -> str:
    """The XML of an image that is written as `name`."""
    height, width = annotations.sizes[index].tolist()
    root = ElementTree.Element("annotation")
    _add(root, folder="JPEGImages", filename=name)
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    for entry in _objects(annotations, index):
        if entry.crowd:
            report.add("crowd written as difficult", entry.where, "VOC has no crowds")
        element = ElementTree.SubElement(root, "object")
        _add(element, name=entry.name, difficult=int(entry.difficult or entry.crowd))
        xmin, ymin, xmax, ymax = (
            _rounded(value + offset) for value, offset in zip(entry.corners, (1, 1, 0, 0), strict=True)
        )
        box = ElementTree.SubElement(element, "bndbox")
        _add(box, xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _is_file_as_annotated(annotations: Annotations, index: int) -> bool:
    """Whether the image is a file that can be copied. Boxes that ignore the EXIF orientation need one without it."""
    return Path(annotations.paths[index]).is_file() and _is_upright(annotations, index)


def _is_upright(annotations: Annotations, index: int) -> bool:
    from detres.data.decoding import read_header

    height, width, orientation = read_header(annotations.paths[index])
    ignores_exif = orientation >= 5 and tuple(annotations.sizes[index]) == (height, width) and height != width
    return bool(annotations.upright[index]) and not ignores_exif


def _stem(annotations: Annotations, index: int) -> str:
    """The file name of an image without suffix: its id, or where that is a number (COCO) the name it has."""
    text, path = annotations.image_ids[index], Path(annotations.paths[index])
    return path.stem if text.isdigit() and path.suffix.lower() in IMAGE_SUFFIXES else text


def _numbers(annotations: Annotations, report: ReadReport) -> list[int]:
    """COCO's image ids, which are whole numbers: the data's own if they are, else 1..N."""
    ids = [annotations.image_ids[index] for index in range(len(annotations))]
    if all(text.isdigit() and str(int(text)) == text for text in ids):
        return [int(text) for text in ids]
    report.add("picture ids numbered", annotations.source, f"ids such as '{ids[0]}' became 1 to {len(ids)}")
    return list(range(1, len(ids) + 1))


def _rounded(value: float) -> float | int:
    """A value to thousandths; a whole number without a point."""
    value = round(value, 3)
    return int(value) if value == int(value) else value


def _add(parent: ElementTree.Element, **texts: object) -> None:
    """Add an element with a text for each keyword."""
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)
