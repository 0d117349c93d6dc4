"""Where to compute and in which precision: the one place that turns a word into a device."""

from __future__ import annotations

import ctypes
import re
import sys
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


def tune_malloc() -> bool:
    """Let the C library keep freed memory for the process instead of giving large blocks back each time.

    A map of 100 MB that is freed and made anew is 25,000 page faults, which take longer than the arithmetic of a
    pointwise operation on it. Peak memory grows by the gaps between blocks, some per cent. The command line's tools do
    it; a program of your own that trains or tests on the CPU may, once, before it starts.

    Returns:
        Whether it was done: glibc (Linux) alone has the setting.

    Source: mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    trim_threshold, mmap_max = -1, -4
    return bool(mallopt and mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def select_device(device: str | int | torch.device | None) -> torch.device:
    """The device that is meant.

    Args:
        device: `auto` or None (a GPU where there is one), `cpu`, `cuda` or `cuda:N`, a `torch.device` of these, or the
            number of a GPU.

    Raises:
        UserError: None of these, or a GPU that is not there.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None or (isinstance(device, str) and device == "auto"):
        return torch.device("cuda" if count else "cpu")
    is_number = isinstance(device, int) and not isinstance(device, bool)
    text = f"cuda:{device}" if is_number else str(device) if isinstance(device, (str, torch.device)) else ""
    if text in ("cpu", "cpu:0"):
        return torch.device("cpu")
    matched = re.fullmatch(r"cuda(?::([0-9]{1,9}))?", text)
    if not matched:
        raise UserError(
            f"device {device}: should be auto, cpu, cuda or cuda:N{nearest(text, ('cpu', 'cuda', 'auto'))}"
        )
    number = int(matched[1] or 0)
    if number >= count:
        there = (
            f"this machine has {count} (cuda:0 to cuda:{count - 1})" if count else "PyTorch finds no GPU here"
        )
        raise UserError(f"device {device}: {there}; the device cpu works everywhere")
    return torch.device("cuda", number)
