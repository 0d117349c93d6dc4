"""Configuration of the network: depth, shortcuts, and the choices in which the paper, Caffe and torchvision differ.

He et al. 2015, §3.3, §4.1 (options A, B, C) and §4.2; VGG is the paper's comparison.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import Field, model_validator

from detres.config import Section

NetworkName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "plain18",
    "plain34",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "cifar_resnet1202",
    "cifar_plain20",
    "cifar_plain32",
    "cifar_plain44",
    "cifar_plain56",
    "cifar_plain110",
    "vgg16",
    "vgg19",
]
Shortcut = Literal["A", "B", "C"]
ZeroChannels = Literal["after", "both"]
StrideIn = Literal["1x1", "3x3"]
Pool = Literal["caffe", "torchvision"]


class NetworkConfig(Section):
    """A network of the paper, or VGG. A network ignores the keys that do not apply to it."""

    name: NetworkName = Field(
        default="resnet50", description="depth and family; plain twins have no shortcuts"
    )
    shortcut: Shortcut = Field(
        default="B",
        description="A: zero-padded identity where dimensions change; B: projection there; C: projections everywhere "
        "(CIFAR networks: A by default)",
    )
    zero_channels: ZeroChannels = Field(
        default="after", description="option A: zeros after the channels, or on both sides"
    )
    stride_in: StrideIn = Field(
        default="1x1", description="stride of a bottleneck: first 1x1 (paper) or 3x3 (torchvision)"
    )
    pool: Pool = Field(
        default="torchvision", description="max pools: torchvision's, or Caffe's (no padding, ceil mode)"
    )
    width: float = Field(
        default=1.0, gt=0, description="factor on all channel counts (multiples of 8), for small runs"
    )
    eps: float = Field(default=1e-5, gt=0, description="added to the variance in batch normalization")

    @model_validator(mode="before")
    @classmethod
    def _cifar_uses_option_a(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        keys = cast("dict[str, object]", values)
        is_cifar = str(keys.get("name", "")).startswith("cifar")
        return {"shortcut": "A", **keys} if is_cifar else keys


def scale_channels(channels: int, width: float) -> int:
    """`channels * width` as a multiple of 8, at least 8; `channels` itself at width 1."""
    return channels if width == 1 else max(8, round(channels * width / 8) * 8)
