"""From regions to detections: the last suppression against a slow loop, scores and boxes by hand, empty cases."""

from __future__ import annotations

import pytest
import torch
from detectors import small_architecture
from torch import nn

from detres.boxes.geometry import box_iou
from detres.data.preprocessing import TORCHVISION
from detres.detection.build import build_detector
from detres.detection.fast_rcnn import (
    RegionHead,
    class_scores_and_boxes,
    pool_regions,
    region_pooling,
    suppress,
)


def test_scores_and_boxes_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.0]])  # two classes and background
    deltas = torch.tensor(
        [[[0.0, 0, 0, 0], [5, 0, 0, 0]]]
    )  # half a width (5 / 10) to the right for the second
    proposals = torch.tensor([[10.0, 10, 30, 20]])
    scores, boxes = class_scores_and_boxes(logits, deltas, proposals, (18, 35), (0.1, 0.1, 0.2, 0.2))
    torch.testing.assert_close(scores, torch.tensor([[0.24473, 0.66524]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes, torch.tensor([[[10.0, 10, 30, 18], [20, 10, 35, 18]]]))


def slow_suppress(scores, boxes, min_score, nms, max_detections, min_side):
    candidates = [
        (scores[r, k].item(), r, k)
        for r in range(scores.shape[0])
        for k in range(scores.shape[1])
        if scores[r, k] > min_score and (boxes[r, k, 2:] - boxes[r, k, :2]).min() >= min_side
    ]
    kept = []
    for score, r, k in sorted(candidates, key=lambda candidate: -candidate[0]):
        alike = [other for other in kept if other[2] == k]
        if all(box_iou(boxes[r, k][None], boxes[o, k][None]).item() <= nms for _, o, _ in alike):
            kept.append((score, r, k))
    return kept[:max_detections]


@pytest.mark.parametrize(("regions", "max_detections"), [(40, 1000), (40, 7), (1, 5)])
def test_suppress_equals_the_obvious_loop(regions, max_detections):
    generator = torch.Generator().manual_seed(regions)
    scores = torch.rand(regions, 3, generator=generator)
    corners = torch.rand(regions, 3, 2, generator=generator) * 30
    boxes = torch.cat((corners, corners + torch.rand(regions, 3, 2, generator=generator) * 30), dim=-1)
    found = suppress(scores, boxes, min_score=0.2, nms=0.3, max_detections=max_detections, min_side=2.0)
    expected = slow_suppress(scores, boxes, 0.2, 0.3, max_detections, 2.0)
    assert found.labels.tolist() == [k for _, _, k in expected]
    assert found.scores.tolist() == [score for score, _, _ in expected]
    assert found.boxes.tolist() == [boxes[r, k].tolist() for _, r, k in expected]


@pytest.mark.parametrize("regions", [0, 3])
def test_suppress_where_nothing_is_found(regions):
    found = suppress(
        torch.zeros(regions, 2), torch.zeros(regions, 2, 4), min_score=0.0, nms=0.3, max_detections=9
    )
    assert (found.boxes.shape, found.scores.shape, found.labels.shape) == ((0, 4), (0,), (0,))
    assert found.labels.dtype == torch.int64


@pytest.mark.parametrize("kind", ["align", "max"])
def test_no_regions_through_the_head(kind):
    pooling = region_pooling(kind, 14, 16)
    head = build_detector(small_architecture(region_pooling=kind), 2, TORCHVISION).region_head
    pooled = pool_regions(pooling, [torch.zeros(1, 64, 4, 5)], [torch.zeros(0, 4)])
    assert pooled.shape == (0, 64, 14, 14)
    logits, deltas = head(pooled)
    assert (logits.shape, deltas.shape) == ((0, 3), (0, 2, 4))


@pytest.mark.parametrize("kind", ["align", "max"])
def test_each_image_is_pooled_from_its_own_map(kind):
    pooling = region_pooling(kind, 2, 16)
    maps = [torch.full((1, 3, 4, 4), 1.0), torch.full((1, 3, 6, 5), 2.0)]
    boxes = [torch.tensor([[0.0, 0, 40, 40]]), torch.tensor([[0.0, 0, 40, 40], [8, 8, 64, 64]])]
    pooled = pool_regions(pooling, maps, boxes)
    assert pooled[:, 0, 0, 0].tolist() == [1, 2, 2]


def test_head_gives_float32_from_low_precision_and_keeps_double():
    head = RegionHead(nn.Flatten(), 6, 2)
    pooled = torch.randn(5, 6, 1, 1)
    assert {output.dtype for output in head.bfloat16()(pooled.bfloat16())} == {torch.float32}
    assert {output.dtype for output in head.double()(pooled.double())} == {torch.float64}
