"""The choice of device and precision."""

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
PROBE_GAIN = 1.3  # bfloat16 must be faster by this factor, because a network does more than matrix products


def select_precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """bfloat16 if a matrix product is clearly faster in it than in float32, which is measured; takes a moment."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(PROBE_SIDE, PROBE_SIDE, dtype=dtype, device=device)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            (matrix @ matrix)[0, 0].item()  # waits for the result
            times.append(time.perf_counter() - start)
        return min(times)

    return "bfloat16" if seconds(torch.bfloat16) * PROBE_GAIN < seconds(torch.float32) else "float32"


def tune_malloc() -> bool:
    """Let the C library keep freed memory for the process instead of returning large blocks to the system each time.

    A map of 100 MB that is freed and allocated again costs 25,000 page faults, which take longer than the arithmetic of
    a pointwise operation on it. Peak memory grows by some per cent, by the gaps between blocks. The command-line tools
    call this; your own program that trains or tests on the CPU can call it once before it starts.

    Returns:
        Whether it was done, because only glibc (Linux) has the setting.

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
        UserError: Any other text, or a GPU that does not exist.
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
