"""Checks weights against a preprocessing: the statistics of the first BN layer tell the scale of the input.

MSRA's weights (0..255, no std) with torchvision's recipe load and run but lose many points (maskrcnn-benchmark, issue
643). The deviation s of conv1's input follows from bn1's stored variance v of a channel with the weights w:
v = s^2 w' C w, C the correlation of the pixels under the kernel. On MSRA's ResNet-50 that gives 66 (its pixels'
deviation is about 58), on torchvision's ResNet-18 1.2, on the published CIFAR networks 1.2 to 1.3.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from detres.data.preprocessing import Preprocessing

# In photographs pixels at distance d correlate by about exp(-0.05 d), the colors of a pixel by about 0.9.
DECAY, COLORS = 0.05, 0.9
PIXEL_DEVIATION = 0.226  # of pixels of photographs, as a share of the range: the mean of torchvision's std
TOLERANCE = 10.0


def find_contradiction(tensors: Mapping[str, Tensor], preprocessing: Preprocessing) -> str | None:
    """How conv1 and bn1 contradict `preprocessing`; None where they do not, or cannot tell.

    Args:
        tensors: By torchvision's names.
        preprocessing: The recipe that is assumed.
    """
    deviation = estimate_input_deviation(tensors)
    if deviation is None:
        return None
    std = sum(preprocessing.std) / 3
    expected = PIXEL_DEVIATION * preprocessing.value_range / std
    if expected / TOLERANCE < deviation < expected * TOLERANCE:
        return None
    return (
        f"by bn1's statistics the inputs of conv1 had a deviation of about {deviation:.2g}, but this recipe (0.."
        f"{preprocessing.value_range}, std {std:.3g}) makes it {expected:.2g}"
    )


def estimate_input_deviation(tensors: Mapping[str, Tensor]) -> float | None:
    """The deviation s of conv1's input (median over its channels); None without statistics of a trained network."""
    weight, variance = tensors.get("conv1.weight"), tensors.get("bn1.running_var")
    if weight is None or variance is None or weight.ndim != 4 or weight.shape[1] != 3:
        return None
    variance = variance.double()
    if len(variance) != len(weight) or bool((variance == variance[0]).all()):
        return None
    side = weight.shape[-1]
    places = torch.cartesian_prod(torch.arange(side), torch.arange(weight.shape[-2])).double()
    within = torch.exp(-DECAY * torch.cdist(places, places))
    between = torch.full((3, 3), COLORS, dtype=torch.float64).fill_diagonal_(1)
    filters = weight.double().flatten(1)  # (C, 3 * side^2)
    expected = ((filters @ torch.kron(between, within)) * filters).sum(dim=1)  # w' C w
    valid = expected > 0
    return float((variance[valid] / expected[valid]).sqrt().median()) if bool(valid.any()) else None
