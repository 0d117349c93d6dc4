"""The ceiling of a machine: multiply-adds a second of a large matrix product or convolution."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

import torch
import torch.nn.functional as F

from benchmarks.sampling import synchronize

SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices of the ceiling
MAPS = {"cpu": (2, 256, 64), "cuda": (32, 512, 64)}  # of its 3x3 convolution: images, channels, side
SECONDS = 1.0  # for each of the two: a processor's clock needs a while
FEWEST_TRIES = 5


def measure_ceiling(precision: torch.dtype, device: torch.device) -> float:
    """Multiply-adds a second, the best of some tries of a large square matrix product and of a 3x3 convolution.

    Both, since on some processors the library behind one of them is far from what the other reaches. On a GPU float32
    products use TF32 where PyTorch lets convolutions use it. A network may come out above the ceiling where few
    channels or borders make convolutions cheaper than counted (multiplications by padding count).
    """
    kind = device.type if device.type in SIDE else "cpu"
    side, (images, channels, map_side) = SIDE[kind], MAPS[kind]
    left, right = (torch.ones(side, side, dtype=precision, device=device) for _ in range(2))
    maps = torch.ones(images, channels, map_side, map_side, dtype=precision, device=device)
    maps = maps.contiguous(memory_format=torch.channels_last)
    weight = torch.ones(channels, channels, 3, 3, dtype=precision, device=device)
    weight = weight.contiguous(memory_format=torch.channels_last)
    matmul = torch.backends.cuda.matmul
    with ExitStack() as at_end, torch.inference_mode():
        at_end.callback(setattr, matmul, "allow_tf32", matmul.allow_tf32)
        matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
        product = side**3 / _least_seconds(lambda: left @ right, device)
        convolution = weight.numel() * images * map_side**2
        return max(product, convolution / _least_seconds(lambda: F.conv2d(maps, weight, padding=1), device))


def _least_seconds(run: Callable[[], object], device: torch.device) -> float:
    seconds: list[float] = []
    while sum(seconds) < SECONDS or len(seconds) < FEWEST_TRIES:
        begun = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
