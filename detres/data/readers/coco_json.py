"""Parses a COCO json and checks its images, annotations and categories as far as the reader relies on them.

A training set's file is half a gigabyte (COCO 2017), most of it segmentations, which are not used.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detres.data.files import read_text
from detres.errors import DataError

DIGITS = 18  # of the longest id that 64 bits hold
IMAGES_ALONE = "image_info_"  # files of the test sets: images and categories without annotations


def read_coco_json(path: Path) -> dict:
    """The file's content without segmentations, which are dropped while it is parsed.

    Raises:
        DataError: Not JSON (with the line), a list is missing or has an element that is no mapping, or an image or
            category has no valid id.
    """

    def without_segmentation(mapping: dict) -> dict:
        mapping.pop("segmentation", None)
        return mapping

    try:
        with _gc_disabled():
            content = json.loads(read_text(path), object_hook=without_segmentation)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: malformed JSON: {error.msg} (column {error.colno})"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits
        raise DataError(f"{path}: malformed JSON: {error}") from error
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
                raise DataError(f"{path}: {key}[{place}]: id {item['id']!r:.80} is not {wanted}")
    return content


def _is_key(number: object) -> bool:
    return isinstance(number, (int, float, str))


def _is_whole(number: object) -> bool:
    """Whether a value is a whole number: 7, 7.0 or "7"."""
    if isinstance(number, str):
        return number.isdecimal() and len(number) <= DIGITS
    if isinstance(number, int) or (isinstance(number, float) and number.is_integer()):
        return abs(number) < 10**DIGITS
    return False


@contextmanager
def _gc_disabled() -> Iterator[None]:
    """Without Python's garbage collector, which would go through the millions of new containers again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
