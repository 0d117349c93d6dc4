"""A bottleneck network in Caffe2's names, and what it computes, written for the tests from its publication alone.

Detectron and detectron2 publish MSRA's ResNets so: `res2_0_branch2a_w`, BN folded into `bn_s` and `bn_b`. Nothing of
detres is used here.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
Arrays = dict[str, np.ndarray]


def caffe2_arrays(depth: int = 50, inner: int = 8, classes: int = 7, seed: int = 0) -> Arrays:
    """Random weights, lively enough that every layer counts; conv1 has a bias, as R-50.pkl's."""
    generator = np.random.default_rng(seed)
    arrays: Arrays = {}

    def layer(name: str, norm: str, out: int, of: int, kernel: int, scale: float) -> None:
        fan = of * kernel * kernel
        arrays[f"{name}_w"] = generator.normal(0, scale * (2 / fan) ** 0.5, (out, of, kernel, kernel))
        arrays[f"{norm}_bn_s"] = generator.uniform(0.5, 1.5, out)
        arrays[f"{norm}_bn_b"] = generator.normal(0, 0.2, out)

    layer("conv1", "res_conv1", inner, 3, 7, 1 / 60)  # pixels are 0..255
    arrays["conv1_b"] = generator.normal(0, 0.5, inner)
    channels = inner
    for stage, blocks in enumerate(BLOCKS[depth], start=2):
        width = inner * 2 ** (stage - 2)
        for block in range(blocks):
            name = f"res{stage}_{block}_branch"
            layer(f"{name}2a", f"{name}2a", width, channels, 1, 1)
            layer(f"{name}2b", f"{name}2b", width, width, 3, 1)
            layer(f"{name}2c", f"{name}2c", 4 * width, width, 1, 0.5)
            if block == 0:
                layer(f"{name}1", f"{name}1", 4 * width, channels, 1, 0.7)
            channels = 4 * width
    arrays["fc1000_w"] = generator.normal(0, 0.1, (classes, channels))
    arrays["fc1000_b"] = generator.normal(0, 0.1, classes)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def msra_logits(arrays: Arrays, images: Tensor, mean: tuple[float, float, float]) -> Tensor:
    """What the network says of pictures: BGR minus mean, stride in the first 1x1, Caffe's max pool; in float64.

    Args:
        arrays: By Caffe2's names.
        images: (N, 3, H, W) uint8 RGB.
        mean: Blue, green, red.
    """
    blob = {name: torch.from_numpy(array).double() for name, array in arrays.items()}

    def affine(maps: Tensor, norm: str) -> Tensor:
        return maps * blob[f"{norm}_bn_s"][:, None, None] + blob[f"{norm}_bn_b"][:, None, None]

    blue_first = images[:, [2, 1, 0]].double() - torch.tensor(mean, dtype=torch.float64)[:, None, None]
    maps = F.conv2d(blue_first, blob["conv1_w"], blob.get("conv1_b"), stride=2, padding=3)
    maps = F.max_pool2d(F.relu(affine(maps, "res_conv1")), 3, stride=2, padding=0, ceil_mode=True)
    for stage in (2, 3, 4, 5):
        block = 0
        while f"res{stage}_{block}_branch2a_w" in blob:
            name = f"res{stage}_{block}_branch"
            stride = 2 if block == 0 and stage > 2 else 1
            inner = F.relu(affine(F.conv2d(maps, blob[f"{name}2a_w"], stride=stride), f"{name}2a"))
            inner = F.relu(affine(F.conv2d(inner, blob[f"{name}2b_w"], padding=1), f"{name}2b"))
            inner = affine(F.conv2d(inner, blob[f"{name}2c_w"]), f"{name}2c")
            if block == 0:
                maps = affine(F.conv2d(maps, blob[f"{name}1_w"], stride=stride), f"{name}1")
            maps = F.relu(inner + maps)
            block += 1
    return maps.mean((2, 3)) @ blob["fc1000_w"].T + blob["fc1000_b"]
