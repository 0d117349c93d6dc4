"""Draws boxes on images, arranges images in a sheet, and writes images, all with OpenCV.

Detections have thick lines and a colored label above, annotations thin dashed lines and a dark label below, so that one
image can show both.
"""

from __future__ import annotations

import colorsys
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detres.errors import UserError
from detres.files import atomic_path

log = logging.getLogger("detres")

Color = tuple[int, int, int]

SHEET_PIXELS = 2**27  # of a sheet: 0.4 GB
GOLDEN_RATIO = 0.6180339887498949
GAP = 4  # pixels between the images of a contact sheet
DASH = 6
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
LONGEST_SIDES = {
    ".jpg": 65500,
    ".jpeg": 65500,
    ".webp": 16383,
}  # libjpeg's JPEG_MAX_DIMENSION; WebP's 14 bits


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    scores: Sequence[float] | np.ndarray,
    class_names: Sequence[str],
) -> np.ndarray:
    """Draw detections with class name and score, the best on top.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        boxes: (D, 4) xyxy in its pixels.
        labels: (D,) places in `class_names`.
        scores: (D,) 0..1.
        class_names: The classes in order.

    Returns:
        (H, W, 3) uint8 RGB, a copy.
    """
    order = np.argsort(np.asarray(scores), kind="stable")
    labels = np.asarray(labels, dtype=np.int64)[order]
    texts = [
        f"{class_names[int(label)]} {score:.2f}"
        for label, score in zip(labels, np.asarray(scores)[order], strict=True)
    ]
    return draw_boxes(
        image, np.asarray(boxes).reshape(-1, 4)[order], texts, [class_color(label) for label in labels]
    )


def draw_annotations(
    image: np.ndarray, boxes: np.ndarray, labels: Sequence[int] | np.ndarray, class_names: Sequence[str]
) -> np.ndarray:
    """Draw annotated boxes, thin and dashed, with class names (see `draw_detections`)."""
    labels = np.asarray(labels, dtype=np.int64)
    texts = [class_names[int(label)] for label in labels]
    return draw_boxes(image, boxes, texts, [class_color(label) for label in labels], dashed=True)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    texts: Sequence[str],
    colors: Sequence[Color],
    *,
    dashed: bool = False,
) -> np.ndarray:
    """Draw boxes with a text each; an empty text draws no label.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        boxes: (B, 4) xyxy in its pixels; they are clipped to it.
        texts: B labels.
        colors: B colors, RGB 0..255.
        dashed: Thin dashed lines and dark labels below, instead of thick lines and colored labels above.

    Returns:
        (H, W, 3) uint8 RGB, a copy.
    """
    import cv2

    drawn = np.ascontiguousarray(image).copy()
    height, width = drawn.shape[:2]
    thickness = 1 if dashed else max(2, round(min(height, width) / 300))
    for box, text, color in zip(np.asarray(boxes).reshape(-1, 4), texts, colors, strict=True):
        x1, y1 = (int(side) for side in np.clip(np.floor(box[:2]), 0, [width - 1, height - 1]))
        x2, y2 = (int(side) for side in np.clip(np.ceil(box[2:]) - 1, 0, [width - 1, height - 1]))
        if dashed:
            _dashed_rectangle(drawn, (x1, y1), (x2, y2), color)
        else:
            cv2.rectangle(drawn, (x1, y1), (x2, y2), color, thickness)
        if text:
            _put_label(drawn, text, (x1, y1, y2), color, below=dashed)
    return drawn


def class_color(label: int) -> Color:
    """The color of a class: hues a golden section apart, so that the first K differ for any K, in three lightnesses."""
    hue = (0.02 + int(label) * GOLDEN_RATIO) % 1.0
    lightness = (0.5, 0.68, 0.36)[int(label) % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def contact_sheet(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Images in rows of `columns`, each in the middle of a cell as large as the largest: (H, W, 3) uint8.

    Raises:
        ValueError: No image is given.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one picture")
    cell_height = max(image.shape[0] for image in images) + GAP
    cell_width = max(image.shape[1] for image in images) + GAP
    rows = -(-len(images) // columns)
    sheet = np.full(
        (rows * cell_height + GAP, min(columns, len(images)) * cell_width + GAP, 3), 255, np.uint8
    )
    for place, image in enumerate(images):
        height, width = image.shape[:2]
        top = GAP + place // columns * cell_height + (cell_height - GAP - height) // 2
        left = GAP + place % columns * cell_width + (cell_width - GAP - width) // 2
        sheet[top : top + height, left : left + width] = image
    return sheet


def write_sheet(path: Path, images: Sequence[np.ndarray], columns: int) -> None:
    """Write a `contact_sheet` that nobody asked for: shrunk where the format needs it, left out where it cannot be."""
    import cv2

    cell = np.max([image.shape[:2] for image in images], axis=0)
    height, width = (cell * (-(-len(images) // columns), min(columns, len(images)))).tolist()
    longest = LONGEST_SIDES.get(path.suffix.lower(), SHEET_PIXELS)
    factor = min(0.9 * longest / max(height, width), (SHEET_PIXELS / (height * width)) ** 0.5)
    if factor < 1:  # the gaps between many images need the rest
        sides = [tuple(max(1, int(side * factor)) for side in image.shape[1::-1]) for image in images]
        images = [
            cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            for image, size in zip(images, sides, strict=True)
        ]
    try:
        write_image(path, contact_sheet(images, columns))
    except UserError as error:
        log.warning("left out: %s", error)


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB in the format of the path's suffix, whole or not at all.

    Raises:
        UserError: See `encode_image`; or the place cannot be written.
    """
    encoded = encode_image(path, image)
    with atomic_path(path) as beside:
        beside.write_bytes(encoded)


def encode_image(path: str | Path, image: np.ndarray) -> bytes:
    """The content of an image file in the format of the path's suffix.

    Args:
        path: What messages call it; its suffix is looked at.
        image: (H, W, 3) uint8 RGB.

    Raises:
        UserError: The suffix is none of .png, .jpg, .jpeg, .bmp, .webp; or the format holds no image of this size.
    """
    import cv2

    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"cannot write a picture as {path}: the name must end in one of {', '.join(SUFFIXES)}"
        )
    height, width = image.shape[:2]
    limit = LONGEST_SIDES.get(suffix)
    if limit is not None and max(height, width) > limit:
        raise UserError(
            f"cannot write {path}: the picture is {width} x {height}, and a {suffix} has at most {limit} pixels a"
            " side; write a .png"
        )
    try:
        encodable, encoded = cv2.imencode(
            suffix, cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR)
        )
    except cv2.error:
        encodable, encoded = False, np.zeros(0, np.uint8)
    if not encodable:
        raise UserError(f"cannot write {path}: OpenCV encodes no {suffix} of {width} x {height} pixels")
    return encoded.tobytes()


def _put_label(image: np.ndarray, text: str, box: tuple[int, int, int], color: Color, *, below: bool) -> None:
    """Draw a label above the box (left, top, bottom), or, light on dark, below it; always inside the image."""
    import cv2

    font = cv2.FONT_HERSHEY_SIMPLEX
    size = max(0.4, min(image.shape[:2]) / 1200)
    (text_width, text_height), baseline = cv2.getTextSize(text, font, size, 1)
    height = text_height + baseline + 2
    left, box_top, box_bottom = box
    top = box_bottom + 1 if below else box_top - height
    top = max(0, min(top, image.shape[0] - height))
    left = max(0, min(left, image.shape[1] - text_width - 4))
    red, green, blue = color
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    ground, ink = (
        ((20, 20, 20), (235, 235, 235)) if below else (color, (0, 0, 0) if bright else (255, 255, 255))
    )
    cv2.rectangle(image, (left, top), (left + text_width + 3, top + height - 1), ground, -1)
    cv2.putText(image, text, (left + 2, top + text_height + 1), font, size, ink, 1, cv2.LINE_AA)


def _dashed_rectangle(
    image: np.ndarray, corner: tuple[int, int], opposite: tuple[int, int], color: Color
) -> None:
    """Draw a dashed rectangle, one pixel wide, with dark gaps, so that it is visible on any background."""
    (x1, y1), (x2, y2) = corner, opposite
    dark = tuple(channel // 4 for channel in color)
    across = np.where((np.arange(x1, x2 + 1) // DASH % 2 == 0)[:, None], color, dark)
    down = np.where((np.arange(y1, y2 + 1) // DASH % 2 == 0)[:, None], color, dark)
    image[y1, x1 : x2 + 1] = image[y2, x1 : x2 + 1] = across
    image[y1 : y2 + 1, x1] = image[y1 : y2 + 1, x2] = down
