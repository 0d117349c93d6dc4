"""Draws the forms of the data set `shapes`: outlines, textures, anti-aliased masks and strokes.

Not from a paper: `shapes` replaces photographs where there are none. Classes differ only in form; the fills of objects,
distractors, background and clutter all come from `random_texture`.

A contour is (n, 2) float64 x, y in continuous pixel coordinates (pixel i covers i to i + 1); a form is a list of
contours, filled by the even-odd rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHAPE_CLASSES = ("square", "triangle", "star", "cross", "ring")  # no disc: a disc on a disc would be a ring
DISTRACTORS = ("blob", "bar", "zigzag")

SUBSAMPLES = 4
FRACTION_BITS = 4
COLOR_DISTANCE = 110.0


def random_form(kind: str, side: float, generator: np.random.Generator) -> list[np.ndarray]:
    """A form turned and stretched at random; its bounding box starts at (0, 0) and has the longer side `side`."""
    stretch = np.sqrt(generator.uniform(0.8, 1.25))
    angle = generator.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    contours = [contour * [stretch, 1 / stretch] @ turn.T for contour in _unit_outline(kind, generator)]
    points = np.concatenate(contours)
    low, high = points.min(axis=0), points.max(axis=0)
    return [(contour - low) * (side / (high - low).max()) for contour in contours]


def _unit_outline(kind: str, generator: np.random.Generator) -> list[np.ndarray]:
    if kind == "ring":
        return [_polygon(64), _polygon(64) * generator.uniform(0.5, 0.65)]
    if kind in ("triangle", "square"):
        return [_polygon(3 if kind == "triangle" else 4)]
    if kind == "star":
        return [_polygon(10) * np.tile([1.0, generator.uniform(0.4, 0.5)], 5)[:, None]]
    if kind == "cross":
        arm = generator.uniform(0.28, 0.38)
        quarter = np.array([[1, -arm], [1, arm], [arm, arm]])
        return [
            np.concatenate([quarter @ np.linalg.matrix_power([[0, 1], [-1, 0]], turns) for turns in range(4)])
        ]
    if kind == "blob":
        angles = np.arange(64) * 2 * np.pi / 64
        waves = [
            size * np.cos(k * angles + generator.uniform(0, 2 * np.pi))
            for k, size in zip((2, 3, 4), generator.uniform((0.2, 0.2, 0.0), (0.3, 0.3, 0.15)), strict=True)
        ]
        return [_polygon(64) * (1 + np.sum(waves, axis=0))[:, None]]
    if kind == "bar":
        length = generator.uniform(4, 8)
        return [np.array([[0, 0], [length, 0], [length, 1], [0, 1]])]
    assert kind == "zigzag", kind
    corners = int(generator.integers(4, 7))
    along = np.arange(corners) * 0.6
    across = np.where(np.arange(corners) % 2, 1, -1) * generator.uniform(0.3, 0.7, corners)
    return [np.concatenate([np.stack([along, across - 0.18], 1), np.stack([along, across + 0.18], 1)[::-1]])]


def _polygon(corners: int) -> np.ndarray:
    """Corners of a regular polygon on the unit circle: (corners, 2)."""
    angles = np.arange(corners) * 2 * np.pi / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def bounding_box(contours: list[np.ndarray]) -> np.ndarray:
    """The tight box of a form: (4,) float64 xyxy."""
    points = np.concatenate(contours)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def rasterize(contours: list[np.ndarray], subsamples: int = 1) -> tuple[slice, slice, np.ndarray]:
    """A form as the pixels of its bounding box.

    Args:
        contours: The form, inside the image.
        subsamples: 1 gives 0 or 255 (pixel center in or out); more give the covered fraction of each pixel.

    Returns:
        Rows and columns of the image, and the mask (rows, columns) uint8.
    """
    import cv2

    x1, y1, x2, y2 = bounding_box(contours)
    left, top, right, bottom = int(x1), int(y1), int(np.ceil(x2)), int(np.ceil(y2))
    mask = np.zeros(((bottom - top) * subsamples, (right - left) * subsamples), np.uint8)
    points = [
        np.rint((((contour - [left, top]) * subsamples) - 0.5) * 2**FRACTION_BITS).astype(np.int32)
        for contour in contours
    ]
    cv2.fillPoly(mask, points, 255, shift=FRACTION_BITS)
    if subsamples > 1:
        mask = cv2.resize(mask, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    return slice(top, bottom), slice(left, right), mask


@dataclass(frozen=True)
class Texture:
    """A fill: color + pattern(x, y) * swing, where the pattern is a product of two waves within -1..1.

    Attributes:
        color: (3,) float32 RGB, the mean.
        swing: (3,) float32 RGB.
        waves: (2, 3) float32: each wave's frequency in x, in y (radians per pixel) and phase.
    """

    color: np.ndarray
    swing: np.ndarray
    waves: np.ndarray


def random_texture(generator: np.random.Generator, unlike: list[Texture]) -> Texture:
    """A plain, striped or checkered texture in random colors.

    Its color is the first of 12 draws that differs enough from all of `unlike`, else the one that differs most.
    """
    others = np.array([texture.color for texture in unlike]).reshape(-1, 3)
    candidates = generator.uniform(25, 230, (12, 3)).astype(np.float32)
    distances = np.linalg.norm(candidates[:, None] - others, axis=2).min(axis=1, initial=COLOR_DISTANCE)
    swing = generator.normal(size=3)
    swing *= generator.uniform(0, 20) / np.linalg.norm(swing)
    angles = generator.uniform(0, 2 * np.pi, 2)
    frequencies = 2 * np.pi / np.exp(generator.uniform(np.log(5), np.log(40), 2))
    if generator.random() < 0.5:
        frequencies[1] = 0.0  # stripes: the second wave is constant
    waves = np.stack(
        [np.cos(angles) * frequencies, np.sin(angles) * frequencies, generator.uniform(0, 6.28, 2)], 1
    )
    return Texture(candidates[int(distances.argmax())], swing.astype(np.float32), waves.astype(np.float32))


def texture_pixels(texture: Texture, rows: slice, columns: slice) -> np.ndarray:
    """The fill of a part of the image: (rows, columns, 3) float32, slightly beyond 0..255."""
    import cv2

    y = np.arange(rows.start, rows.stop, dtype=np.float32)
    x = np.arange(columns.start, columns.stop, dtype=np.float32)
    pattern = np.ones((len(y), len(x)), np.float32)
    for in_x, in_y, phase in texture.waves:
        # sin(a + b) of a row and a column: four short vectors instead of a sine for every pixel
        across, down = in_x * x + phase, in_y * y
        pattern *= np.outer(np.cos(down), np.sin(across)) + np.outer(np.sin(down), np.cos(across))
    # channel by channel: numpy is slow where the innermost axis has length 3
    return cv2.merge([c + pattern * s for c, s in zip(texture.color, texture.swing, strict=True)])


def paint_form(image: np.ndarray, contours: list[np.ndarray], texture: Texture) -> None:
    """Fill a form on a (H, W, 3) float32 image, anti-aliased."""
    import cv2

    rows, columns, mask = rasterize(contours, SUBSAMPLES)
    under = image[rows, columns]
    share = cv2.merge([mask.astype(np.float32) * np.float32(1 / 255)] * 3)
    under += share * (texture_pixels(texture, rows, columns) - under)


def paint_background(image: np.ndarray, generator: np.random.Generator) -> list[Texture]:
    """Fill a (H, W, 3) float32 image with two textures either side of a line, and with short strokes.

    Returns:
        The two textures.
    """
    import cv2

    height, width = image.shape[:2]
    everywhere = slice(0, height), slice(0, width)
    textures = [random_texture(generator, []) for _ in range(2)]
    image[:] = texture_pixels(textures[0], *everywhere)
    angle = generator.uniform(0, 2 * np.pi)
    center = generator.uniform(0.2, 0.8, 2) * [width, height]
    distance = np.add.outer(
        (np.arange(height) - center[1]) * np.sin(angle), (np.arange(width) - center[0]) * np.cos(angle)
    )
    cv2.copyTo(texture_pixels(textures[1], *everywhere), (distance > 0).astype(np.uint8), image)
    for _ in range(int(generator.integers(0, 1 + height * width // 4000))):
        start = generator.uniform((0, 0), (width, height))
        end = start + generator.normal(scale=10, size=2)
        color = random_texture(generator, []).color.tolist()
        (x1, y1), (x2, y2) = np.rint(np.stack([start, end]) * 16).astype(int).tolist()
        cv2.line(image, (x1, y1), (x2, y2), color, int(generator.integers(1, 4)), shift=4)
    return textures
