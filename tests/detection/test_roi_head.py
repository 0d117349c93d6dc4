"""From regions to detections: the last suppression against a slow loop, scores and boxes by hand, empty cases."""

from __future__ import annotations

import pytest
import torch
from detectors import small_architecture
from torch import nn

from detres.boxes.geometry import box_iou
from detres.data.preprocessing import TORCHVISION
from detres.detection.build import build_detector
from detres.detection.roi_head import RegionHead, RegionPooling, class_scores_and_boxes, suppress
from detres.networks.config import NetworkConfig
from detres.networks.norm import FrozenBatchNorm2d, folded


def test_scores_and_boxes_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.0]])  # two classes and background
    deltas = torch.tensor(
        [[[0.0, 0, 0, 0], [5, 0, 0, 0]]]
    )  # half a width (5 / 10) to the right for the second
    proposals = torch.tensor([[10.0, 10, 30, 20]])
    scores, boxes = class_scores_and_boxes(logits, deltas, proposals, (18, 35), (0.1, 0.1, 0.2, 0.2))
    torch.testing.assert_close(scores, torch.tensor([[0.24473, 0.66524]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes, torch.tensor([[[10.0, 10, 30, 18], [20, 10, 35, 18]]]))


def slow_suppress(scores, boxes, score_thresh, nms, detections_per_img, min_size):
    candidates = [
        (scores[r, k].item(), r, k)
        for r in range(scores.shape[0])
        for k in range(scores.shape[1])
        if scores[r, k] > score_thresh and (boxes[r, k, 2:] - boxes[r, k, :2]).min() >= min_size
    ]
    kept = []
    for score, r, k in sorted(candidates, key=lambda candidate: -candidate[0]):
        alike = [other for other in kept if other[2] == k]
        if all(box_iou(boxes[r, k][None], boxes[o, k][None]).item() <= nms for _, o, _ in alike):
            kept.append((score, r, k))
    return kept[:detections_per_img]


@pytest.mark.parametrize(("regions", "detections_per_img"), [(40, 1000), (40, 7), (1, 5)])
def test_suppress_equals_the_obvious_loop(regions, detections_per_img):
    generator = torch.Generator().manual_seed(regions)
    scores = torch.rand(regions, 3, generator=generator)
    corners = torch.rand(regions, 3, 2, generator=generator) * 30
    boxes = torch.cat((corners, corners + torch.rand(regions, 3, 2, generator=generator) * 30), dim=-1)
    found = suppress(
        scores, boxes, score_thresh=0.2, nms=0.3, detections_per_img=detections_per_img, min_size=2.0
    )
    expected = slow_suppress(scores, boxes, 0.2, 0.3, detections_per_img, 2.0)
    assert found.labels.tolist() == [k for _, _, k in expected]
    assert found.scores.tolist() == [score for score, _, _ in expected]
    assert found.boxes.tolist() == [boxes[r, k].tolist() for _, r, k in expected]


@pytest.mark.parametrize("regions", [0, 3])
def test_suppress_where_nothing_is_found(regions):
    found = suppress(
        torch.zeros(regions, 2), torch.zeros(regions, 2, 4), score_thresh=0.0, nms=0.3, detections_per_img=9
    )
    assert (found.boxes.shape, found.scores.shape, found.labels.shape) == ((0, 4), (0,), (0,))
    assert found.labels.dtype == torch.int64


@pytest.mark.parametrize("kind", ["roi_align", "roi_pool"])
def test_no_regions_through_the_head(kind):
    head = build_detector(small_architecture(pooler=kind), 2, TORCHVISION).region_head
    maps, boxes = [torch.zeros(1, 64, 4, 5)], [torch.zeros(0, 4)]
    assert head.pooling.pool(maps, boxes).shape == (0, 64, 14, 14)
    logits, deltas = head(maps, boxes)
    assert (logits.shape, deltas.shape) == ((0, 3), (0, 2, 4))


@pytest.mark.parametrize("kind", ["roi_align", "roi_pool"])
def test_each_image_is_pooled_from_its_own_map(kind):
    pooling = RegionPooling(kind, 2, 16)
    maps = [torch.full((1, 3, 4, 4), 1.0), torch.full((1, 3, 6, 5), 2.0)]
    boxes = [torch.tensor([[0.0, 0, 40, 40]]), torch.tensor([[0.0, 0, 40, 40], [8, 8, 64, 64]])]
    pooled = pooling.pool(maps, boxes)
    assert pooled[:, 0, 0, 0].tolist() == [1, 2, 2]


def head_and_regions(name: str, stride_in: str, sizes: list[tuple[int, int]]) -> tuple:
    """A head with random BN constants in float64, and maps and boxes (some outside) for it."""
    torch.manual_seed(3)
    network = NetworkConfig.model_validate({"name": name, "width": 0.125, "stride_in": stride_in})
    head = build_detector(small_architecture(network=network), 2, TORCHVISION).region_head.double()
    for module in head.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for constant in (module.weight, module.bias, module.running_mean, module.running_var):
                constant.uniform_(0.5, 1.5)
    first = head.body.layer4[0].conv1
    maps = [torch.randn(1, first.in_channels, *size, dtype=torch.float64) for size in sizes]
    corners = torch.rand(len(maps), 9, 4, dtype=torch.float64) * 100 - 20
    boxes = [torch.cat((c[:, :2], c[:, :2] + c[:, 2:].abs()), dim=1) for c in corners]
    return head, maps, boxes


@pytest.mark.parametrize("sizes", [[(5, 6)], [(5, 6), (5, 6)], [(5, 6), (4, 7)]])
@pytest.mark.parametrize(
    ("name", "stride_in"), [("resnet50", "1x1"), ("resnet50", "3x3"), ("resnet18", "1x1")]
)
def test_head_on_maps_equals_pooling_first_with_all_gradients(name, stride_in, sizes):
    head, maps, boxes = head_and_regions(name, stride_in, sizes)

    def outputs_and_gradients(run):
        leaves = [features.clone().requires_grad_() for features in maps]
        outputs = run(leaves)
        flat = torch.cat([output.flatten() for output in outputs])
        loss = (flat.sin() * torch.arange(1, len(flat) + 1)).sum()
        return outputs, torch.autograd.grad(loss, [*leaves, *head.parameters()])

    def pooled_first(leaves):
        features = head.body(head.pooling.pool(leaves, boxes))
        return head.class_logits(features), head.box_deltas(features).unflatten(1, (-1, 4))

    outputs, gradients = outputs_and_gradients(lambda leaves: head(leaves, boxes))
    expected, expected_gradients = outputs_and_gradients(pooled_first)
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("regions", [0, 1, 9])
@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
def test_folded_head_equals_the_frozen_one(stride_in, regions):
    head, maps, boxes = head_and_regions("resnet50", stride_in, [(5, 6)])
    boxes = [boxes[0][:regions]]
    with torch.no_grad():
        expected = head(maps, boxes)
        head.body = folded(head.body)
        torch.testing.assert_close(head(maps, boxes), expected, rtol=1e-10, atol=1e-10)


def test_head_gives_float32_from_low_precision_and_keeps_double():
    head = RegionHead(nn.Flatten(), 6, 2, RegionPooling("roi_align", 1, 16))
    features, boxes = torch.randn(1, 6, 4, 4), [torch.tensor([[0.0, 0, 40, 40]])]
    assert {output.dtype for output in head.bfloat16()([features.bfloat16()], boxes)} == {torch.float32}
    assert {output.dtype for output in head.double()([features.double()], boxes)} == {torch.float64}
