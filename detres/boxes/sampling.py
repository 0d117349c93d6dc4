"""Sampling of the references for a loss: a fixed number, of which a fraction may be positive (Girshick 2015, §2.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from detres.boxes.matching import NEGATIVE, POSITIVE


def sample_matches(
    matches: Tensor, count: int, positive_fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sample positives and negatives at random without replacement.

    Args:
        matches: (N,) int64 from `match_boxes`.
        count: How many in all; fewer if there are not enough.
        positive_fraction: At most this fraction of `count` is positive; negatives fill the rest.
        generator: On the CPU, so that a seed gives the same sample on every device.

    Returns:
        Indices of positives and of negatives, int64, each in random order.
    """
    positives = torch.nonzero(matches == POSITIVE).flatten()
    negatives = torch.nonzero(matches == NEGATIVE).flatten()
    positives = _sample_indices(positives, int(count * positive_fraction), generator)
    negatives = _sample_indices(negatives, count - len(positives), generator)
    return positives, negatives


def _sample_indices(indices: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` of `indices`, shuffled."""
    order = torch.randperm(len(indices), generator=generator, device=generator.device)[:count]
    return indices[order.to(indices.device)]
