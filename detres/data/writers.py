"""Writes a split to disk as COCO, VOC or YOLO.

Every writer returns a `ReadReport` of what the format cannot hold, so that nothing is lost silently.
"""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detres.console import progress
from detres.data.readers.common import IMAGE_SUFFIXES
from detres.data.readers.yolo_yaml import read_data_yaml
from detres.data.records import Annotations, ReadReport
from detres.errors import DataError
from detres.files import write_json, write_text

Placement = Literal["copy", "link", "none"]


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
    names = _place_images(annotations, directory / split, images)
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
    write_json(directory / "annotations" / f"instances_{split}.json", content)
    return report


def write_voc(
    annotations: Annotations, directory: Path, split: str, *, images: Placement = "copy"
) -> ReadReport:
    """Write `Annotations/`, `JPEGImages/` and `ImageSets/Main/<split>.txt` (see `write_coco`).

    VOC has no crowds. They become difficult objects, which evaluation ignores in the same way.
    """
    report = ReadReport()
    names = _place_images(annotations, directory / "JPEGImages", images)
    for index, name in enumerate(names):
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
        text = ElementTree.tostring(root, encoding="unicode") + "\n"
        write_text(directory / "Annotations" / f"{Path(name).stem}.xml", text)
    stems = "".join(f"{Path(name).stem}\n" for name in names)
    write_text(directory / "ImageSets" / "Main" / f"{split}.txt", stems)
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
    for index, name in enumerate(_place_images(annotations, directory / "images" / split, images)):
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
        write_text(directory / "labels" / split / f"{Path(name).stem}.txt", "".join(lines))
    content[split] = f"images/{split}"
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return report


WRITERS: dict[str, Callable[..., ReadReport]] = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}


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


def _place_images(annotations: Annotations, folder: Path, images: Placement) -> list[str]:
    """Put the images into `folder`, named by their ids, and return the file names."""
    from detres.data.decoding import read_image
    from detres.data.drawing import write_image

    paths = [annotations.paths[index] for index in range(len(annotations))]
    unchanged = [images == "none" or _is_file_as_annotated(annotations, index) for index in range(len(paths))]
    names = []
    for index, path in enumerate(paths):
        suffix = Path(path).suffix.lower()
        stem = re.sub(r'[\\/:*?"<>|\s]', "_", _stem(annotations, index))
        names.append(stem + (suffix if unchanged[index] and suffix in IMAGE_SUFFIXES else ".png"))
    repeated = len(names) - len({Path(name).stem for name in names})
    if repeated:
        raise DataError(f"{annotations.source}: {repeated} pictures would get a name that another has")
    if images == "none":
        return names
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(progress(names, "images")):
        if not unchanged[index]:
            write_image(folder / name, read_image(paths[index], upright=_is_upright(annotations, index)))
        elif images == "copy":
            shutil.copyfile(paths[index], folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(Path(paths[index]).resolve())
    return names


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
