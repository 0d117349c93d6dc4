"""Where to compute: the one place that turns a word into a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detres.errors import UserError, nearest

if TYPE_CHECKING:
    import torch


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
