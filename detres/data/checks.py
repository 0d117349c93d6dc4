"""Checks a whole data set for detection: its contents and all its defects, without stopping at the first.

Beyond what the readers report: images that cannot be decoded or whose size differs from the annotation, copies of
images, identical or nearly so, within a split or across (a leak from training to test), and objects boxed twice.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from detres.console import progress
from detres.data.formats import list_splits, scan_annotations
from detres.data.records import Annotations, Defect
from detres.errors import DataError, UserError, listed

DOUBLED_IOU = 0.8
COCO_AREAS = (32**2, 96**2)  # small, medium, large (COCO's evaluation)
PERCENTILES = (0, 5, 50, 95, 100)


@dataclass
class ClassCheck:
    """Number of objects of a class, and of images that show one."""

    objects: int
    images: int


@dataclass
class SplitCheck:
    """What one split holds.

    Attributes:
        images: Their number.
        objects: Their number (crowds and difficult ones included).
        empty: Images without objects.
        crowd: Objects that are crowds.
        difficult: Objects marked so.
        classes: Counts by class name.
        sides: 0, 5, 50, 95, 100 % points of images' shorter and longer sides, and of the objects' sqrt(area).
        areas: Objects that are small, medium, large as COCO counts.
    """

    images: int
    objects: int
    empty: int
    crowd: int
    difficult: int
    classes: dict[str, ClassCheck]
    sides: dict[str, list[float] | None]
    areas: dict[str, int]


@dataclass
class CheckReport:
    """The result of a check.

    Attributes:
        source: The data set's folder.
        splits: Contents by split.
        errors: Defects that stop a training.
        defects: Defects that are dropped or mended with a count, and those of no consequence.
        identical: Groups of images with the same pixels, as `split/id`.
        near_identical: Groups of images that are nearly the same (see `likeness`) and not all in one of `identical`.
        across_splits: Groups of both kinds with two images, each of which is in a split that lacks the other: a leak.
    """

    source: str
    splits: dict[str, SplitCheck] = field(default_factory=dict)
    errors: list[Defect] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    identical: list[list[str]] = field(default_factory=list)
    near_identical: list[list[str]] = field(default_factory=list)
    across_splits: list[list[str]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Number of errors and defects of each kind."""
        return dict(Counter(defect.kind for defect in (*self.errors, *self.defects)))

    def to_dict(self) -> dict[str, object]:
        """The report for `--json`."""
        return {**asdict(self), "counts": self.counts()}


def check_data_set(
    directory: Path,
    split: str | None = None,
    *,
    format: str | None = None,
    pixels: bool = True,
    workers: int = 4,
    quiet: bool = False,
) -> CheckReport:
    """Check a data set for detection.

    Args:
        directory: Its folder (or `shapes`).
        split: One split; all of them where None.
        format: A name of `FORMATS`; None: that of the folder.
        pixels: Decode every image, which finds truncated images and copies; False: read the headers only.
        workers: Threads that decode.
        quiet: Show no progress.

    Raises:
        UserError: The folder holds no data set that is known, or more than one format.
    """
    report = CheckReport(str(directory))
    checks: dict[str, _ImageCheck] = {}
    parts: dict[str, Annotations] = {}
    paths: set[str] = set()
    for name in [split] if split else list_splits(directory, format=format):
        try:
            annotations, findings = scan_annotations(directory, name, format=format)
        except DataError as error:
            report.errors.append(Defect("unreadable split", f"{directory} ({name})", str(error)))
            continue
        parts[name] = annotations
        report.splits[name] = summarize(annotations)
        report.errors += findings.errors
        report.defects += [*findings.report.defects, *find_doubled_boxes(annotations)]
        new = [index for index in range(len(annotations)) if annotations.paths[index] not in paths]
        paths.update(annotations.paths[index] for index in new)
        with ThreadPoolExecutor(workers) as pool:
            results = pool.map(partial(_check_image, annotations, pixels=pixels), new)
            results = progress(results, f"pictures of {name}", total=len(new), quiet=quiet)
            for index, check in zip(new, results, strict=True):
                report.errors += check.errors
                report.defects += check.defects
                checks[f"{name}/{annotations.image_ids[index]}"] = check
    _compare_splits(parts, report)
    _compare_images(parts, checks, report)
    report.errors = list(dict.fromkeys(report.errors))
    report.defects = list(dict.fromkeys(report.defects))
    return report


def summarize(annotations: Annotations) -> SplitCheck:
    """Counts and sizes of a split."""
    counts = np.diff(annotations.offsets)
    image_of = np.repeat(np.arange(len(annotations)), counts)
    names = annotations.class_names
    pairs = np.unique(image_of * max(len(names), 1) + annotations.labels)
    shown_in = np.bincount(pairs % max(len(names), 1), minlength=len(names))
    objects = annotations.objects_per_class()
    sides = annotations.boxes[:, 2:] - annotations.boxes[:, :2]
    size = np.sqrt(sides.prod(axis=1, dtype=np.float64)) if len(sides) else np.zeros(0)
    small, large = COCO_AREAS
    areas = annotations.areas
    return SplitCheck(
        images=len(annotations),
        objects=len(annotations.boxes),
        empty=int((counts == 0).sum()),
        crowd=int(annotations.crowd.sum()),
        difficult=int(annotations.difficult.sum()),
        classes={name: ClassCheck(objects[name], int(shown_in[label])) for label, name in enumerate(names)},
        sides={
            "shorter side of pictures": _percentiles(annotations.sizes.min(axis=1)),
            "longer side of pictures": _percentiles(annotations.sizes.max(axis=1)),
            "sqrt(width x height) of boxes": _percentiles(size),
        },
        areas={
            "small": int((areas < small).sum()),
            "medium": int(((areas >= small) & (areas < large)).sum()),
            "large": int((areas >= large).sum()),
        },
    )


def find_doubled_boxes(annotations: Annotations) -> list[Defect]:
    """Pairs of boxes of one class in one image that overlap by more than an IoU of 0.8 (crowds left out)."""
    import torch

    from detres.boxes.geometry import box_iou

    defects = []
    for index in range(len(annotations)):
        rows = annotations.objects(index)
        if rows.stop - rows.start < 2:
            continue
        boxes = torch.from_numpy(annotations.boxes[rows])
        labels, crowd = annotations.labels[rows], annotations.crowd[rows]
        same = (labels[:, None] == labels[None]) & ~crowd[:, None] & ~crowd[None]
        overlaps = box_iou(boxes, boxes).numpy()
        for first, second in np.argwhere(np.triu((overlaps > DOUBLED_IOU) & same, k=1)).tolist():
            name = annotations.class_names[labels[first]]
            where = f"{annotations.paths[index]}, objects {first + 1} and {second + 1}, {name}"
            defects.append(
                Defect("object boxed twice", where, f"IoU {overlaps[first, second]:.2f}: both kept")
            )
    return defects


def _compare_splits(parts: dict[str, Annotations], report: CheckReport) -> None:
    """Report class lists that differ (an error), and images that two splits share."""
    paths = {name: {part.paths[index] for index in range(len(part))} for name, part in parts.items()}
    for (name, part), (other_name, other) in combinations(parts.items(), 2):
        where = f"{name} and {other_name}"
        differing = set(part.class_names) ^ set(other.class_names)
        if differing:
            sides = f"{listed(part.class_names)} against {listed(other.class_names)}"
            report.errors.append(Defect("class names differ", where, f"{listed(sorted(differing))}: {sides}"))
        shared = len(paths[name] & paths[other_name])
        if shared:
            report.defects.append(Defect("splits share pictures", where, f"{shared} pictures"))


def _compare_images(
    parts: dict[str, Annotations], checks: dict[str, _ImageCheck], report: CheckReport
) -> None:
    """Report images with the same pixels, those that are nearly the same, and which groups of both cross splits."""
    from detres.data.likeness import find_near_copies

    of_pixels: dict[str, list[str]] = defaultdict(list)
    for name, check in checks.items():
        if check.fingerprint:
            of_pixels[check.fingerprint].append(name)
    report.identical = [group for group in of_pixels.values() if len(group) > 1]
    signed = {name: check.signature for name, check in checks.items() if check.signature is not None}
    names = list(signed)
    groups = [[names[place] for place in group] for group in find_near_copies(list(signed.values()))]
    report.near_identical = [
        group for group in groups if len({checks[name].fingerprint for name in group}) > 1
    ]
    splits_of: dict[str, set[str]] = defaultdict(set)
    for split, part in parts.items():
        for index in range(len(part)):
            splits_of[part.paths[index]].add(split)
    for group in (*report.identical, *report.near_identical):
        memberships = {frozenset(splits_of[checks[name].path]) for name in group}
        if any(not (one <= other or other <= one) for one, other in combinations(memberships, 2)):
            report.across_splits.append(group)


@dataclass
class _ImageCheck:
    """The check of one image: what its pixels are compared by (None: not read, or of one color), and its defects."""

    path: str
    fingerprint: str | None = None
    signature: np.ndarray | None = None
    errors: list[Defect] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)


def _check_image(annotations: Annotations, index: int, *, pixels: bool) -> _ImageCheck:
    from detres.data.decoding import read_header, read_image
    from detres.data.likeness import compute_signature

    path = annotations.paths[index]
    check = _ImageCheck(path)
    try:
        stored_height, stored_width, orientation = read_header(path)
        if pixels:
            image = read_image(path, upright=False)
            check.fingerprint = (
                f"{image.shape} {hashlib.sha1(image.tobytes(), usedforsecurity=False).hexdigest()}"
            )
            check.signature = compute_signature(image)
    except UserError as error:
        check.errors.append(Defect("unreadable picture", path, str(error).removeprefix(f"picture {path} ")))
        return check
    height, width = (int(side) for side in annotations.sizes[index])
    upright = (stored_width, stored_height) if orientation >= 5 else (stored_height, stored_width)
    what = f"annotation says {width} x {height}, the picture is {upright[1]} x {upright[0]} (width x height)"
    if (height, width) == upright:
        return check
    if (height, width) == (stored_height, stored_width):
        reason = f"{what} upright, {stored_width} x {stored_height} as stored: read as stored"
        check.defects.append(Defect("EXIF orientation ignored by the annotation", path, reason))
    else:
        check.errors.append(Defect("size differs", path, what))
    return check


def _percentiles(values: Iterable[float]) -> list[float] | None:
    values = np.asarray(values, dtype=np.float64)
    return [round(float(value), 1) for value in np.percentile(values, PERCENTILES)] if len(values) else None
