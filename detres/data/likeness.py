"""Finds images that are nearly the same: saved again, resized, brightened, or taken twice from one place.

A figure on a test image says little if a near copy was trained on. Candidates have close difference hashes (Krawetz,
"Kind of like that", hackerfactor.com, 2013) and are confirmed by the correlation of thumbnails. Shifted, turned and
mirrored copies are not found.

N images. Thresholds: the 9 pairs of near copies known by eye in raccoon and BCCD have distances of at most 5 and
correlations from 0.95; of the other 380,000 pairs of raccoon, BCCD, VOC and fruit, 14 are within distance 8 and none
of these correlates by more than 0.89.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

LARGEST_DISTANCE = 8  # bits of 64
LEAST_CORRELATION = 0.9
THUMBNAIL = 16
FLAT = 2.0  # least standard deviation of gray levels of an image that is compared
ROWS = 512  # compared with all others at once


def compute_signature(image: np.ndarray) -> np.ndarray | None:
    """The signature that `find_near_copies` compares: 8 bytes of difference hash, then a gray thumbnail.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (264,) uint8; None for an image of (nearly) one gray level.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    thumbnail = cv2.resize(gray, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    if thumbnail.std() < FLAT:
        return None
    small = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA)
    bits = small[:, 1:] > small[:, :-1]  # (8, 8): whether it gets brighter to the right
    return np.concatenate((np.packbits(bits), thumbnail.ravel()))


def find_near_copies(signatures: Sequence[np.ndarray]) -> list[list[int]]:
    """Groups of images that are nearly the same.

    Every pair is compared, 512 rows at a time by one matrix product (seconds for tens of thousands of images). A group
    holds all images that pairs connect.

    Args:
        signatures: Of N images.

    Returns:
        The indices of each group's images, ascending; a group has two or more.
    """
    if len(signatures) < 2:
        return []
    table = np.stack(signatures)
    bits = np.unpackbits(table[:, :8], axis=1).astype(np.float32)
    signs = 2 * bits - 1  # (N, 64): the product of two rows is 64 - 2 * distance
    thumbnails = table[:, 8:].astype(np.float32)
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True)
    groups = np.arange(len(table))
    for start in range(0, len(table), ROWS):
        close = signs[start : start + ROWS] @ signs[start:].T >= 64 - 2 * LARGEST_DISTANCE
        for row in np.flatnonzero(close.sum(axis=1) > 1).tolist():
            others = start + row + 1 + np.flatnonzero(close[row, row + 1 :])
            others = others[thumbnails[others] @ thumbnails[start + row] >= LEAST_CORRELATION]
            if len(others):
                connected = np.unique(groups[[start + row, *others]])
                groups[np.isin(groups, connected)] = connected[0]
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return [np.flatnonzero(group_of == group).tolist() for group in np.flatnonzero(sizes > 1)]
