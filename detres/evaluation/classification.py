"""Errors of classification: top-1, top-5 and the mean loss, from arrays.

He et al. 2015, §4.1. N images, K classes; labels are 0..K-1.
"""

from __future__ import annotations

import numpy as np


def top_k_error(scores: np.ndarray, labels: np.ndarray, k: int) -> float | None:
    """Share of images whose class is not among the `k` best scores.

    Classes of equal score rank in order of their labels; an image with a NaN score counts as wrong.

    Args:
        scores: (N, K), higher is better (logits or probabilities).
        labels: (N,) int64.
        k: How many guesses count.

    Returns:
        In 0..1; None if there are no images, or if `k` guesses can name all K classes.
    """
    assert scores.ndim == 2
    assert labels.shape == scores.shape[:1]
    if len(labels) == 0 or k >= scores.shape[1]:
        return None
    own = np.take_along_axis(scores, labels[:, None], axis=1)  # (N, 1)
    before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < labels[:, None]))
    wrong = (before.sum(axis=1) >= k) | np.isnan(scores).any(axis=1)
    return float(wrong.mean())


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean of -log softmax(logits)[label], computed in float64; None if there are no images."""
    if len(labels) == 0:
        return None
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    own = np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
    return float((np.log(np.exp(shifted).sum(axis=1)) - own).mean())
