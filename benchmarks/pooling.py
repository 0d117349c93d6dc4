"""Pooling of regions beside torchvision: RoI max pooling (Girshick 2015, §2.1) and RoIAlign (He et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torchvision
from torch import Tensor

from benchmarks.cases import Agreement, Case, Prepared, torchvision_layouts, within
from benchmarks.detectors import SEED
from detres.boxes.anchors import cell_anchors, grid_anchors
from detres.boxes.coding import decode_boxes
from detres.boxes.geometry import clip_boxes
from detres.networks.roi_pooling import roi_align, roi_pool

STRIDE = 16
CHANNELS, CELLS, SAMPLING_RATIO = 1024, 14, 2  # conv4_x of ResNet-50 and deeper, before conv5_x
SIZE = (600, 800)  # height and width of the image
REGIONS = 300
# Largest differences relative to the largest value: float32 sums in another order, bfloat16 weights are rounded.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}


def pool_cases(
    precisions: Sequence[str], device: str, size: tuple[int, int] = SIZE, regions: int = REGIONS
) -> list[Case]:
    """RoIAlign and RoI max pooling, forward alone and with backward, in each precision of the map."""
    kinds = {"RoIAlign": (_our_align, _their_align), "RoI max": (_our_max, _their_max)}
    cases = []
    for kind, (ours, theirs) in kinds.items():
        for backward in (False, True):
            for precision in precisions:
                prepare = partial(_prepare, size, regions, device, precision, backward)
                cases.append(
                    Case(
                        name=f"pool {kind}{' with backward' if backward else ''} {precision}",
                        ours=partial(prepare, ours, True),
                        peers=torchvision_layouts(partial(prepare, theirs)),
                        compare=partial(compare_maps, tolerance=TOLERANCES[precision]),
                    )
                )
    return cases


def compare_maps(ours: list[Tensor], theirs: list[Tensor], *, tolerance: float) -> Agreement:
    """The largest difference of pooled maps (and gradients), relative to the largest value of each."""
    difference = 0.0
    for a, b in zip(ours, theirs, strict=True):
        largest = float(b.float().abs().max()) if b.numel() else 0.0
        if largest:
            difference = max(difference, float((a.float() - b.float()).abs().max()) / largest)
    return within(difference, tolerance, "maps, relative to the largest value,")


def rpn_like_boxes(size: tuple[int, int], count: int) -> tuple[Tensor, Tensor]:
    """Boxes as an RPN proposes them: the best of all anchors, moved a little, best near some objects.

    Args:
        size: Height and width of the image, in pixels.
        count: How many, at most; in order, best first.

    Returns:
        (N, 4) float32 xyxy inside the image and (N,) float32 scores.
    """
    generator = torch.Generator().manual_seed(SEED)
    height, width = size
    scale = min(size) / 600
    cell = cell_anchors([128 * scale, 256 * scale, 512 * scale], [0.5, 1.0, 2.0])
    anchors = grid_anchors(cell, -(-height // STRIDE), -(-width // STRIDE), STRIDE)
    deltas = torch.randn(len(anchors), 4, generator=generator) * 0.1
    boxes = clip_boxes(decode_boxes(deltas, anchors), height, width)
    corner = torch.rand(8, 2, generator=generator) * torch.tensor([width * 0.6, height * 0.6])
    side = (0.1 + 0.5 * torch.rand(8, 2, generator=generator)) * min(size)
    objects = clip_boxes(torch.cat((corner, corner + side), dim=1), height, width)
    overlap = torchvision.ops.box_iou(boxes, objects).amax(dim=1)
    scores = overlap + 0.1 * torch.rand(len(boxes), generator=generator)
    best = scores.topk(min(count, len(scores)))
    return boxes[best.indices].contiguous(), best.values


def _prepare(
    size: tuple[int, int],
    count: int,
    device: str,
    precision: str,
    backward: bool,
    pool: Callable[[Tensor, Tensor], Tensor],
    channels_last: bool,
) -> Prepared:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(SEED)
    height, width = (-(-side // STRIDE) for side in size)
    maps = torch.randn(1, CHANNELS, height, width, generator=generator).relu_()  # as conv4_x leaves it
    maps = maps.to(device, getattr(torch, precision)).contiguous(memory_format=layout)
    boxes, _ = rpn_like_boxes(size, 6000)
    boxes = boxes[torch.randperm(len(boxes), generator=generator)[:count]]
    regions = torch.cat((torch.zeros(len(boxes), 1), boxes), dim=1).to(device)
    gradient = torch.randn(len(boxes), CHANNELS, CELLS, CELLS, generator=generator)
    gradient = gradient.to(device, maps.dtype).contiguous(memory_format=layout)

    @torch.no_grad()
    def forward() -> list[Tensor]:
        return [pool(maps, regions)]

    def forward_and_backward() -> list[Tensor]:
        features = maps.detach().requires_grad_()
        pooled = pool(features, regions)
        (of_features,) = torch.autograd.grad(pooled, features, gradient)
        return [pooled.detach(), of_features]

    return Prepared(forward_and_backward if backward else forward)


def _our_align(maps: Tensor, regions: Tensor) -> Tensor:
    return roi_align(maps, regions, CELLS, 1 / STRIDE, SAMPLING_RATIO)


def _our_max(maps: Tensor, regions: Tensor) -> Tensor:
    return roi_pool(maps, regions, CELLS, 1 / STRIDE)


def _their_align(maps: Tensor, regions: Tensor) -> Tensor:
    """In float32: the operator has no bfloat16 on the CPU, and would round the regions elsewhere; as in autocast."""
    pooled = torchvision.ops.roi_align(maps.float(), regions, CELLS, 1 / STRIDE, SAMPLING_RATIO)
    return pooled.to(maps.dtype)


def _their_max(maps: Tensor, regions: Tensor) -> Tensor:
    """In float32, as RoIAlign."""
    return torchvision.ops.roi_pool(maps.float(), regions, CELLS, 1 / STRIDE).to(maps.dtype)
