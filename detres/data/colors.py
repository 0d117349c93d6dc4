"""AlexNet's color augmentation: all pixels are shifted along the principal components of the training colors.

Krizhevsky et al. 2012, §4.1, which He et al. 2015, §3.4, uses. Colors are RGB in 0..1, as in later implementations:
in 0..255 the published formula would shift by thousands, since an eigenvalue is a variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ColorComponents:
    """Principal components of the RGB values (0..1) of training pixels.

    Attributes:
        eigenvalues: (3,) float64, of their covariance, largest first.
        eigenvectors: (3, 3) float64; column i belongs to eigenvalue i, its row 0 is red.
    """

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray


def principal_components(covariance: np.ndarray) -> ColorComponents:
    """Eigenvalues and eigenvectors of a (3, 3) covariance of RGB values; each vector's largest entry is positive."""
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    return ColorComponents(values.copy(), vectors * np.sign(vectors[largest, np.arange(3)]))


def color_shift(components: ColorComponents, deviation: float, generator: np.random.Generator) -> Tensor:
    """A random shift, to be added to every pixel of an image: [p1 p2 p3] [a1 l1, a2 l2, a3 l3], a ~ N(0, deviation).

    Returns:
        (3,) float32, levels of 255, RGB.
    """
    strengths = generator.normal(0.0, deviation, 3) * components.eigenvalues
    return torch.from_numpy((components.eigenvectors @ strengths * 255.0).astype(np.float32))
