"""Pooling of regions from a map to a fixed number of cells: RoIAlign, and the paper's RoI max pooling.

He et al. 2015, Appendix A (before conv5_1); Girshick 2015, §2.1 (max pooling, rounded bins); He et al. 2017 (RoIAlign).

Glossary: N images, C channels, H and W the sides of a map, R regions, o the output size, P = R * o * o cells. `regions`
(R, 5): image index, x1, y1, x2, y2 in pixels of the network's input. A *pixel row* is the C values at one position of
the map: row (n * H + y) * W + x of the (N * H * W, C) matrix. A channels-last map is that matrix without a copy.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# because torchvision has no stubs and torch leaves some functions partly untyped.

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from detres.networks.window_maxima import is_empty, levels, window_maxima

MAX_OUTSIDE = 1.0  # RoIAlign: a sample further than this outside the map counts as zero (as in torchvision)


def roi_align(
    features: Tensor,
    regions: Tensor,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int = 2,
    aligned: bool = False,
    bin_stride: int = 1,
) -> Tensor:
    """Mean of bilinear samples in each of o x o cells of each region (RoIAlign).

    A cell is a weighted sum of pixel rows: ratio^2 samples of four rows each. On the CPU one `embedding_bag` computes
    it, and another, over the same weights sorted by row, its gradient. Other devices use torchvision's operator.

    Args:
        features: (N, C, H, W), floating; channels-last is read without a copy. In bfloat16 the weights are rounded to
            bfloat16 too, and the sums are computed in float32.
        regions: (R, 5), float32 (or float64); they get no gradient.
        output_size: o.
        spatial_scale: Map pixels for each input pixel, 1 / stride.
        sampling_ratio: Samples along each side of a cell, at least 1.
        aligned: Shift by half a pixel (detectron2). If False, there is no shift and regions are at least one map pixel
            wide.
        bin_stride: Compute only every such cell along both axes: those that a convolution of this stride reads.

    Returns:
        (R, C, p, p) with p = ceil(o / bin_stride), dtype of `features`; on the CPU in channels-last memory.
    """
    batch, _, height, width = features.shape
    assert regions.dim() == 2
    assert regions.shape[1] == 5
    assert sampling_ratio >= 1
    if features.device.type != "cpu":
        wide = _widen(features)
        size = (output_size, output_size)
        cells = torchvision.ops.roi_align(
            wide, regions.to(wide.dtype), size, spatial_scale, sampling_ratio, aligned
        )
        return cells.to(features.dtype)[:, :, ::bin_stride, ::bin_stride]
    with torch.no_grad():
        indices, weights, offsets = _align_weights(
            regions, (batch, height, width), output_size, spatial_scale, sampling_ratio, aligned, bin_stride
        )
    side = -(-output_size // bin_stride)
    rows = _pixel_rows(features)
    return cast(Tensor, _WeightedRows.apply(rows, indices, weights.to(features.dtype), offsets, side))


def _widen(features: Tensor) -> Tensor:
    """`features` in float32 at least, because torchvision's operators would round the regions to half precision too."""
    return features if features.dtype == torch.float64 else features.float()


def _pixel_rows(features: Tensor) -> Tensor:
    """(N, C, H, W) to (N * H * W, C)."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


class _WeightedRows(torch.autograd.Function):
    """cells[p] = sum of weights[k] * rows[indices[k]] over offsets[p] <= k < offsets[p + 1], as (R, C, side, side).

    Gradient, by the transposed matrix: grad_rows[j] = sum of weights[k] * grad_cells[p(k)] over all k with
    indices[k] = j.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, indices: Tensor, weights: Tensor, offsets: Tensor, side: int
    ) -> Tensor:
        ctx.save_for_backward(indices, weights, offsets)
        ctx.num_rows = len(rows)
        return _as_regions(_sum_rows(rows, indices, weights, offsets), side)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        indices, weights, offsets = ctx.saved_tensors
        cells = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff()).to(indices.dtype)
        order = torch.argsort(indices, stable=True)
        by_row = _offsets(torch.bincount(indices, minlength=ctx.num_rows))
        grad_cells = _pixel_rows(grad_outputs[0])
        return _sum_rows(grad_cells, cells[order], weights[order], by_row), None, None, None, None


def _as_regions(cells: Tensor, side: int) -> Tensor:
    """Cells (R * side * side, C) as (R, C, side, side) in channels-last memory, sharing memory without being a view.

    A view would be slow, because for an in-place operation on it autograd copies the whole tensor twice.
    """
    channels = cells.shape[1]
    shape = (len(cells) // side**2, channels, side, side)
    strides = (side * side * channels, 1, side * channels, channels)
    return cells.new_empty(0).set_(cells.untyped_storage(), cells.storage_offset(), shape, strides)


def _sum_rows(rows: Tensor, indices: Tensor, weights: Tensor | None, offsets: Tensor) -> Tensor:
    if len(indices) == 0:
        return rows.new_zeros(len(offsets) - 1, rows.shape[1])
    return F.embedding_bag(
        indices, rows, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def _align_weights(
    regions: Tensor,
    sides: tuple[int, int, int],
    output_size: int,
    spatial_scale: float,
    ratio: int,
    aligned: bool,
    bin_stride: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The pixel rows and weights of all cells, without those of weight zero.

    Returns:
        indices (K,) int32 of pixel rows, weights (K,), offsets (P + 1,) int32 where each cell's rows start.
    """
    batch, height, width = sides
    _check_image_indices(regions, batch)
    shift = 0.5 if aligned else 0.0
    start = regions[:, 1:3] * spatial_scale - shift  # (R, 2) x, y
    extent = regions[:, 3:5] * spatial_scale - shift - start
    if not aligned:
        extent = extent.clamp(min=1.0)
    # pixels and weights along each axis: (R, o, 2 ratio)
    columns, column_weights = _axis_weights(start[:, 0], extent[:, 0], width, output_size, ratio, bin_stride)
    lines, line_weights = _axis_weights(start[:, 1], extent[:, 1], height, output_size, ratio, bin_stride)
    image = regions[:, 0].to(torch.int32)[:, None, None]
    lines = (image * height + lines) * width
    # their products: (R, p, p, 2 ratio, 2 ratio)
    weights = line_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    indices = lines[:, :, None, :, None] + columns[:, None, :, None, :]
    used = weights != 0
    counts = used.view(-1, 4 * ratio * ratio).sum(1)
    kept = used.view(-1).nonzero()[:, 0]
    return indices.view(-1)[kept], weights.view(-1)[kept], _offsets(counts)


def _axis_weights(
    start: Tensor, extent: Tensor, side: int, output_size: int, ratio: int, bin_stride: int
) -> tuple[Tensor, Tensor]:
    """The map pixels that each cell's samples read along one axis, and their weights in the cell's mean.

    Regions start at `start` (R,) and are `extent` (R,) long, in map pixels. Samples less than a pixel apart read the
    same pixels; the first of equal pixels gets the sum of their weights, and the others get weight zero.

    Returns:
        pixels (R, p, 2 ratio) int32 and weights of the same shape, p = ceil(o / bin_stride).
    """
    cell = (extent / output_size)[:, None, None]
    within = (torch.arange(ratio, dtype=start.dtype) + 0.5) * cell / ratio
    cells = torch.arange(0, output_size, bin_stride, dtype=start.dtype)[:, None]
    samples = (start[:, None, None] + cells * cell + within).flatten(1)  # (R, p ratio)
    inside = (samples >= -MAX_OUTSIDE) & (samples <= side)
    samples = torch.where(inside, samples, 0.0).clamp(0, side - 1)
    low = samples.floor()
    share = samples - low
    high = (low + 1).clamp(max=side - 1)
    pixels = torch.stack((low, high), dim=-1).to(torch.int32).view(len(start), len(cells), 2 * ratio)
    weights = torch.stack((1 - share, share), dim=-1) * (inside / ratio)[..., None]
    weights = weights.view(len(start), len(cells), 2 * ratio)
    for later in range(1, 2 * ratio):
        for earlier in range(later):
            equal = pixels[..., earlier] == pixels[..., later]
            moved = torch.where(equal, weights[..., later], 0.0)
            weights[..., earlier] += moved
            weights[..., later] -= moved
    return pixels, weights


def roi_pool(features: Tensor, regions: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    """Maximum of the map pixels in each of o x o rounded bins of each region; an empty bin gives 0.

    Many bins of overlapping regions are the same window of the map, so that each distinct window is computed once, from
    a table of maxima over blocks with sides of powers of two, and copied. The result equals that of torchvision's
    operator, and so does the gradient, which goes to the first maximum in row-major order. Other devices and float64
    use torchvision's operator.

    Args:
        features: (N, C, H, W), floating.
        regions: (R, 5), float32; they get no gradient.
        output_size: o.
        spatial_scale: Map pixels for each input pixel, 1 / stride.

    Returns:
        (R, C, o, o), dtype of `features`; on the CPU in channels-last memory.

    Source: Girshick 2015, §2.1, with the rounding of its published code.
    """
    batch, _, height, width = features.shape
    assert regions.dim() == 2
    assert regions.shape[1] == 5
    if features.device.type != "cpu" or features.dtype == torch.float64:
        wide = _widen(features)
        size = (output_size, output_size)
        return torchvision.ops.roi_pool(wide, regions.to(wide.dtype), size, spatial_scale).to(features.dtype)
    sides = (batch, height, width)
    with torch.no_grad():
        windows, window_of_cell = _distinct_windows(regions, sides, output_size, spatial_scale)
    rows = _pixel_rows(features)
    return cast(Tensor, _WindowMaxima.apply(rows, windows, window_of_cell, sides, output_size))


class _WindowMaxima(torch.autograd.Function):
    """cells[p] = maximum over window u(p) of the pixel rows, for each channel.

    If a gradient is needed, the maximum is taken over keys (value, then earliest row), which also give its row:
    grad_rows[j, c] = sum of grad_cells[p, c] over all p whose window has its first maximum of channel c at j.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        windows: Tensor,
        window_of_cell: Tensor,
        sides: tuple[int, int, int],
        output_size: int,
    ) -> Tensor:
        maxima, places = window_maxima(rows, windows, sides, with_places=ctx.needs_input_grad[0])
        ctx.save_for_backward(windows, window_of_cell, places)
        ctx.num_rows = len(rows)
        return _as_regions(maxima.index_select(0, window_of_cell), output_size)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        windows, window_of_cell, places = ctx.saved_tensors
        grad_cells = _pixel_rows(grad_outputs[0])
        cells = torch.argsort(window_of_cell, stable=True).to(torch.int32)
        offsets = _offsets(torch.bincount(window_of_cell, minlength=len(windows)))
        grad_windows = _sum_rows(grad_cells, cells, None, offsets).float()
        grad_windows[is_empty(windows)] = 0.0
        grad_rows = grad_windows.new_zeros(ctx.num_rows, grad_cells.shape[1])
        grad_rows.scatter_add_(0, places.to(torch.int64), grad_windows)
        return grad_rows.to(grad_cells.dtype), None, None, None, None


def _distinct_windows(
    regions: Tensor, sides: tuple[int, int, int], output_size: int, spatial_scale: float
) -> tuple[Tensor, Tensor]:
    """The distinct windows, and the window of each cell.

    Returns:
        windows (U, 5) int64, sorted by level: image, top, bottom, left, right (bottom and right exclusive;
        all 0 where empty), and window_of_cell (P,) int64.
    """
    batch, height, width = sides
    _check_image_indices(regions, batch)
    corners = _round_half_away(regions[:, 1:] * spatial_scale)
    left, right = _bins(corners[:, 0], corners[:, 2], width, output_size)  # (R, o)
    top, bottom = _bins(corners[:, 1], corners[:, 3], height, output_size)
    image = regions[:, 0].to(torch.int64)[:, None].expand_as(top)
    lines, line = _distinct(torch.stack((image, top, bottom), dim=-1), height + 1)
    columns, column = _distinct(torch.stack((left, right), dim=-1), width + 1)
    pairs = (line[:, :, None] * len(columns) + column[:, None, :]).view(-1)  # (P,)
    occurs = torch.zeros(len(lines) * len(columns), dtype=torch.bool)
    occurs[pairs] = True
    occurring = occurs.nonzero()[:, 0]
    windows = torch.cat((lines[occurring // len(columns)], columns[occurring % len(columns)]), dim=1)
    windows[(windows[:, 2] <= windows[:, 1]) | (windows[:, 4] <= windows[:, 3])] = 0
    order = torch.argsort(levels(windows) @ torch.tensor([64, 1]), stable=True)
    number = torch.empty_like(occurs, dtype=torch.int64)
    number[occurring[order]] = torch.arange(len(order))
    return windows[order], number[pairs]


def _distinct(tuples: Tensor, base: int) -> tuple[Tensor, Tensor]:
    """The distinct tuples (U, k) of (R, o, k), and the index of each; all entries but the first are below `base`."""
    k = tuples.shape[-1]
    powers = [base**exponent for exponent in reversed(range(k))]
    keys = (tuples * torch.tensor(powers)).sum(-1)
    keys, indices = cast("tuple[Tensor, Tensor]", torch.unique(keys, return_inverse=True))
    digits = [keys // power % base for power in powers[1:]]
    return torch.stack([keys // powers[0], *digits], dim=1), indices


def _bins(start: Tensor, end: Tensor, side: int, output_size: int) -> tuple[Tensor, Tensor]:
    """First and one past the last map pixel of each bin along one axis, (R, o) int64 each, clipped to the map."""
    extent = (end - start + 1).clamp(min=1) / output_size
    number = torch.arange(output_size, dtype=start.dtype)
    first = (number * extent[:, None]).floor() + start[:, None]
    last = ((number + 1) * extent[:, None]).ceil() + start[:, None]
    return first.clamp(0, side).to(torch.int64), last.clamp(0, side).to(torch.int64)


def _round_half_away(values: Tensor) -> Tensor:
    """Round to the nearest integer, halves away from zero (torch.round rounds them to even)."""
    whole = values.trunc()  # adding 0.5 first would round 0.49999997 up
    return whole + values.sign() * ((values - whole).abs() >= 0.5)


def _offsets(counts: Tensor) -> Tensor:
    """The start of each of n consecutive runs of these lengths, and the end of the last: (n + 1,) int32."""
    return F.pad(counts.cumsum(0), (1, 0)).to(torch.int32)


def _check_image_indices(regions: Tensor, batch: int) -> None:
    if len(regions) and not 0 <= int(regions[:, 0].min()) <= int(regions[:, 0].max()) < batch:
        raise ValueError(
            f"regions name images {regions[:, 0].min()} to {regions[:, 0].max()}, there are {batch}"
        )
