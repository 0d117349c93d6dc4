"""Small data sets on disk, written by hand in the test's own words (never by the package's writers)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_image(
    path: Path, width: int = 100, height: int = 80, seed: int = 0, exif_orientation: int | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if exif_orientation is None:
        image.save(path)
    else:
        exif = Image.Exif()
        exif[0x0112] = exif_orientation
        image.save(path, exif=exif)
    return path


def coco(root: Path, split: str = "val", **changes: Any) -> Path:
    """Two pictures of 100 x 80, three objects of two classes with ids 3 and 7; `changes` replace whole lists."""
    content = {
        "images": [
            {"id": 11, "file_name": "a.png", "width": 100, "height": 80},
            {"id": 5, "file_name": "b.png", "width": 100, "height": 80},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 11,
                "category_id": 7,
                "bbox": [10, 20, 30, 40],
                "area": 600.5,
                "iscrowd": 0,
            },
            {"id": 2, "image_id": 5, "category_id": 3, "bbox": [0.5, 0.25, 20, 10], "iscrowd": 1},
            {"id": 3, "image_id": 11, "category_id": 3, "bbox": [50, 40, 50, 40]},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    content.update(changes)
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for number, image in enumerate(content["images"]):
        if not (root / split / image["file_name"]).exists():
            write_image(root / split / image["file_name"], seed=number)
    return path


def xml(
    objects: Sequence[tuple[str, tuple[Any, Any, Any, Any]]],
    size: tuple[int, int] = (100, 80),
    extra: str = "",
) -> str:
    """A VOC XML; objects are (name, (xmin, ymin, xmax, ymax)), size is (width, height)."""
    entries = "".join(
        f"<object><name>{name}</name>\n<bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        f"</bndbox>{extra}</object>\n"
        for name, (a, b, c, d) in objects
    )
    width, height = size
    return f"<annotation>\n<size><width>{width}</width><height>{height}</height></size>\n{entries}</annotation>\n"


def voc(root: Path, splits: dict[str, dict[str, str]]) -> Path:
    """A devkit year: split -> stem -> XML text; pictures of 100 x 80."""
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "Annotations").mkdir(exist_ok=True)
    for split, texts in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in texts))
        for number, (stem, text) in enumerate(texts.items()):
            (root / "Annotations" / f"{stem}.xml").write_text(text)
            write_image(root / "JPEGImages" / f"{stem}.png", seed=hash_of(stem) + number)
    return root


def yolo(
    root: Path, labels: dict[str, str], split: str = "train", names: Sequence[str] | None = ("cat", "dog")
) -> Path:
    """`images/<split>`, `labels/<split>` and `classes.txt`; pictures of 100 x 80."""
    (root / "labels" / split).mkdir(parents=True, exist_ok=True)
    for number, (stem, text) in enumerate(labels.items()):
        write_image(root / "images" / split / f"{stem}.png", seed=number)
        (root / "labels" / split / f"{stem}.txt").write_text(text)
    if names is not None:
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def hash_of(text: str) -> int:
    return sum(map(ord, text))
