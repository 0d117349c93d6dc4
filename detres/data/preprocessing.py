"""Turns pixels into a network's input; how is stored with the weights.

He et al. 2015, §3.4: the mean of each pixel or of each channel is subtracted. MSRA's and torchvision's weights need
different preprocessing.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from pydantic_core import CoreSchema, core_schema
from torch import Tensor

from detres.config import Section


@dataclass(frozen=True, eq=False)
class MeanImage:
    """The mean of each pixel; as text `HxW:` and base64 of little-endian float32 in the order (3, H, W).

    Attributes:
        values: (3, H, W) float32, channels and range as its `Preprocessing` says.
    """

    values: Tensor

    def __post_init__(self) -> None:
        assert self.values.dtype == torch.float32
        assert self.values.ndim == 3
        assert len(self.values) == 3

    def __str__(self) -> str:
        content = self.values.contiguous().numpy().astype("<f4").tobytes()
        return f"{self.values.shape[1]}x{self.values.shape[2]}:{base64.b64encode(content).decode('ascii')}"

    def __repr__(self) -> str:
        return f"MeanImage({self.values.shape[1]}x{self.values.shape[2]})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MeanImage) and torch.equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash(str(self))

    @staticmethod
    def parse(value: object) -> MeanImage:
        """The mean image from its text; a `MeanImage` is returned as it is.

        Raises:
            ValueError: The text is malformed, or has a wrong number of values.
        """
        if isinstance(value, MeanImage):
            return value
        form = re.fullmatch(r"(\d+)x(\d+):([A-Za-z0-9+/=]*)", value) if isinstance(value, str) else None
        if form is None:
            raise ValueError("should be 'HxW:' and the base64 of 3 * H * W float32 numbers")
        height, width = int(form[1]), int(form[2])
        try:
            numbers = np.frombuffer(base64.b64decode(form[3], validate=True), "<f4")
        except binascii.Error as error:
            raise ValueError(f"its base64 is damaged ({error})") from error
        if len(numbers) != 3 * height * width or not np.isfinite(numbers).all():
            raise ValueError(f"should hold {3 * height * width} finite numbers, holds {len(numbers)}")
        return MeanImage(torch.from_numpy(numbers.astype(np.float32).reshape(3, height, width)))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema(when_used="always")
        )


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
    mean_image: MeanImage | None = Field(
        default=None,
        description="mean of each pixel, subtracted instead of `mean` where the input has its size",
    )

    def per_channel(self) -> Preprocessing:
        """The same without the mean image, for inputs of any size (detection)."""
        return self.model_copy(update={"mean_image": None})


TORCHVISION = Preprocessing()
MSRA = Preprocessing(
    channel_order="BGR", value_range=255, mean=(102.9801, 115.9465, 122.7717), std=(1.0, 1.0, 1.0)
)


def normalize(
    images: Tensor,
    preprocessing: Preprocessing,
    dtype: torch.dtype = torch.float32,
    *,
    shifts: Tensor | None = None,
) -> Tensor:
    """Network input from RGB pixels.

    Args:
        images: (..., 3, H, W) uint8 RGB.
        preprocessing: The recipe of the network's weights.
        dtype: Of the result (float64 for exact comparisons).
        shifts: (..., 3) levels of 255, RGB, added to every pixel first (see `colors.color_shift`).

    Returns:
        (..., 3, H, W) on the same device, channels in the recipe's order.
    """
    pixels = images.to(dtype)
    if shifts is not None:
        pixels = pixels + shifts.to(dtype)[..., None, None]
    if preprocessing.channel_order == "BGR":
        pixels = pixels.flip(-3)
    scale = 255.0 / preprocessing.value_range
    image = preprocessing.mean_image
    if image is not None and image.values.shape[1:] == images.shape[-2:]:
        mean = image.values.to(images.device, dtype) * scale
    else:
        mean = torch.tensor(preprocessing.mean, dtype=dtype, device=images.device).view(3, 1, 1) * scale
    std = torch.tensor(preprocessing.std, dtype=dtype, device=images.device).view(3, 1, 1) * scale
    return (pixels - mean) / std


def to_tensor(image: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 -> (3, h, w) uint8, contiguous."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
