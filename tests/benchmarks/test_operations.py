"""Multiply-adds by hand: out channels x out positions x kernel x in channels, for each picture."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from benchmarks.operations import measured_ceiling

from detres.networks.arithmetic import count_dispatched_multiply_adds

CONVOLUTION = 2 * 5 * 4 * 4 * 9 * 3  # of (2, 3, 4, 4) to (2, 5, 4, 4) by 3x3


def test_convolution_and_matrix_product():
    maps, weight = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3, 3, 3)
    assert count_dispatched_multiply_adds(lambda: F.conv2d(maps, weight, padding=1).relu()) == CONVOLUTION
    assert count_dispatched_multiply_adds(lambda: torch.zeros(7, 3) @ torch.zeros(3, 2)) == 7 * 3 * 2


def test_backward_is_counted():
    """Gradients of the maps and of the weights: each as much as forward."""
    maps, weight = torch.zeros(2, 3, 4, 4, requires_grad=True), torch.zeros(5, 3, 3, 3, requires_grad=True)
    assert (
        count_dispatched_multiply_adds(lambda: F.conv2d(maps, weight, padding=1).sum().backward())
        == 3 * CONVOLUTION
    )


@pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_convolution_pointwise"), reason="oneDNN has no fused operator"
)
def test_fused_convolutions_count_as_plain_ones():
    maps, weight, other = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3, 3, 3), torch.zeros(2, 5, 4, 4)
    convolve = torch.ops.mkldnn._convolution_pointwise
    shape = [1, 1], [1, 1], [1, 1], 1
    assert (
        count_dispatched_multiply_adds(lambda: convolve(maps, weight, None, *shape, "relu", [], ""))
        == CONVOLUTION
    )
    added = lambda: convolve.binary(maps, other, weight, None, *shape, "add", None, "relu", [], "")  # noqa: E731
    assert count_dispatched_multiply_adds(added) == CONVOLUTION


def test_ceiling_is_a_rate():
    assert measured_ceiling(torch.float32, torch.device("cpu")) > 1e8
