"""Soft targets of modern recipes: label smoothing, and images that are mixed in pairs.

Szegedy et al. 2016, §7 (label smoothing); Zhang et al. 2018 (mixup); Yun et al. 2019 (CutMix). Not in He et al. 2015.

N images of a batch, K classes, s the side of a crop. `share` is how much of a mixed image is its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detres.config import Section


class MixingConfig(Section):
    """Soft targets and mixed images in training; a value of 0 turns one off."""

    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of each target that is spread over all classes"
    )
    mixup: float = Field(
        default=0.0,
        ge=0,
        description="a of Beta(a, a), from which the share of two overlaid images is drawn; 0: off",
    )
    cutmix: float = Field(
        default=0.0,
        ge=0,
        description="a of Beta(a, a), from which the share left of an image that gets a rectangle of another is drawn;"
        " 0: off. With mixup, each batch uses one of the two",
    )


@dataclass(frozen=True)
class Mixed:
    """A batch of which image i is mixed with image `partners[i]`.

    Attributes:
        inputs: (N, 3, s, s), network input.
        partners: (N,) int64, a permutation.
        share: Weight of each image itself, 0..1.
    """

    inputs: Tensor
    partners: Tensor
    share: float


def mix(inputs: Tensor, config: MixingConfig, generator: torch.Generator) -> Mixed:
    """Mix a batch by mixup or CutMix with one share and one rectangle for all; it stays unchanged where both are off.

    Args:
        inputs: (N, 3, s, s); mixing is linear, so it may come after normalization.
        config: Which of them, and how strongly.
        generator: The only source of randomness, on the CPU.
    """
    choices = [name for name in ("mixup", "cutmix") if getattr(config, name) > 0]
    if not choices:
        return Mixed(inputs, torch.arange(len(inputs), device=inputs.device), 1.0)
    numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    choice = choices[int(numbers.integers(len(choices)))]
    partners = torch.from_numpy(numbers.permutation(len(inputs))).to(inputs.device)
    share = float(numbers.beta(getattr(config, choice), getattr(config, choice)))
    if choice == "mixup":
        return Mixed(overlay(inputs, partners, share), partners, share)
    center = float(numbers.random()), float(numbers.random())
    return paste(inputs, partners, share, center)


def overlay(inputs: Tensor, partners: Tensor, share: float) -> Tensor:
    """mixup: share * image + (1 - share) * its partner."""
    return torch.lerp(inputs[partners], inputs, share)


def paste(inputs: Tensor, partners: Tensor, share: float, center: tuple[float, float]) -> Mixed:
    """CutMix: paste a rectangle of the partner in the same place; its area, before the border cuts it, is 1 - share.

    Args:
        inputs: (N, 3, h, w).
        partners: (N,).
        share: As drawn; the result's share is that of the pixels that remain.
        center: Of the rectangle, as fractions 0..1 of height and width.
    """
    sides = inputs.shape[2:]
    half = [0.5 * side * (1.0 - share) ** 0.5 for side in sides]
    begin = [max(0, round(side * at - h)) for side, at, h in zip(sides, center, half, strict=True)]
    end = [min(side, round(side * at + h)) for side, at, h in zip(sides, center, half, strict=True)]
    rows, columns = (slice(first, last) for first, last in zip(begin, end, strict=True))
    mixed = inputs.clone()
    mixed[:, :, rows, columns] = inputs[partners][:, :, rows, columns]
    area = max(0, end[0] - begin[0]) * max(0, end[1] - begin[1])
    return Mixed(mixed, partners, 1.0 - area / (sides[0] * sides[1]))


def soft_cross_entropy(
    logits: Tensor, labels: Tensor, partners: Tensor, share: float, label_smoothing: float
) -> Tensor:
    """Cross entropy with mixed targets, which is the same mixture of two cross entropies.

    Args:
        logits: (N, K).
        labels: (N,) int64.
        partners: (N,) int64.
        share: Weight of an image's own label.
        label_smoothing: e: a target is (1 - e) of its class and e / K of every class.

    Returns:
        A scalar, the mean over images.
    """
    own = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if share == 1.0:
        return own
    others = F.cross_entropy(logits, labels[partners], label_smoothing=label_smoothing)
    return share * own + (1.0 - share) * others
