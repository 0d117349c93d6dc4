"""Proposals against a slow loop; the order of the RPN's outputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from detres.boxes.anchors import cell_anchors, grid_anchors
from detres.detection.config import DetectionTestConfig, RPNConfig
from detres.detection.rpn import ImageOutputs, RPNHead, propose

HEIGHT, WIDTH = 64, 96


def image_outputs(objectness: Tensor, deltas: Tensor, anchors: Tensor) -> ImageOutputs:
    return ImageOutputs(torch.zeros(1, 1, 1, 1), objectness, deltas, anchors, (HEIGHT, WIDTH))


def random_outputs(seed: int = 0) -> ImageOutputs:
    generator = torch.Generator().manual_seed(seed)
    anchors = grid_anchors(cell_anchors((16, 32), (0.5, 1, 2)), HEIGHT // 16, WIDTH // 16, 16)
    objectness = torch.randn(len(anchors), generator=generator)
    return image_outputs(objectness, torch.randn(len(anchors), 4, generator=generator) * 0.3, anchors)


def slow_iou(box: list[float], other: list[float]) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return width * height / (area - width * height)


def slow_proposals(outputs: ImageOutputs, scale, before, after, rpn: RPNConfig) -> list[list[float]]:
    kept: list[list[float]] = []
    objectness = outputs.objectness.tolist()
    best = sorted(range(len(objectness)), key=lambda i: -objectness[i])[:before]
    for index in best:
        x1, y1, x2, y2 = outputs.anchors[index].tolist()
        dx, dy, dw, dh = outputs.deltas[index].tolist()
        x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
        w, h = (x2 - x1) * math.exp(dw), (y2 - y1) * math.exp(dh)
        box = [
            max(x - w / 2, 0.0),
            max(y - h / 2, 0.0),
            min(x + w / 2, float(WIDTH)),
            min(y + h / 2, float(HEIGHT)),
        ]
        original_height, original_width = (box[3] - box[1]) / scale[0], (box[2] - box[0]) / scale[1]
        if original_height < rpn.min_size or original_width < rpn.min_size:
            continue
        if all(slow_iou(box, other) <= rpn.nms_thresh for other in kept):
            kept.append(box)
    return kept[:after]


@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.0, 0.5)])
@pytest.mark.parametrize(("before", "after"), [(50, 10), (1000, 1000), (1, 5)])
def test_proposals_equal_the_obvious_loop(scale, before, after):
    """The numbers of proposals come from the section that is given for them, in training and at test."""
    numbers = {"pre_nms_top_n": before, "proposals": after}
    rpn, outputs = RPNConfig(nms_thresh=0.6, min_size=9.0), random_outputs()
    expected = slow_proposals(outputs, scale, before, after, rpn)
    assert 0 < len(expected) <= after
    for limits in (rpn.model_copy(update=numbers), DetectionTestConfig.model_validate(numbers)):
        proposals = propose(outputs, scale, rpn, limits)
        torch.testing.assert_close(proposals, torch.tensor(expected), rtol=0, atol=1e-3)


def test_min_size_counts_pixels_of_the_original_image():
    anchors = torch.tensor([[0.0, 0, 20, 20], [30, 30, 50, 46]])
    rpn = RPNConfig(pre_nms_top_n=10, proposals=10, min_size=10)
    outputs = image_outputs(torch.tensor([1.0, 0]), torch.zeros(2, 4), anchors)

    def count(scale: tuple[float, float]) -> int:
        return len(propose(outputs, scale, rpn, rpn))

    assert [count(scale) for scale in ((1.0, 1.0), (2.0, 2.0), (2.0, 1.0), (1.0, 2.0), (3.0, 3.0))] == [
        2,
        1,
        1,
        2,
        0,
    ]


def test_no_proposals_are_an_empty_tensor_and_no_gradient_flows():
    outputs = random_outputs()
    outputs.deltas.requires_grad_()
    none = RPNConfig(pre_nms_top_n=10, proposals=10, min_size=1000)
    assert propose(outputs, (1.0, 1.0), none, none).shape == (0, 4)
    few = RPNConfig(pre_nms_top_n=10, proposals=10, min_size=0)
    proposals = propose(outputs, (1.0, 1.0), few, few)
    assert len(proposals) > 0
    assert not proposals.requires_grad


def test_outputs_are_in_the_order_of_the_anchors():
    """One output channel at one position is set: its place must be row, column, anchor."""
    head = RPNHead(in_channels=2, channels=8, anchors=3)
    for layer in (head.cls_logits, head.bbox_pred):
        torch.nn.init.zeros_(layer.weight)
    head.cls_logits.bias = nn.Parameter(torch.tensor([1.0, 2, 3]))
    head.bbox_pred.bias = nn.Parameter(torch.arange(12.0))
    torch.nn.init.zeros_(head.conv.weight)
    head.conv.weight.data[0, 0, 1, 1] = 1
    head.cls_logits.weight.data[1, 0] = 1
    maps = torch.zeros(1, 2, 4, 5)
    maps[0, 0, 2, 3] = 100
    objectness, deltas = head(maps)
    assert objectness.shape == (1, 60)
    assert objectness.argmax() == (2 * 5 + 3) * 3 + 1
    assert deltas[0, :3].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert head(maps.double().float())[0].dtype == torch.float32
    assert head.bfloat16()(maps.bfloat16())[0].dtype == torch.float32
