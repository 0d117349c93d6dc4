"""Resizes and augments images together with their boxes, and crops images for classification.

He et al. 2015, §3.4; Ren et al. 2015, §3.3: shorter side 600, horizontal flips. No other module uses albumentations.

Letters: H, W height and width of the stored image; h, w of the resized one; G objects. Boxes are xyxy in continuous
pixel coordinates: a flip takes (x1, y1, x2, y2) to (w - x2, y1, w - x1, y2).
"""

from __future__ import annotations

import os

import numpy as np

from detres.data.config import AugmentationConfig, CropConfig


def resized_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int, float]:
    """The size to which an image is resized.

    The scale is `short_side / min(H, W)`, or `long_side / max(H, W)` where the first would make the longer side exceed
    `long_side`; sides are rounded to the nearest pixel, at least 1.

    Returns:
        h, w and the scale before rounding.
    """
    scale = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)), scale


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (height, width, 3) uint8, bilinear without smoothing, pixel centers at half-integers."""
    import cv2

    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def resize_boxes(boxes: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """(G, 4) boxes of the stored image -> (G, 4) float32 of the resized one; scale is (h / H, w / W)."""
    scale_y, scale_x = scale
    return (boxes * np.array([scale_x, scale_y, scale_x, scale_y])).astype(np.float32)


class DetectionAugmentation:
    """Random flip, and brightness and contrast where configured, of a resized image and its boxes.

    Measured: albumentations computes boxes in float32 divided by the image's size; its flip agrees with the formula
    above to 1.2e-4 px at a width of 4000 (a test holds it to 1e-3). It drops boxes without area inside the image,
    which is why objects are followed by index.

    Args:
        config: The augmentation; `jittered_sides` applies its `scale_jitter`.
    """

    def __init__(self, config: AugmentationConfig):
        # Without this an import of albumentations asks the internet for a newer version.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations

        limit = (-config.brightness_contrast, config.brightness_contrast)
        transforms = []
        if config.flip > 0:
            transforms.append(albumentations.HorizontalFlip(p=config.flip))
        if config.brightness_contrast > 0:
            transforms.append(albumentations.RandomBrightnessContrast(limit, limit, p=1.0))
        boxes = albumentations.BboxParams(
            format="pascal_voc", label_fields=["objects"], clip=True, filter_invalid_bboxes=True
        )
        self._compose = albumentations.Compose(transforms, bbox_params=boxes) if transforms else None

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Changed pixels and boxes.

        Args:
            image: (h, w, 3) uint8.
            boxes: (G, 4) float32 in its pixels.
            generator: The only source of randomness.

        Returns:
            image (h, w, 3) uint8; boxes (g, 4) float32; objects (g,) int64, the rows of `boxes` that they come from.
        """
        if self._compose is None:
            return image, boxes, np.arange(len(boxes))
        for (
            transform
        ) in self._compose.transforms:  # a seed each, because their draws would be the same otherwise
            transform.set_random_seed(int(generator.integers(2**32)))
        changed = self._compose(image=image, bboxes=boxes, objects=np.arange(len(boxes)))
        changed_boxes = np.asarray(changed["bboxes"], dtype=np.float32).reshape(-1, 4)
        return changed["image"], changed_boxes, np.asarray(changed["objects"]).astype(np.int64)


def jittered_sides(
    short_side: int, long_side: int, config: AugmentationConfig, generator: np.random.Generator
) -> tuple[int, int]:
    """Both sides times one random factor from `config.scale_jitter`; unchanged without it."""
    if config.scale_jitter is None:
        return short_side, long_side
    factor = generator.uniform(*config.scale_jitter)
    return max(1, round(short_side * factor)), max(1, round(long_side * factor))


def train_crop(image: np.ndarray, config: CropConfig, generator: np.random.Generator) -> np.ndarray:
    """A random square of an image whose shorter side is drawn at random (§3.4), flipped at random.

    Args:
        image: (H, W, 3) uint8.
        config: The crop's size, the range of shorter sides.
        generator: The only source of randomness.

    Returns:
        (config.size, config.size, 3) uint8.
    """
    if config.train_sides is not None:
        image = resize_shorter(
            image, int(generator.integers(config.train_sides[0], config.train_sides[1] + 1))
        )
    image = _pad(image, config.pad, config.size)
    top = int(generator.integers(image.shape[0] - config.size + 1))
    left = int(generator.integers(image.shape[1] - config.size + 1))
    crop = image[top : top + config.size, left : left + config.size]
    return crop[:, ::-1] if generator.random() < config.flip else crop


def center_crop(image: np.ndarray, config: CropConfig) -> np.ndarray:
    """The central square of an image with shorter side `config.test_side`: (config.size, config.size, 3) uint8."""
    return _square(_for_test(image, config), 0.5, 0.5, config.size)


def ten_crops(image: np.ndarray, config: CropConfig) -> list[np.ndarray]:
    """The center, the four corners and their mirrors (Krizhevsky et al. 2012, §4.1), each as `center_crop`'s."""
    image = _for_test(image, config)
    places = ((0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1))
    crops = [_square(image, down, right, config.size) for down, right in places]
    return crops + [crop[:, ::-1] for crop in crops]


def resize_shorter(image: np.ndarray, side: int) -> np.ndarray:
    """The image with a shorter side of `side` pixels, its shape kept: (h, w, 3) uint8."""
    scale = side / min(image.shape[:2])
    return resize_image(image, *(max(side, int(length * scale + 0.5)) for length in image.shape[:2]))


def _for_test(image: np.ndarray, config: CropConfig) -> np.ndarray:
    if config.test_side is not None:
        image = resize_shorter(image, config.test_side)
    return _pad(image, 0, config.size)


def _square(image: np.ndarray, down: float, right: float, size: int) -> np.ndarray:
    """The square at the fractions `down` and `right`, 0..1, of its possible offsets, rounded down."""
    top, left = int((image.shape[0] - size) * down), int((image.shape[1] - size) * right)
    return image[top : top + size, left : left + size]


def _pad(image: np.ndarray, margin: int, size: int) -> np.ndarray:
    """Zero pixels on every side: `margin`, or more where the image is smaller than the crop."""
    need = [margin + max(0, -(-(size - length - 2 * margin) // 2)) for length in image.shape[:2]]
    if not any(need):
        return image
    return np.pad(image, ((need[0], need[0]), (need[1], need[1]), (0, 0)))
