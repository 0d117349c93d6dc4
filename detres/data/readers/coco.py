"""Reads COCO instance annotations (`annotations/instances_<split>.json` and similar files).

COCO's box is [x, y, width, height] in continuous pixel coordinates. Category ids have gaps; a label is the rank of one.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from detres.data.files import visible
from detres.data.readers.coco_json import IMAGES_ALONE, read_coco_json
from detres.data.readers.coco_objects import objects_of
from detres.data.readers.common import LONGEST_SIDE, Findings, Objects, assemble, fill_sizes, only_split
from detres.data.records import Annotations
from detres.errors import DataError, listed

ROBOFLOW = "_annotations.coco.json"
OTHER_TASKS = ("captions_", "person_keypoints_", IMAGES_ALONE, "stuff_", "panoptic_")
SNIFFED_BYTES = 65536


def scan(directory: Path, split: str | None, need_images: bool = True) -> tuple[Annotations, Findings]:
    """Read one split of a COCO folder; errors are gathered, and what they concern is left out.

    Args:
        directory: Holds `annotations/*.json` (or the json itself) and the images.
        split: `val2017` means `instances_val2017.json`, `val2017.json` or the only json with it in its name.
        need_images: Whether a missing image is an error (an evaluation of results needs none).

    Raises:
        DataError: There is no such split, or its json is malformed.
    """
    name, path = _find_file(directory, split)
    return scan_file(path, directory, tuple(dict.fromkeys([name, *([split] if split else [])])), need_images)


def scan_unlabeled(directory: Path, split: str, need_images: bool) -> tuple[Annotations, Findings] | None:
    """Read the images and classes of a split without annotations (`image_info_<split>.json`); None: another split."""
    files = {
        path.stem.removeprefix(IMAGES_ALONE): path
        for path in directory.glob(f"annotations/{IMAGES_ALONE}*.json")
    }
    near = [split] if split in files else [name for name in files if split in name]
    labeled = any(split in name for name in annotation_files(directory) if not name.startswith(IMAGES_ALONE))
    if len(near) != 1 or labeled:
        return None
    return scan_file(files[near[0]], directory, (near[0],), need_images=need_images)


def recognize(directory: Path) -> bool:
    """Whether `directory` holds COCO json files."""
    return bool(annotation_files(directory))


def splits(directory: Path) -> list[str]:
    """Names of the splits that `directory` has."""
    return list(annotation_files(directory))


def annotation_files(directory: Path) -> dict[str, Path]:
    """Annotation files by split name, without those of other tasks (captions...)."""
    candidates = [*sorted(directory.glob("annotations/*.json")), *sorted(directory.glob("*.json"))]
    files = {
        path.stem.removeprefix("instances_"): path for path in visible(candidates) if _looks_like_coco(path)
    }
    if any(path.stem.startswith("instances_") for path in files.values()):
        files = {name: path for name, path in files.items() if not path.stem.startswith(OTHER_TASKS)}
    files.update({path.parent.name: path for path in sorted(directory.glob(f"*/{ROBOFLOW}"))})
    return files


def _looks_like_coco(path: Path) -> bool:
    if path.parent.name == "annotations" and path.stem.startswith("instances_"):
        return True
    with open(path, "rb") as file:
        head = file.read(SNIFFED_BYTES)
    return re.search(rb'"(images|annotations|categories)"\s*:\s*\[', head) is not None


def _find_file(directory: Path, split: str | None) -> tuple[str, Path]:
    files = annotation_files(directory)
    split = only_split(directory, list(files)) if split is None else split
    if split in files:
        return split, files[split]
    near = [(name, path) for name, path in files.items() if split in path.stem]
    if len(near) == 1:
        return near[0]
    between = f"fits {listed(name for name, _ in near)}" if near else "is not there"
    raise DataError(f"{directory}: split '{split}' {between}; it has {listed(files) or 'none'}")


def scan_file(
    path: Path, root: Path, split_names: tuple[str, ...], need_images: bool
) -> tuple[Annotations, Findings]:
    """Read one json; images are looked up under `root` in the folders that the split's names suggest."""
    findings = Findings()
    content = read_coco_json(path)
    images, rows = content["images"], content["annotations"]
    class_names, category_ids, label_of = _classes(content["categories"], rows, path, findings)
    index_of, images = _index_images(images, path, findings)
    names = [str(image.get("file_name", image["id"])) for image in images]
    sides = [[_side(image, key, path, findings) for key in ("height", "width")] for image in images]
    sizes = np.array(sides, dtype=np.int64).reshape(-1, 2)
    paths = _locate(names, root, path, split_names, need_images, findings)
    present = [index for index, image_path in enumerate(paths) if image_path is not None]
    if need_images:
        fill_sizes(
            [image_path or "" for image_path in paths],
            sizes,
            (i for i in present if not sizes[i].all()),
            findings,
        )
    objects = objects_of(rows, index_of, label_of, path, findings)
    _check_corners(objects, sizes, path, findings)
    annotations = assemble(
        [image_path or name for image_path, name in zip(paths, names, strict=True)],
        [str(image["id"]) for image in images],
        sizes,
        objects,
        class_names,
        category_ids,
        str(path),
        findings,
    )
    return (annotations.select(present) if len(present) < len(paths) else annotations), findings


def _classes(
    categories: list[dict], rows: list[dict], path: Path, findings: Findings
) -> tuple[list[str], list[int], dict[int, int]]:
    """Class names and ids in order of the ids, and the label of each id.

    Two categories of one name are one class, because names are the key everywhere. Its id is the one with more objects.
    """
    used = Counter(number for row in rows if isinstance(number := row.get("category_id"), (int, float)))
    names: list[str] = []
    ids: list[int] = []
    label_of: dict[int, int] = {}
    for category in sorted(categories, key=lambda item: int(item["id"])):
        number, name = int(category["id"]), str(category.get("name", category["id"]))
        where = f"{path}, category {number}"
        if number in label_of:
            findings.error(
                "duplicate category id", where, f"'{names[label_of[number]]}' and '{name}' share it"
            )
        elif name in names:
            label = label_of[number] = names.index(name)
            findings.report.add(
                "category name used twice", where, f"'{name}' is category {ids[label]} too: one class"
            )
            if used[number] > used[ids[label]]:
                ids[label] = number
        else:
            label_of[number] = len(names)
            names.append(name)
            ids.append(number)
    return names, ids, label_of


def _index_images(images: list[dict], path: Path, findings: Findings) -> tuple[dict[object, int], list[dict]]:
    """Index of each image id among the images that are kept, which are the first of each id."""
    index_of: dict[object, int] = {}
    kept = []
    for image in images:
        if image["id"] in index_of:
            other = kept[index_of[image["id"]]].get("file_name")
            what = f"'{other}' and '{image.get('file_name')}' share it"
            findings.error("duplicate image id", f"{path}, image {image['id']}", what)
            continue
        index_of[image["id"]] = len(kept)
        kept.append(image)
    return index_of, kept


def _side(image: dict, key: str, path: Path, findings: Findings) -> int:
    """An image's height or width as stated; 0: not stated, or malformed."""
    side = image.get(key)
    try:
        pixels = 0 if side is None else int(side)
        if abs(pixels) > LONGEST_SIDE:
            raise OverflowError
        return pixels
    except (TypeError, ValueError, OverflowError):
        what = f"{key} {side!r:.40} is not a number of pixels"
        findings.error("malformed size", f"{path}, image {image['id']}", what)
        return 0


def _locate(
    names: list[str],
    root: Path,
    path: Path,
    split_names: tuple[str, ...],
    need_images: bool,
    findings: Findings,
) -> list[str | None]:
    """The path of each image; None: it is missing.

    Images are looked up in the folders with the split's name, and of Roboflow's json in its own folder. Without such a
    folder all folders of the data set are searched (a `minival` drawn from `val2014`), and a name in two of them is an
    error.
    """
    own = [folder / name for name in split_names for folder in (root, root / "images")]
    own += [path.parent] if path.name == ROBOFLOW else []
    named = [folder for folder in own if folder.is_dir()]
    subfolders = [
        folder for base in (root, root / "images") if base.is_dir() for folder in sorted(base.iterdir())
    ]
    places = named or [root, root / "images", *(folder for folder in subfolders if folder.is_dir())]
    listings: dict[str, set[str]] = {}

    def holds(folder: str, name: str) -> bool:
        inner, base = os.path.split(name)
        parent = os.path.join(folder, inner) if inner else folder
        if parent not in listings:
            listings[parent] = set(os.listdir(parent)) if os.path.isdir(parent) else set()
        return base in listings[parent]

    search_folders = list(dict.fromkeys(str(folder) for folder in [*places, root]))
    paths: list[str | None] = []
    roots = {os.path.abspath(root), os.path.realpath(root)}
    for name in names:
        if _leaves(name, search_folders, roots):
            what = f"leaves the data set {root} and is not followed: put the picture into it"
            findings.error("picture outside the data set", f"{path}, '{name}'", what)
            paths.append(None if need_images else name)
            continue
        matches = [os.path.join(folder, name) for folder in search_folders if holds(folder, name)]
        if not need_images:
            paths.append(matches[0] if matches else name)
        elif not matches:
            findings.error("missing picture", f"{path}, '{name}'", f"is not in {listed(search_folders, 3)}")
            paths.append(None)
        else:
            if len(matches) > 1 and not named:
                findings.error("ambiguous picture", f"{path}, '{name}'", f"is in {listed(matches)}")
            paths.append(matches[0])
    return paths


def _leaves(name: str, folders: list[str], roots: set[str]) -> bool:
    """Whether a file name with `..`, or an absolute one, leads out of the data set from each folder."""
    if not os.path.isabs(name) and ".." not in name:
        return False
    places = [os.path.abspath(os.path.join(folder, name)) for folder in folders]
    return not any(place.startswith(f"{root}{os.sep}") for place in places for root in roots)


def _check_corners(objects: Objects, sizes: np.ndarray, path: Path, findings: Findings) -> None:
    """An error where most boxes exceed the image as [x, y, w, h] but not as [x1, y1, x2, y2]: corners were written."""
    if not len(objects):
        return
    limits = sizes[objects.images][:, [1, 0]]
    with np.errstate(invalid="ignore"):  # infinite ones are errors already
        corners = objects.boxes[:, 2:] - objects.boxes[:, :2]
    leaves = (objects.boxes[:, 2:] > limits + 1).any(axis=1)
    fits = ((corners > objects.boxes[:, :2]) & (corners <= limits + 1)).all(axis=1)
    share = np.mean(leaves & fits & (limits > 0).all(axis=1))
    if share > 0.5:
        what = f"{share:.0%} of the boxes leave their picture as [x, y, width, height] but fit as [x1, y1, x2, y2]"
        findings.error("boxes look like corners", str(path), f"{what}: COCO wants [x, y, width, height]")
