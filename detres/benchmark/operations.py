"""Multiply-adds of a run as they are dispatched, and the ceiling: what a large product or convolution reaches here.

Only convolutions and matrix products count (He et al. 2015, Table 1); one multiply-add is two operations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices of the ceiling
MAPS = {"cpu": (2, 256, 64), "cuda": (32, 512, 64)}  # of its 3x3 convolution: images, channels, side
SECONDS = 1.0  # for each of the two: a processor's clock needs a while
FEWEST_TRIES = 5
# oneDNN's fused operators, which a network packed for inference may use and torch's counter does not know.
FUSED_CONVOLUTIONS = ("_convolution_pointwise", "_convolution_pointwise_")
FUSED_LINEAR = "_linear_pointwise"


def counted_operations(run: Callable[[], object]) -> float:
    """Multiply-adds that one call of `run` dispatches."""
    with FlopCounterMode(display=False, custom_mapping=_fused_operators()) as counter:
        run()
    return counter.get_total_flops() / 2


def measured_ceiling(precision: torch.dtype, device: torch.device) -> float:
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
    with _as_convolutions(), torch.inference_mode():
        product = side**3 / _least_seconds(lambda: left @ right, device)
        convolution = weight.numel() * images * map_side**2
        return max(product, convolution / _least_seconds(lambda: F.conv2d(maps, weight, padding=1), device))


def _least_seconds(run: Callable[[], object], device: torch.device) -> float:
    seconds: list[float] = []
    while sum(seconds) < SECONDS or len(seconds) < FEWEST_TRIES:
        begun = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


@contextmanager
def _as_convolutions() -> Iterator[None]:
    """TF32 in matrix products where convolutions have it."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _fused_operators() -> dict[Any, Callable[..., int]]:
    if not torch.backends.mkldnn.is_available():
        return {}
    known: dict[Any, Callable[..., int]] = {}
    for names, count in ((FUSED_CONVOLUTIONS, _convolution), ((FUSED_LINEAR,), _linear)):
        for name in names:
            if hasattr(torch.ops.mkldnn, name):
                known[getattr(torch.ops.mkldnn, name)] = count
    return known


def _convolution(*shapes: Any, out_shape: Any, **others: Any) -> int:
    """Operations of a fused convolution: (maps, weight, bias...) or, with an addition, (maps, other, weight...)."""
    second, third = shapes[1], shapes[2]
    weight = third if third is not None and len(third) == 4 else second
    return 2 * prod(out_shape) * prod(weight[1:])


def _linear(rows: Any, weight: Any, *others: Any, out_shape: Any, **more: Any) -> int:
    return 2 * prod(out_shape) * weight[-1]
