"""What a COCO json holds: pictures, objects and categories, parsed, and checked where all that follows relies on it.

A training set's file is half a gigabyte (COCO 2017), most of it segmentations that nothing here uses.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detres.data.files import read_text
from detres.errors import DataError

IMAGES_ALONE = "image_info_"  # of the test sets: pictures and categories, no annotations


def load(path: Path) -> dict:
    """The file's content without segmentations, which are let go while it is parsed: they are most of its size.

    Raises:
        DataError: Not JSON (with the line), a list that is missing or holds something else than mappings, or a picture
            or category without an id that can be one.
    """

    def without_segmentation(mapping: dict) -> dict:
        mapping.pop("segmentation", None)
        return mapping

    try:
        with _collector_paused():
            content = json.loads(read_text(path), object_hook=without_segmentation)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: malformed JSON: {error.msg} (column {error.colno})"
        ) from error
    if isinstance(content, dict) and path.stem.startswith(IMAGES_ALONE):
        content.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"{path}: no list '{key}'; COCO annotations have images, annotations and categories"
            )
        if {*map(type, content[key])} - {dict}:
            wrong = next(n for n, item in enumerate(content[key]) if not isinstance(item, dict))
            raise DataError(f"{path}: {key}[{wrong}] is not a mapping")
    for key, is_id, wanted in (
        ("images", _is_key, "a number or text"),
        ("categories", _is_whole, "a whole number"),
    ):
        for place, item in enumerate(content[key]):
            if "id" not in item:
                raise DataError(f"{path}: {key}[{place}] has no 'id'")
            if not is_id(item["id"]):
                raise DataError(f"{path}: {key}[{place}]: id {item['id']!r} is not {wanted}")
    return content


def _is_key(number: object) -> bool:
    return isinstance(number, (int, float, str))


def _is_whole(number: object) -> bool:
    """Whether `int` reads it as it stands: 7, 7.0 and "7"."""
    if isinstance(number, str):
        return number.isdecimal()
    return isinstance(number, int) or (isinstance(number, float) and number.is_integer())


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without Python's collector of cycles, which would go through the millions of new containers again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
