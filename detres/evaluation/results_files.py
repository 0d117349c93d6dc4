"""Reading and writing detections: COCO's results json and the VOC kit's `comp4` text files.

The detections must fit the ground truth: an unknown image or class is an error that names it and is never skipped.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from detres.data.files import read_text
from detres.data.records import Annotations, DetectionTable, Strings
from detres.errors import DataError, listed, nearest
from detres.files import atomic_path, check_writable, write_json

ENTRY = '{"image_id": 1, "category_id": 1, "bbox": [x, y, width, height], "score": 0.5}'
_Row = tuple[int, tuple[float, float, float, float], float, int]  # image, box xyxy, score, label


def read_coco_results(path: str | Path, truth: Annotations) -> DetectionTable:
    """Read a COCO results json: a list of image_id, category_id, bbox (xywh) and score.

    Args:
        path: The file.
        truth: The annotations that the ids refer to. Category ids are `truth.category_ids` or, if the data set has
            none, 1..K. An image id is the text of the data's own id or the same whole number (42 for "000042").

    Raises:
        DataError: No file or malformed json, a missing key, unknown images or categories (their number and the first),
            or a score or coordinate that is NaN or infinite.
    """
    path = Path(path)
    entries = _json_list(path)
    images = _ImageIndex(truth.image_ids)
    labels = {number: label for label, number in enumerate(_category_ids(truth))}
    rows, unknown_images, unknown_categories = [], [], []
    for place, entry in enumerate(entries):
        image_id, category, box, score = _entry(path, place, entry)
        image = images.find(image_id)
        label = labels.get(category) if isinstance(category, int) else None
        if image is None:
            unknown_images.append(image_id)
        elif label is None:
            unknown_categories.append(category)
        else:
            x, y, width, height = box
            rows.append((image, (x, y, x + width, y + height), score, label))
    if unknown_images:
        raise _unknown_images(path, unknown_images, len(entries), truth)
    if unknown_categories:
        valid = f"category ids of {_source(truth)} are {listed(sorted(labels))}"
        raise DataError(
            f"{path}: {len(unknown_categories)} of {len(entries)} detections have an unknown category_id, "
            f"the first {unknown_categories[0]!r}; {valid}"
        )
    return _table(rows)


def write_coco_results(path: str | Path, truth: Annotations, detections: DetectionTable) -> None:
    """Write detections as a COCO results json, with the data's own image and category ids.

    The file is written completely or not at all.

    Args:
        path: The file to make or replace.
        truth: The annotations that the detections belong to; without category ids the classes are 1..K.
        detections: Detections.
    """
    numbers = _category_ids(truth)
    ids = [_image_id(truth.image_ids[i]) for i in range(len(truth))]
    boxes = detections.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    columns = (
        detections.images.tolist(),
        detections.labels.tolist(),
        boxes.tolist(),
        detections.scores.tolist(),
    )
    write_json(
        path,
        [
            {"image_id": ids[image], "category_id": numbers[label], "bbox": box, "score": score}
            for image, label, box, score in zip(*columns, strict=True)
        ],
    )


def read_comp4(folder: str | Path, truth: Annotations, split: str | None = None) -> DetectionTable:
    """Read the VOC kit's files `comp4_det_<split>_<class>.txt`: image, score, x1, y1, x2, y2 on each line.

    The files' 1-based inclusive box (a, b, c, d) is (a - 1, b - 1, c, d) here. A class without a file has no
    detections.

    Args:
        folder: Where the files are.
        truth: The annotations that the images and classes refer to.
        split: The files' split; None if the folder has only one.

    Raises:
        DataError: No such file, a class or image that `truth` does not have, or a line that is malformed or has a
            number that is NaN or infinite (with file and line).
    """
    folder = Path(folder)
    files = _comp4_files(folder, truth.class_names, split)
    images = _ImageIndex(truth.image_ids)
    rows: list[_Row] = []
    for label, name in enumerate(truth.class_names):
        if name not in files:
            continue
        path = files[name]
        unknown_images, count = [], 0
        for stem, score, (x1, y1, x2, y2) in _comp4_lines(path):
            count += 1
            image = images.find(stem)
            if image is None:
                unknown_images.append(stem)
            else:
                rows.append((image, (x1 - 1, y1 - 1, x2, y2), score, label))
        if unknown_images:
            raise _unknown_images(path, unknown_images, count, truth)
    return _table(rows)


def read_results(path: str | Path, truth: Annotations, split: str | None = None) -> DetectionTable:
    """Read a COCO results json or a folder of `comp4` files (see `read_coco_results`, `read_comp4`)."""
    return read_comp4(path, truth, split) if Path(path).is_dir() else read_coco_results(path, truth)


def comp4_paths(folder: str | Path, truth: Annotations, split: str) -> list[Path]:
    """The files that `write_comp4` writes, one for each class."""
    return [Path(folder) / f"comp4_det_{split}_{name}.txt" for name in truth.class_names]


def write_comp4(folder: str | Path, truth: Annotations, detections: DetectionTable, split: str) -> None:
    """Write the VOC kit's `comp4_det_<split>_<class>.txt`, one for each class, in VOC's 1-based inclusive coordinates.

    The files are renamed to their names after all are written, so that a full disk leaves earlier files as they were.

    Args:
        folder: Where the files go; made where missing.
        truth: The annotations that the detections belong to.
        detections: Detections.
        split: The name of the split.

    Raises:
        UserError: A file that cannot be written.
    """
    paths = comp4_paths(folder, truth, split)
    check_writable(*paths)
    with ExitStack() as files:
        for label, path in enumerate(paths):
            lines = []
            for row in np.flatnonzero(detections.labels == label).tolist():
                x1, y1, x2, y2 = detections.boxes[row].astype(np.float64).tolist()
                stem, score = truth.image_ids[int(detections.images[row])], detections.scores[row]
                lines.append(f"{stem} {score:.9g} {x1 + 1:.6f} {y1 + 1:.6f} {x2:.6f} {y2:.6f}\n")
            beside = files.enter_context(atomic_path(path))
            beside.write_text("".join(lines), encoding="utf-8")


class _ImageIndex:
    """From an image's id, as text or number, to its index in the annotations."""

    def __init__(self, image_ids: Strings):
        texts = [image_ids[i] for i in range(len(image_ids))]
        self._by_text = {text: i for i, text in enumerate(texts)}
        numbers = {int(text): i for i, text in enumerate(texts) if text.isdecimal()}
        self._by_number = numbers if len(numbers) == len(texts) else {}

    def find(self, image_id: object) -> int | None:
        text = str(image_id)
        index = self._by_text.get(text)
        is_number = text.isdecimal() and len(text) <= sys.float_info.max_10_exp
        return self._by_number.get(int(text)) if index is None and is_number else index


def _json_list(path: Path) -> list[object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; should be a COCO results json, a list of {ENTRY}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}; should be a COCO results json") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: malformed json: {error.msg} (column {error.colno})"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits
        raise DataError(f"{path}: malformed json: {error}") from error
    if not isinstance(value, list):
        keys = f" with keys {listed(value)}" if isinstance(value, dict) else ""
        raise DataError(f"{path}: holds a {type(value).__name__}{keys}, not COCO results: a list of {ENTRY}")
    return value


def _entry(path: Path, place: int, entry: object) -> tuple[object, object, Sequence[float], float]:
    """image_id, category_id, bbox and score of one entry, checked."""
    where = f"{path}: detection {place}"
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {entry!r}, not {ENTRY}")
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in entry]
    if missing:
        raise DataError(f"{where} has no {listed(missing)}; it should look like {ENTRY}")
    box, score = entry["bbox"], entry["score"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        raise DataError(f"{where} (image {entry['image_id']}): bbox {box} is not four finite numbers")
    if not _is_finite(score):
        raise DataError(f"{where} (image {entry['image_id']}): score {score} is not a finite number")
    return entry["image_id"], entry["category_id"], box, float(score)


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max


def _comp4_files(folder: Path, class_names: Sequence[str], split: str | None) -> dict[str, Path]:
    """The file of each class that has one."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; should be one with files comp4_det_<split>_<class>.txt")
    files: dict[str, dict[str, Path]] = {}  # by split, then by class
    for path in sorted(folder.glob("comp4_det_*.txt")):
        stem = path.stem.removeprefix("comp4_det_")
        matches = [name for name in class_names if stem.endswith(f"_{name}")]
        if not matches:
            word = stem.rpartition("_")[2]
            hint = nearest(word, class_names)
            raise DataError(f"{path}: unknown class{hint}; the classes are {listed(class_names, 30)}")
        name = max(matches, key=len)
        files.setdefault(stem.removesuffix(f"_{name}"), {})[name] = path
    if split is None and len(files) > 1:
        raise DataError(f"{folder}: has files of several splits ({listed(files)}); choose one with --split")
    files_of_split = files.get(split) if split is not None else next(iter(files.values()), None)
    if files_of_split is None:
        present = f"its files are of {listed(files)}" if files else "no comp4 files at all"
        raise DataError(f"{folder}: no files comp4_det_{split or '<split>'}_<class>.txt; {present}")
    return files_of_split


def _comp4_lines(path: Path) -> Iterator[tuple[str, float, tuple[float, float, float, float]]]:
    """Image, score and box (in VOC's coordinates) of each line."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        stem, *texts = line.split()
        try:
            score, x1, y1, x2, y2 = map(float, texts)
        except ValueError as error:
            raise DataError(f"{path}:{number}: '{line}' should be: image score x1 y1 x2 y2") from error
        if not all(map(math.isfinite, (score, x1, y1, x2, y2))):
            raise DataError(f"{path}:{number}: '{line}' has a number that is not finite")
        yield stem, score, (x1, y1, x2, y2)


def _unknown_images(
    path: Path, unknown_images: Sequence[object], total: int, truth: Annotations
) -> DataError:
    first = truth.image_ids[0] if len(truth) else "none"
    return DataError(
        f"{path}: {len(unknown_images)} of {total} detections are of images that {_source(truth)} does not have, "
        f"the first {unknown_images[0]!r}; its {len(truth)} image ids look like {first!r}: results of another split?"
    )


def _category_ids(truth: Annotations) -> list[int]:
    return list(truth.category_ids or range(1, len(truth.class_names) + 1))


def _image_id(text: str) -> int | str:
    return int(text) if text.isdecimal() and str(int(text)) == text else text


def _source(truth: Annotations) -> str:
    return truth.source or "the ground truth"


def _table(rows: Sequence[_Row]) -> DetectionTable:
    return DetectionTable(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[2] for row in rows], np.float64),
        np.array([row[3] for row in rows], np.int64),
    )
