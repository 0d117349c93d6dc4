"""Writes a split to disk as COCO, VOC or YOLO: the other way of `readers`, for conversions and exports.

Every writer returns what the format has no place for, as a `ReadReport`; nothing is lost without a line there.
"""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from detres.console import progress
from detres.data.readers import yolo_yaml
from detres.data.readers.common import IMAGE_SUFFIXES
from detres.data.records import Annotations, ReadReport
from detres.errors import DataError
from detres.files import write_json, write_text

Images = Literal["copy", "link", "none"]


def write_coco(
    annotations: Annotations, directory: Path, split: str, *, images: Images = "copy"
) -> ReadReport:
    """Write `annotations/instances_<split>.json` and `<split>/` with the pictures.

    Args:
        annotations: The split.
        directory: The data set's folder; other splits in it stay.
        split: Its name.
        images: Copy them, link to them, or leave them out. What is no file (drawn, in an archive) is written as PNG.

    Returns:
        What was changed on the way.
    """
    report = ReadReport()
    names = _place_images(annotations, directory / split, images)
    numbers = _numbers(annotations, report)
    ids = annotations.category_ids or tuple(range(1, len(annotations.class_names) + 1))
    image_rows, rows = [], []
    for index, name in enumerate(names):
        height, width = (int(side) for side in annotations.sizes[index])
        image_rows.append({"id": numbers[index], "file_name": name, "height": height, "width": width})
        for row in range(annotations.objects(index).start, annotations.objects(index).stop):
            x1, y1, x2, y2 = (float(value) for value in annotations.boxes[row])
            entry = {
                "id": row + 1,
                "image_id": numbers[index],
                "category_id": ids[annotations.labels[row]],
                "bbox": [_rounded(value) for value in (x1, y1, x2 - x1, y2 - y1)],
                "area": _rounded(float(annotations.areas[row])),
                "iscrowd": int(annotations.crowd[row]),
            }
            rows.append(entry | ({"difficult": 1} if annotations.difficult[row] else {}))
    categories = [
        {"id": number, "name": name} for number, name in zip(ids, annotations.class_names, strict=True)
    ]
    content = {"images": image_rows, "annotations": rows, "categories": categories}
    write_json(directory / "annotations" / f"instances_{split}.json", content)
    return report


def write_voc(
    annotations: Annotations, directory: Path, split: str, *, images: Images = "copy"
) -> ReadReport:
    """Write `Annotations/`, `JPEGImages/` and `ImageSets/Main/<split>.txt` (see `write_coco`).

    VOC has no crowds: they become difficult objects, which evaluation ignores likewise.
    """
    report = ReadReport()
    names = _place_images(annotations, directory / "JPEGImages", images)
    for index, name in enumerate(names):
        height, width = (int(side) for side in annotations.sizes[index])
        root = ElementTree.Element("annotation")
        _leaf(root, "folder", "JPEGImages")
        _leaf(root, "filename", name)
        size = ElementTree.SubElement(root, "size")
        for tag, value in (("width", width), ("height", height), ("depth", 3)):
            _leaf(size, tag, value)
        rows = annotations.objects(index)
        for row in range(rows.start, rows.stop):
            if annotations.crowd[row]:
                report.add(
                    "crowd written as difficult", annotations.paths[index], f"object {row - rows.start + 1}"
                )
            entry = ElementTree.SubElement(root, "object")
            _leaf(entry, "name", annotations.class_names[annotations.labels[row]])
            _leaf(entry, "difficult", int(annotations.difficult[row] or annotations.crowd[row]))
            box = ElementTree.SubElement(entry, "bndbox")
            x1, y1, x2, y2 = (float(value) for value in annotations.boxes[row])
            for tag, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
                _leaf(box, tag, _rounded(value))
        ElementTree.indent(root, "\t")
        text = ElementTree.tostring(root, encoding="unicode") + "\n"
        write_text(directory / "Annotations" / f"{Path(name).stem}.xml", text)
    stems = "".join(f"{Path(name).stem}\n" for name in names)
    write_text(directory / "ImageSets" / "Main" / f"{split}.txt", stems)
    return report


def write_yolo(
    annotations: Annotations, directory: Path, split: str, *, images: Images = "copy"
) -> ReadReport:
    """Write `images/<split>/`, `labels/<split>/` and `data.yaml` (see `write_coco`).

    YOLO has no flags: crowds are left out, difficult objects become ordinary ones; both are counted.

    Raises:
        DataError: The folder's `data.yaml` has other class names, or is malformed.
    """
    import yaml

    report = ReadReport()
    described = directory / "data.yaml"
    names = list(annotations.class_names)
    content: dict[str, object] = {"path": "."}
    if described.is_file():
        content = yolo_yaml.read(described) or content
    if content.setdefault("names", names) != names:
        raise DataError(f"{described} has other class names: {content['names']} against {names}")
    for index, name in enumerate(_place_images(annotations, directory / "images" / split, images)):
        height, width = (int(side) for side in annotations.sizes[index])
        rows = annotations.objects(index)
        lines = []
        for row in range(rows.start, rows.stop):
            where = f"{annotations.paths[index]}, object {row - rows.start + 1}"
            if annotations.crowd[row]:
                report.add("crowd left out", where, "YOLO has no crowds")
                continue
            if annotations.difficult[row]:
                report.add("difficult written as ordinary", where, "YOLO has no such flag")
            x1, y1, x2, y2 = (float(value) for value in annotations.boxes[row])
            values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(" ".join([str(int(annotations.labels[row])), *(f"{value:.8f}" for value in values)]))
        write_text(
            directory / "labels" / split / f"{Path(name).stem}.txt", "".join(f"{line}\n" for line in lines)
        )
    content[split] = f"images/{split}"
    write_text(described, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return report


WRITERS: dict[str, Callable[..., ReadReport]] = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}


def _place_images(annotations: Annotations, folder: Path, images: Images) -> list[str]:
    """Put the pictures into `folder`, each named by its id; the file names."""
    from detres.data.decoding import read_image
    from detres.data.drawing import write_image

    paths = [annotations.paths[index] for index in range(len(annotations))]
    as_they_are = [
        images == "none" or _is_file_as_annotated(annotations, index) for index in range(len(paths))
    ]
    names = []
    for index, path in enumerate(paths):
        suffix = Path(path).suffix.lower()
        stem = re.sub(r'[\\/:*?"<>|\s]', "_", _stem(annotations, index))
        names.append(stem + (suffix if as_they_are[index] and suffix in IMAGE_SUFFIXES else ".png"))
    repeated = len(names) - len({Path(name).stem for name in names})
    if repeated:
        raise DataError(f"{annotations.source}: {repeated} pictures would get a name that another has")
    if images == "none":
        return names
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(progress(names, "images")):
        if not as_they_are[index]:
            write_image(folder / name, read_image(paths[index], upright=_is_upright(annotations, index)))
        elif images == "copy":
            shutil.copyfile(paths[index], folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(Path(paths[index]).resolve())
    return names


def _is_file_as_annotated(annotations: Annotations, index: int) -> bool:
    """Whether the picture is a file that can be copied: boxes drawn with EXIF ignored need one without EXIF."""
    return Path(annotations.paths[index]).is_file() and _is_upright(annotations, index)


def _is_upright(annotations: Annotations, index: int) -> bool:
    from detres.data.decoding import read_header

    height, width, orientation = read_header(annotations.paths[index])
    turned = orientation >= 5 and tuple(annotations.sizes[index]) == (height, width) and height != width
    return bool(annotations.upright[index]) and not turned


def _stem(annotations: Annotations, index: int) -> str:
    """A COCO id is a number: the picture keeps its file's name; other ids are names already."""
    text, path = annotations.image_ids[index], Path(annotations.paths[index])
    return path.stem if text.isdigit() and path.suffix.lower() in IMAGE_SUFFIXES else text


def _numbers(annotations: Annotations, report: ReadReport) -> list[int]:
    """COCO wants whole numbers as ids: the data's own where all are, else 1..N."""
    ids = [annotations.image_ids[index] for index in range(len(annotations))]
    if all(text.isdigit() and str(int(text)) == text for text in ids):
        return [int(text) for text in ids]
    report.add("picture ids numbered", annotations.source, f"ids such as '{ids[0]}' became 1 to {len(ids)}")
    return list(range(1, len(ids) + 1))


def _rounded(value: float) -> float | int:
    """Thousandths of a pixel; whole numbers without a point."""
    value = round(value, 3)
    return int(value) if value == int(value) else value


def _leaf(parent: ElementTree.Element, tag: str, value: object) -> None:
    ElementTree.SubElement(parent, tag).text = str(value)
