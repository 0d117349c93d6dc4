"""RoIAlign and RoI max pooling against torchvision's operators, slow loops, and cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detres.networks.roi_pooling import roi_align, roi_pool

SCALE = 1 / 16


def random_regions(count: int, images: int, height: float, width: float, seed: int = 0) -> Tensor:
    """Regions of all sizes, some sticking out, some far outside, some tiny, some inverted."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    sides = torch.exp(torch.rand(count, 2, generator=generator) * 7)
    boxes = torch.cat((centers - sides / 2, centers + sides / 2), dim=1)
    boxes[::7] += 3 * width
    boxes[1::7, 2:] = boxes[1::7, :2] + 0.3
    boxes[2::11, 2:] = boxes[2::11, :2] - 20
    boxes[3::7] = boxes[3::7].round()
    image = torch.randint(0, images, (count, 1), generator=generator).float()
    return torch.cat((image, boxes), dim=1)


def features_and_gradient(count: int, output: int, *, ties: bool = False) -> tuple[Tensor, Tensor]:
    features = torch.randn(2, 24, 19, 25)
    if ties:
        features = features.mul(2).round().div(2).relu_()
    return features.requires_grad_(), torch.randn(count, 24, output, output)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("output", "ratio"), [(14, 2), (7, 1), (7, 3), (1, 4)])
def test_align_equals_torchvision(output: int, ratio: int, aligned: bool) -> None:
    """Truth: torchvision.ops.roi_align, values and gradients, to 1e-5 of the largest."""
    regions = random_regions(70, 2, 19 * 16, 25 * 16)
    features, upstream = features_and_gradient(70, output)
    peer = torchvision.ops.roi_align(features, regions, output, SCALE, ratio, aligned)
    ours = roi_align(features, regions, output, SCALE, ratio, aligned)
    assert ours.shape == peer.shape
    assert (ours - peer).abs().max() <= 1e-5 * peer.abs().max()
    expected = torch.autograd.grad(peer, features, upstream)[0]
    found = torch.autograd.grad(ours, features, upstream)[0]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_align_worked_by_hand() -> None:
    """Truth: on a map that is linear in x and y, a sample's value is its place; 5 x 5, values 5 y + x.

    Region 1, 1, 3, 3 with 4 cells a side: half-pixel cells, whose means are the values at their centers,
    1.25, 1.75, 2.25, 2.75; aligned, half a pixel less.
    """
    features = torch.arange(25, dtype=torch.float32).view(1, 1, 5, 5)
    regions = torch.tensor([[0.0, 1, 1, 3, 3]])
    centers = torch.tensor([1.25, 1.75, 2.25, 2.75])
    for aligned, shift in ((False, 0.0), (True, 0.5)):
        expected = 5 * (centers[:, None] - shift) + (centers - shift)
        torch.testing.assert_close(roi_align(features, regions, 4, 1.0, 2, aligned)[0, 0], expected)
    # in the input's pixels, twice as large, the same region
    torch.testing.assert_close(
        roi_align(features, torch.tensor([[0.0, 2, 2, 6, 6]]), 4, 0.5, 1)[0, 0],
        5 * centers[:, None] + centers,
    )


def test_align_outside_and_tiny_regions() -> None:
    """Truth: samples more than a pixel outside count zero; without `aligned` no region is under one pixel."""
    features = torch.ones(1, 1, 4, 4)
    outside = torch.tensor([[0.0, -50, -50, -20, -20], [0.0, 100, 0, 120, 4], [0.0, float("nan"), 0, 1, 1]])
    assert roi_align(features, outside, 2, 1.0).abs().max() == 0
    half = roi_align(features, torch.tensor([[0.0, -5.0, 0, 3, 4]]), 2, 1.0, 1)
    assert torch.equal(half[0, 0], torch.tensor([[0.0, 1], [0, 1]]))
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    point = torch.tensor([[0.0, 1.0, 1, 1, 1]])
    torch.testing.assert_close(roi_align(ramp, point, 2, 1.0)[0, 0, 0], torch.tensor([1.25, 1.75]))
    torch.testing.assert_close(roi_align(ramp, point, 2, 1.0, 2, True)[0, 0, 0], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(("output", "every"), [(14, 2), (7, 2), (7, 3), (2, 5)])
def test_align_of_every_nth_cell_is_a_part_of_all_cells(output: int, every: int) -> None:
    features, regions = torch.randn(2, 24, 19, 25), random_regions(30, 2, 19 * 16, 25 * 16)
    cells = roi_align(features, regions, output, 1 / 16)
    part = roi_align(features, regions, output, 1 / 16, bin_stride=every)
    torch.testing.assert_close(part, cells[:, :, ::every, ::every], rtol=0, atol=1e-6)


def test_align_gradcheck() -> None:
    """Truth: finite differences in float64, regions in float64 too."""
    features = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    regions = random_regions(6, 2, 5 * 16, 6 * 16).double()
    torch.autograd.gradcheck(lambda maps: roi_align(maps, regions, 3, SCALE), (features,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_align_in_half_precision(dtype: torch.dtype) -> None:
    """Truth: the float32 result of the same rounded map, within a few roundings of the type."""
    regions = random_regions(40, 2, 19 * 16, 25 * 16)
    features, upstream = features_and_gradient(40, 7)
    rounded = features.detach().to(dtype).requires_grad_()
    ours = roi_align(rounded, regions, 7, SCALE)
    exact = roi_align(rounded.detach().float(), regions, 7, SCALE)
    assert ours.dtype == dtype
    assert (ours.float() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()
    gradient = torch.autograd.grad(ours, rounded, upstream.to(dtype))[0]
    expected = torch.autograd.grad(roi_align(features, regions, 7, SCALE), features, upstream)[0]
    assert gradient.dtype == dtype
    assert (gradient.float() - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("output", [14, 7, 1])
def test_max_equals_torchvision(output: int, ties: bool) -> None:
    """Truth: torchvision.ops.roi_pool: equal values; gradients, which go to the first maximum."""
    regions = random_regions(70, 2, 19 * 16, 25 * 16)
    features, upstream = features_and_gradient(70, output, ties=ties)
    peer = torchvision.ops.roi_pool(features, regions, output, SCALE)
    ours = roi_pool(features, regions, output, SCALE)
    assert torch.equal(ours, peer)
    with torch.no_grad():
        assert torch.equal(roi_pool(features, regions, output, SCALE), peer)
    expected = torch.autograd.grad(peer, features, upstream)[0]
    found = torch.autograd.grad(ours, features, upstream)[0]
    assert torch.equal(found == 0, expected == 0)  # the very same pixels are chosen
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def slow_max_pool(features: Tensor, regions: Tensor, output: int, scale: float) -> tuple[Tensor, Tensor]:
    """Girshick 2015, §2.1, pixel by pixel: values and the places of the maxima (-1 where a bin is empty)."""
    _, channels, height, width = features.shape
    pooled = torch.zeros(len(regions), channels, output, output)
    places = torch.full(pooled.shape, -1)
    for r, (image, *corners) in enumerate(regions.tolist()):
        left, top, right, bottom = (math.copysign(math.floor(abs(c * scale) + 0.5), c) for c in corners)
        for v in range(output):
            for u in range(output):
                bin_height = max(bottom - top + 1, 1) / output
                bin_width = max(right - left + 1, 1) / output
                lines = range(
                    int(top + math.floor(v * bin_height)), int(top + math.ceil((v + 1) * bin_height))
                )
                columns = range(
                    int(left + math.floor(u * bin_width)), int(left + math.ceil((u + 1) * bin_width))
                )
                for c in range(channels):
                    best = -math.inf
                    for y in lines:
                        for x in columns:
                            if 0 <= y < height and 0 <= x < width and features[int(image), c, y, x] > best:
                                best = float(features[int(image), c, y, x])
                                pooled[r, c, v, u], places[r, c, v, u] = best, y * width + x
    return pooled, places


def test_max_equals_slow_loops() -> None:
    """Truth: loops over bins and pixels written from the paper, with negative values, ties and halves."""
    features = torch.randn(2, 2, 6, 5).mul(2).round().div(2).requires_grad_()
    regions = random_regions(14, 2, 6 * 16, 5 * 16, seed=2)
    regions[0] = torch.tensor([0.0, 8, 8, 24, 24])  # 0.5 and 1.5 of the map: halves go away from zero
    regions[1] = torch.tensor([1.0, -8, -24, 40, 40])
    expected, places = slow_max_pool(features.detach(), regions, 3, SCALE)
    ours = roi_pool(features, regions, 3, SCALE)
    assert torch.equal(ours, expected)
    upstream = torch.randint(1, 5, ours.shape).float()
    gradient = torch.zeros(2, 2, 30)
    for r, c, v, u in (places >= 0).nonzero().tolist():
        gradient[int(regions[r, 0]), c, places[r, c, v, u]] += upstream[r, c, v, u]
    assert torch.equal(torch.autograd.grad(ours, features, upstream)[0].flatten(2), gradient)


def test_max_in_bfloat16_is_exact() -> None:
    """Truth: a maximum needs no rounding; the gradient's sums do."""
    regions = random_regions(40, 2, 19 * 16, 25 * 16)
    features, upstream = features_and_gradient(40, 7, ties=True)
    rounded = features.detach().bfloat16().requires_grad_()
    ours = roi_pool(rounded, regions, 7, SCALE)
    assert torch.equal(ours.float(), roi_pool(rounded.detach().float(), regions, 7, SCALE))
    gradient = torch.autograd.grad(ours, rounded, upstream.bfloat16())[0].float()
    expected = torch.autograd.grad(roi_pool(features, regions, 7, SCALE), features, upstream)[0]
    assert (gradient - expected).abs().max() <= 0.02 * expected.abs().max()


def test_max_gradcheck() -> None:
    """Truth: finite differences in float64 (torchvision's operator behind ours)."""
    features = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    regions = random_regions(4, 1, 5 * 16, 6 * 16).double()
    torch.autograd.gradcheck(lambda maps: roi_pool(maps, regions, 3, SCALE), (features,))


@pytest.mark.parametrize("pool", [roi_align, roi_pool])
def test_no_region_one_region_and_wrong_image(pool: object) -> None:
    """Truth: an empty list gives an empty tensor and a gradient of zero; an image that is not there is an error."""
    assert callable(pool)
    features = torch.randn(2, 3, 4, 5, requires_grad=True)
    none = pool(features, torch.zeros(0, 5), 7, SCALE)
    assert none.shape == (0, 3, 7, 7)
    none.sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum() == 0
    assert pool(features, torch.tensor([[1.0, 0, 0, 64, 64]]), 7, SCALE).shape == (1, 3, 7, 7)
    assert pool(torch.ones(1, 1, 1, 1), torch.tensor([[0.0, 0, 0, 7, 7]]), 2, SCALE).sum() == 4
    for image in (-1.0, 2.0):
        with pytest.raises(ValueError, match="images"):
            pool(features, torch.tensor([[image, 0, 0, 9, 9]]), 7, SCALE)


@given(
    seed=st.integers(0, 10_000), height=st.integers(1, 12), width=st.integers(1, 12), output=st.integers(1, 5)
)
def test_regions_do_not_depend_on_one_another(seed: int, height: int, width: int, output: int) -> None:
    """Truth: each region alone; a channels-last map gives what a contiguous one gives."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, height, width, generator=generator)
    regions = random_regions(5, 2, height * 16, width * 16, seed)
    last = features.contiguous(memory_format=torch.channels_last)
    for pool in (roi_align, roi_pool):
        together = pool(last, regions, output, SCALE)
        alone = torch.cat([pool(features, region[None], output, SCALE) for region in regions])
        torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
