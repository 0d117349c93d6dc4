"""The data set `shapes`: scenes and single forms that are drawn from a seed when they are read, with exact boxes.

Not from a paper: data for the quickstart, for tests and for machines without data. An image of 256 x 320 has 1 to 8
objects of 16 to 160 px (every tenth has none) and up to four distractors of no class. At most half of an object is
covered, in some scenes less.

An image depends only on (seed, split, index), which are in its path `shapes://SPLIT/SEED/INDEX`;
`shapes://class/SIDE/SPLIT/SEED/INDEX` is a square image of one form for classification.
Boxes are tight boxes of whole forms, covered parts included: float xyxy in continuous pixel coordinates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from detres.data.records import Annotations, ImageLabels, Strings
from detres.data.shape_forms import (
    DISTRACTORS,
    SHAPE_CLASSES,
    bounding_box,
    paint_background,
    paint_form,
    random_form,
    random_texture,
    rasterize,
)
from detres.errors import DataError, nearest

SPLITS = ("train", "val", "test")
SCENE_SIZES = ((256, 320), (320, 256))
OBJECT_SIDES = (16.0, 160.0)
EMPTY_SHARE = 0.1
MOST_COVERED = 0.5
DISTRACTOR = -1

_SOURCE = re.compile(r"shapes(?::(?P<count>\d+))?(?::(?P<seed>\d+))?")
_PATH = re.compile(
    r"shapes://(?:class/(?P<side>\d+)/)?(?P<split>train|val|test)/(?P<seed>\d+)/(?P<index>\d+)"
)
_LAYOUT, _PAINT = 0, 1


@dataclass(frozen=True)
class SceneForm:
    """One form of a scene.

    Attributes:
        label: Its class, or `DISTRACTOR`.
        contours: Its outlines in image coordinates.
        visible: The fraction of it that no other form covers.
    """

    label: int
    contours: list[np.ndarray]
    visible: float


@dataclass(frozen=True)
class Scene:
    """The content of an image, lowest form first."""

    height: int
    width: int
    forms: list[SceneForm]

    def objects(self) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (G, 4) float32 and labels (G,) int64 of the forms that belong to a class."""
        forms = [form for form in self.forms if form.label != DISTRACTOR]
        boxes = np.array([bounding_box(form.contours) for form in forms], dtype=np.float32)
        return boxes.reshape(-1, 4), np.array([form.label for form in forms], dtype=np.int64)


def shapes_annotations(split: str, count: int, seed: int = 0) -> Annotations:
    """Scenes 0..count-1 of a split (`train`, `val`, `test`) as detection data; images are drawn when read."""
    _check_split(split)
    scenes = [lay_out(split, seed, index) for index in range(count)]
    boxes, labels = zip(*(scene.objects() for scene in scenes), strict=True) if scenes else ((), ())
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *boxes])
    return Annotations(
        paths=Strings([f"shapes://{split}/{seed}/{index}" for index in range(count)]),
        image_ids=Strings([f"{split}_{index:06d}" for index in range(count)]),
        sizes=np.array([(scene.height, scene.width) for scene in scenes], dtype=np.int64).reshape(-1, 2),
        upright=np.ones(count, dtype=bool),
        offsets=np.cumsum([0, *(len(image_labels) for image_labels in labels)], dtype=np.int64),
        boxes=boxes,
        labels=np.concatenate([np.zeros(0, np.int64), *labels]),
        crowd=np.zeros(len(boxes), dtype=bool),
        difficult=np.zeros(len(boxes), dtype=bool),
        areas=np.prod(boxes[:, 2:].astype(np.float64) - boxes[:, :2], axis=1),
        class_names=SHAPE_CLASSES,
        source=f"shapes {split} (seed {seed})",
    )


def shapes_labels(split: str, count: int, seed: int = 0, side: int = 64) -> ImageLabels:
    """`count` images of side x side pixels with one form each, as classification data; classes take turns."""
    _check_split(split)
    return ImageLabels(
        paths=Strings([f"shapes://class/{side}/{split}/{seed}/{index}" for index in range(count)]),
        labels=np.arange(count, dtype=np.int64) % len(SHAPE_CLASSES),
        class_names=SHAPE_CLASSES,
        source=f"shapes {split} (seed {seed})",
    )


def is_shapes(text: str) -> bool:
    """Whether a data set's name means drawn images: `shapes`, `shapes:COUNT` or `shapes:COUNT:SEED`."""
    return _SOURCE.fullmatch(text) is not None


def read_shapes(text: str, split: str | None) -> Annotations:
    """The scenes of `shapes[:COUNT[:SEED]]` (default 1000 and seed 0) and a split (default `train`)."""
    source = _SOURCE.fullmatch(text)
    if source is None:
        raise DataError(f"{text} is not a drawn data set: write shapes, shapes:COUNT or shapes:COUNT:SEED")
    return shapes_annotations(split or "train", int(source["count"] or 1000), int(source["seed"] or 0))


def draw(path: str) -> np.ndarray:
    """The image of a `shapes://` path: (H, W, 3) uint8 RGB."""
    side, split, seed, index = _parse(path)
    scene = lay_out(split, seed, index) if side is None else lay_out_single(split, seed, index, side)
    return paint(scene, _generator(split, seed, index, _PAINT))


def drawn_size(path: str) -> tuple[int, int]:
    """Height and width of the image of a `shapes://` path, without drawing it."""
    side, split, seed, index = _parse(path)
    return _scene_size(_generator(split, seed, index, _LAYOUT)) if side is None else (side, side)


def lay_out(split: str, seed: int, index: int) -> Scene:
    """The scene `index` of a split."""
    generator = _generator(split, seed, index, _LAYOUT)
    height, width = _scene_size(generator)
    empty = generator.random() < EMPTY_SHARE
    objects = 0 if empty else int(generator.integers(1, 9))
    labels = generator.integers(len(SHAPE_CLASSES), size=objects).tolist()
    labels += [DISTRACTOR] * int(generator.integers(1 if empty else 0, 5))
    order = generator.permutation(len(labels))
    most_covered = MOST_COVERED * generator.random()
    return _arrange(height, width, [labels[place] for place in order], OBJECT_SIDES, most_covered, generator)


def lay_out_single(split: str, seed: int, index: int, side: int) -> Scene:
    """The scene of the classification image `index`: one form of a class, alone on its background.

    There are no distractors, because with them a small classification network stays at chance for long.
    """
    generator = _generator(split, seed, index, _LAYOUT)
    return _arrange(side, side, [index % len(SHAPE_CLASSES)], (0.35 * side, 0.95 * side), 0.0, generator)


def paint(scene: Scene, generator: np.random.Generator) -> np.ndarray:
    """A scene with random textures and noise: (H, W, 3) uint8 RGB."""
    import cv2

    image = np.empty((scene.height, scene.width, 3), np.float32)
    textures = paint_background(image, generator)
    for form in scene.forms:
        textures.append(random_texture(generator, unlike=textures))
        paint_form(image, form.contours, textures[-1])
    noise = generator.standard_normal(image.shape[:2], dtype=np.float32) * np.float32(
        generator.uniform(2, 10)
    )
    return cv2.add(image, cv2.merge([noise] * 3), dtype=cv2.CV_8U)  # rounds and saturates


def _arrange(
    height: int,
    width: int,
    labels: list[int],
    sides: tuple[float, float],
    most_covered: float,
    generator: np.random.Generator,
) -> Scene:
    """Place forms one over another so that at most the fraction `most_covered` of an object is hidden.

    A form that does not fit is tried again, smaller and elsewhere, and left out after 40 tries; the first always fits.
    """
    top_form = np.full((height, width), -1, dtype=np.int64)
    forms: list[tuple[int, list[np.ndarray]]] = []
    areas, visible = (
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
    )  # pixels of each form, whole and not covered
    for label in labels:
        is_object = np.array([other != DISTRACTOR for other, _ in forms], dtype=bool)
        needed = np.where(is_object, (1 - most_covered) * areas, 0)
        for attempt in range(40):
            contours = _random_placement(height, width, label, sides, 0.95**attempt, generator)
            rows, columns, mask = rasterize(contours)
            inside = mask > 0
            under = top_form[rows, columns][inside]
            remaining = visible - np.bincount(under + 1, minlength=len(forms) + 1)[1:]
            if (remaining >= needed).all():
                top_form[rows, columns][inside] = len(forms)
                forms.append((label, contours))
                areas, visible = np.append(areas, len(under)), np.append(remaining, len(under))
                break
    shares = (visible / np.maximum(areas, 1)).tolist()
    scene_forms = [SceneForm(*form, share) for form, share in zip(forms, shares, strict=True)]
    return Scene(height, width, scene_forms)


def _random_placement(
    height: int,
    width: int,
    label: int,
    sides: tuple[float, float],
    shrink: float,
    generator: np.random.Generator,
) -> list[np.ndarray]:
    """A form of random size (small ones somewhat more often) at a random place inside the image."""
    low, high = sides
    side = low + (high - low) * shrink * generator.random() ** 1.25
    kind = SHAPE_CLASSES[label] if label != DISTRACTOR else DISTRACTORS[generator.integers(len(DISTRACTORS))]
    contours = random_form(kind, side, generator)
    offset = generator.random(2) * ([width, height] - bounding_box(contours)[2:])
    return [contour + offset for contour in contours]


def _scene_size(generator: np.random.Generator) -> tuple[int, int]:
    return SCENE_SIZES[int(generator.integers(len(SCENE_SIZES)))]


def _generator(split: str, seed: int, index: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng((seed, SPLITS.index(split), index, purpose))


def _parse(path: str) -> tuple[int | None, str, int, int]:
    parts = _PATH.fullmatch(path)
    if parts is None:
        raise DataError(f"{path} is not a drawn picture: write shapes://SPLIT/SEED/INDEX")
    return (
        int(parts["side"]) if parts["side"] else None,
        parts["split"],
        int(parts["seed"]),
        int(parts["index"]),
    )


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise DataError(f"shapes has no split '{split}'{nearest(split, SPLITS)}: it has {', '.join(SPLITS)}")
