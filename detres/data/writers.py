"""Writes a split to disk as COCO, VOC or YOLO.

Every writer returns a `ReadReport` of what the format cannot hold, so that nothing is lost silently.
"""

from __future__ import annotations

import filecmp
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detres.data.files import read_names
from detres.data.placement import Placement, place_images, plan_images
from detres.data.readers.common import images_in
from detres.data.readers.yolo_yaml import read_data_yaml
from detres.data.records import Annotations, ReadReport
from detres.errors import DataError
from detres.files import write_json, write_text


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
    place_images(annotations, directory / split, names, images)
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
    place_images(annotations, directory / "JPEGImages", names, images)
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
    place_images(annotations, directory / "images" / split, image_names, images)
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
