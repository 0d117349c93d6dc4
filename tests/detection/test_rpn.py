"""Proposals against a slow loop; the order of the RPN's outputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from detres.boxes.anchors import cell_anchors, grid_anchors
from detres.detection.rpn import ProposalOptions, RPNHead, propose

HEIGHT, WIDTH = 64, 96


def outputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    anchors = grid_anchors(cell_anchors((16, 32), (0.5, 1, 2)), HEIGHT // 16, WIDTH // 16, 16)
    return (
        torch.randn(len(anchors), generator=generator),
        torch.randn(len(anchors), 4, generator=generator) * 0.3,
        anchors,
    )


def slow_iou(box: list[float], other: list[float]) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return width * height / (area - width * height)


def slow_proposals(objectness, deltas, anchors, scale, options: ProposalOptions) -> list[list[float]]:
    kept: list[list[float]] = []
    best = sorted(range(len(objectness)), key=lambda i: -objectness[i].item())[: options.before_nms]
    for index in best:
        x1, y1, x2, y2 = anchors[index].tolist()
        dx, dy, dw, dh = deltas[index].tolist()
        x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
        w, h = (x2 - x1) * math.exp(dw), (y2 - y1) * math.exp(dh)
        box = [
            max(x - w / 2, 0.0),
            max(y - h / 2, 0.0),
            min(x + w / 2, float(WIDTH)),
            min(y + h / 2, float(HEIGHT)),
        ]
        original_height, original_width = (box[3] - box[1]) / scale[0], (box[2] - box[0]) / scale[1]
        if original_height < options.min_size or original_width < options.min_size:
            continue
        if all(slow_iou(box, other) <= options.nms for other in kept):
            kept.append(box)
    return kept[: options.after_nms]


@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.0, 0.5)])
@pytest.mark.parametrize(("before", "after"), [(50, 10), (1000, 1000), (1, 5)])
def test_proposals_equal_the_obvious_loop(scale, before, after):
    options = ProposalOptions(before_nms=before, after_nms=after, nms=0.6, min_size=9.0)
    objectness, deltas, anchors = outputs()
    found = propose(objectness, deltas, anchors, (HEIGHT, WIDTH), scale, options)
    expected = slow_proposals(objectness, deltas, anchors, scale, options)
    assert 0 < len(expected) <= after
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-3)


def test_min_side_counts_pixels_of_the_original_image():
    anchors = torch.tensor([[0.0, 0, 20, 20], [30, 30, 50, 46]])
    options = ProposalOptions(before_nms=10, after_nms=10, nms=0.7, min_size=10)
    still = torch.zeros(2, 4)

    def count(scale: tuple[float, float]) -> int:
        return len(propose(torch.tensor([1.0, 0]), still, anchors, (HEIGHT, WIDTH), scale, options))

    assert [count(scale) for scale in ((1.0, 1.0), (2.0, 2.0), (2.0, 1.0), (1.0, 2.0), (3.0, 3.0))] == [
        2,
        1,
        1,
        2,
        0,
    ]


def test_no_proposals_are_an_empty_tensor_and_no_gradient_flows():
    objectness, deltas, anchors = outputs()
    deltas.requires_grad_()
    options = ProposalOptions(before_nms=10, after_nms=10, nms=0.7, min_size=1000)
    assert propose(objectness, deltas, anchors, (HEIGHT, WIDTH), (1.0, 1.0), options).shape == (0, 4)
    few = ProposalOptions(before_nms=10, after_nms=10, nms=0.7, min_size=0)
    assert not propose(objectness, deltas, anchors, (HEIGHT, WIDTH), (1.0, 1.0), few).requires_grad


def test_outputs_are_in_the_order_of_the_anchors():
    """One output channel at one position is set: its place must be row, column, anchor."""
    head = RPNHead(in_channels=2, channels=8, anchors=3)
    for layer in (head.objectness, head.deltas):
        torch.nn.init.zeros_(layer.weight)
    head.objectness.bias = nn.Parameter(torch.tensor([1.0, 2, 3]))
    head.deltas.bias = nn.Parameter(torch.arange(12.0))
    torch.nn.init.zeros_(head.conv.weight)
    head.conv.weight.data[0, 0, 1, 1] = 1
    head.objectness.weight.data[1, 0] = 1
    maps = torch.zeros(1, 2, 4, 5)
    maps[0, 0, 2, 3] = 100
    objectness, deltas = head(maps)
    assert objectness.shape == (1, 60)
    assert objectness.argmax() == (2 * 5 + 3) * 3 + 1
    assert deltas[0, :3].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert head(maps.double().float())[0].dtype == torch.float32
    assert head.bfloat16()(maps.bfloat16())[0].dtype == torch.float32
