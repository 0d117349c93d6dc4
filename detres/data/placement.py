"""Where a data set that is written has its images: names and folders are checked before the first file is written."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from detres.console import progress
from detres.data.files import IMAGE_SUFFIXES, is_image, visible
from detres.data.records import Annotations
from detres.errors import DataError, UserError, listed
from detres.files import atomic_path, check_writable

Placement = Literal["copy", "link", "none"]
FOLDERS = {  # of each format: where its images lie, then its other files
    "coco": ("{split}", "annotations"),
    "voc": ("JPEGImages", "Annotations", "ImageSets/Main"),
    "yolo": ("images/{split}", "labels/{split}", "."),
}


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


def place_images(annotations: Annotations, folder: Path, names: Sequence[str], images: Placement) -> None:
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
        check_writable(folder / "file")
        real = os.path.realpath(folder)
        if real in read:
            raise UserError(f"{folder} is in the data set that is read: choose another --out")
        if real != str(real_directory / folder.relative_to(directory)):
            raise UserError(f"{folder} is a link to {real}, and would be written into: remove it")


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
