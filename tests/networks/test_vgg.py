"""VGG's trunk on pictures thinner than its stride.

Truth: Caffe's pools, which keep cut windows; where every other side is even, no other window is cut.
"""

from __future__ import annotations

import pytest
import torch

from detres.networks.vgg import VGG, VGGTrunk


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 64), (2, 64), (4, 32), (8, 64), (64, 8), (1, 1)])
def test_a_thin_image_leaves_one_position(size):
    maps = []
    for pool in ("torchvision", "caffe"):
        network = VGG(16, 2, pool=pool, width=0.125, generator=torch.Generator().manual_seed(0))
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        maps.append(VGGTrunk(network)(images))
    assert maps[0].shape[-2:] == tuple(max(1, side // 16) for side in size)
    assert torch.equal(maps[0], maps[1])
    assert maps[0].isfinite().all()


@torch.no_grad()
def test_an_odd_thin_side_goes_down_to_one_position():
    """15 -> 7 -> 3 -> 1 -> 1; the other side, of 100, drops what is cut as in any picture."""
    network = VGG(16, 2, width=0.125, generator=torch.Generator().manual_seed(0))
    assert VGGTrunk(network)(torch.randn(1, 3, 15, 100)).shape[-2:] == (1, 6)
