"""Divides a split into halves with about the same number of objects of every class: ImageNet DET's val1 and val2.

Girshick et al. 2014 (R-CNN), §4: many candidate splits are improved by local search, and the one with the smallest
largest imbalance of a class is taken. N images, K classes.
"""

from __future__ import annotations

import numpy as np

from detres.data.records import Annotations

SEED = 0
CANDIDATES = 8
PASSES = 20


def balanced_halves(counts: np.ndarray, *, seed: int = SEED, candidates: int = CANDIDATES) -> np.ndarray:
    """Whether each image belongs to the second half; the same arguments give the same halves.

    Args:
        counts: (N, K) objects of each class in each image.
        seed: Of the candidates.
        candidates: Splits among which the best is taken.

    Returns:
        (N,) bool.
    """
    splits = [_candidate(counts, np.random.default_rng((seed, number))) for number in range(candidates)]
    return min(splits, key=lambda second: relative_imbalance(counts, second).max(initial=0.0))


def relative_imbalance(counts: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(K,) |a - b| / (a + b) of each class's objects in the two halves, 0 where it has none."""
    first_half, second_half = counts[~second].sum(axis=0), counts[second].sum(axis=0)
    return np.abs(second_half - first_half) / np.maximum(second_half + first_half, 1)


def class_counts(annotations: Annotations) -> np.ndarray:
    """(N, K) objects of each class in each image."""
    counts = np.zeros((len(annotations), len(annotations.class_names)), dtype=np.int64)
    images = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    np.add.at(counts, (images, annotations.labels), 1)
    return counts


def _candidate(counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One split: images are placed to lessen the imbalance, of rare classes first; then single images are moved.

    With signs s (+1 first half, -1 second) and the fraction f of a class's objects in an image, a class's imbalance
    is |r|, r = sum s f. The sum of r^2 over the classes and the number of images is minimized.
    """
    with_number = np.concatenate((counts, np.ones((len(counts), 1), dtype=counts.dtype)), axis=1)
    shares = with_number / np.maximum(with_number.sum(axis=0), 1)  # (N, K + 1)
    rarest = np.where(with_number > 0, 1 / np.maximum(with_number.sum(axis=0), 1), 0).max(axis=1)
    order = generator.permutation(len(counts))
    order = order[np.argsort(-rarest[order], kind="stable")]
    signs, balance = np.zeros(len(counts)), np.zeros(shares.shape[1])
    for image in order.tolist():
        towards = float(balance @ shares[image])
        signs[image] = -np.sign(towards) or generator.choice((-1.0, 1.0))
        balance += signs[image] * shares[image]
    squares = (shares**2).sum(axis=1)
    for _ in range(PASSES):
        moved = False
        for image in generator.permutation(len(counts)).tolist():
            # Moving an image turns r into r - 2 s f, so the sum of squares falls by 4 (s r f - f^2).
            if signs[image] * float(balance @ shares[image]) > squares[image] + 1e-12:
                balance -= 2 * signs[image] * shares[image]
                signs[image] = -signs[image]
                moved = True
        if not moved:
            break
    return signs < 0
