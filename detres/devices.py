"""Where to compute and in which precision: the one place that turns a word into a device."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from detres.errors import UserError, nearest

if TYPE_CHECKING:
    import torch


PROBE_SIDE = 1024  # rows of the matrices; their product takes some milliseconds
PROBE_GAIN = 1.3  # bfloat16 must be faster by this, for a network is not all products


def faster_precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """bfloat16 where a matrix product is clearly faster in it than in float32, found out by trying; takes a moment."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(PROBE_SIDE, PROBE_SIDE, dtype=dtype, device=device)
        times = []
        for _ in range(4):
            begun = time.perf_counter()
            (matrix @ matrix)[0, 0].item()  # waits for the result
            times.append(time.perf_counter() - begun)
        return min(times)

    return "bfloat16" if seconds(torch.bfloat16) * PROBE_GAIN < seconds(torch.float32) else "float32"


def select_device(text: str) -> torch.device:
    """The device that a word names.

    Args:
        text: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        UserError: None of these, or a GPU that is not there.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return torch.device("cuda" if count else "cpu")
    kind, colon, number = text.partition(":")
    if text == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or (colon and not number.isdigit()):
        raise UserError(
            f"device {text}: should be auto, cpu, cuda or cuda:N{nearest(text, ('cpu', 'cuda', 'auto'))}"
        )
    if int(number or 0) >= count:
        there = (
            f"this machine has {count} (cuda:0 to cuda:{count - 1})" if count else "PyTorch finds no GPU here"
        )
        raise UserError(f"device {text}: {there}; the device cpu works everywhere")
    return torch.device("cuda", int(number or 0))
