"""The choice of device and precision."""

from __future__ import annotations

import ctypes
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


def select_device(text: str) -> torch.device:
    """The device for the text of `--device`.

    Args:
        text: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        UserError: Any other text, or a GPU that does not exist.
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
        available = (
            f"this machine has {count} (cuda:0 to cuda:{count - 1})" if count else "PyTorch finds no GPU here"
        )
        raise UserError(f"device {text}: {available}; the device cpu works everywhere")
    return torch.device("cuda", int(number or 0))
