"""From stored pixels to what a network expects; the recipe travels with the weights.

He et al. 2015, §3.4: the mean is subtracted; MSRA's and torchvision's weights each want their own form.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from detres.config import Section


class Preprocessing(Section):
    """How pixels become network input: `(pixels in value_range - mean) / std` in the given channel order."""

    channel_order: Literal["RGB", "BGR"] = Field(
        default="RGB", description="order of the network's input channels"
    )
    value_range: Literal[1, 255] = Field(
        default=1, description="pixels go from 0 to this before the mean is subtracted"
    )
    mean: tuple[float, float, float] = Field(
        default=(0.485, 0.456, 0.406), description="per channel, in channel_order"
    )
    std: tuple[float, float, float] = Field(
        default=(0.229, 0.224, 0.225), description="per channel, in channel_order"
    )


TORCHVISION = Preprocessing()
MSRA = Preprocessing(
    channel_order="BGR", value_range=255, mean=(102.9801, 115.9465, 122.7717), std=(1.0, 1.0, 1.0)
)


def normalise(images: Tensor, preprocessing: Preprocessing, dtype: torch.dtype = torch.float32) -> Tensor:
    """Network input from RGB pixels.

    Args:
        images: (..., 3, H, W) uint8 RGB.
        preprocessing: The recipe of the network's weights.
        dtype: Of the result; float64 is for exact comparisons.

    Returns:
        (..., 3, H, W) on the same device, channels in the recipe's order.
    """
    pixels = images.to(dtype)
    if preprocessing.channel_order == "BGR":
        pixels = pixels.flip(-3)
    scale = 255.0 / preprocessing.value_range
    mean = torch.tensor(preprocessing.mean, dtype=dtype, device=images.device).view(3, 1, 1) * scale
    std = torch.tensor(preprocessing.std, dtype=dtype, device=images.device).view(3, 1, 1) * scale
    return (pixels - mean) / std
