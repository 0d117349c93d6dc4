"""Pooling and head: 1x1 convolutions before pooling against pooling first, scores and offsets by hand, no regions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectors import small_architecture
from torch import nn

from detres.data.preprocessing import TORCHVISION
from detres.detection.build import build_detector
from detres.detection.roi_head import RoIHead, RoIPooler, region_predictions
from detres.networks.norm import FrozenBatchNorm2d, fold_batch_norm


def test_scores_and_offsets_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.0]])  # two classes and background
    deltas = torch.tensor([[[0.0, 0, 0, 0], [5, -1, 2, 3]]])
    predictions = region_predictions(logits, deltas, (0.1, 0.1, 0.2, 0.2))
    torch.testing.assert_close(predictions.scores, torch.tensor([[0.24473, 0.66524]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(predictions.offsets, torch.tensor([[[0.0, 0, 0, 0], [0.5, -0.1, 0.4, 0.6]]]))


@pytest.mark.parametrize("kind", ["roi_align", "roi_pool"])
def test_no_regions_through_the_head(kind):
    head = build_detector(small_architecture(model={"pooler": kind}), 2, TORCHVISION).roi_head
    maps, boxes = [torch.zeros(1, 64, 4, 5)], [torch.zeros(0, 4)]
    assert head.pooler.pool(maps, boxes).shape == (0, 64, 14, 14)
    logits, deltas = head(maps, boxes, [(64, 80)])
    assert (logits.shape, deltas.shape) == ((0, 3), (0, 2, 4))


@pytest.mark.parametrize("kind", ["roi_align", "roi_pool"])
def test_each_image_is_pooled_from_its_own_map(kind):
    pooler = RoIPooler(kind, 2, 16)
    maps = [torch.full((1, 3, 4, 4), 1.0), torch.full((1, 3, 6, 5), 2.0)]
    boxes = [torch.tensor([[0.0, 0, 40, 40]]), torch.tensor([[0.0, 0, 40, 40], [8, 8, 64, 64]])]
    pooled = pooler.pool(maps, boxes)
    assert pooled[:, 0, 0, 0].tolist() == [1, 2, 2]


def head_and_regions(name: str, stride_in: str, sizes: list[tuple[int, int]]) -> tuple:
    """A head with random BN constants in float64, and maps and boxes (some outside) for it."""
    torch.manual_seed(3)
    architecture = small_architecture(
        model={"network": {"name": name, "width": 0.125, "stride_in": stride_in}, "pooler": "roi_align"}
    )
    head = build_detector(architecture, 2, TORCHVISION).roi_head.double()
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
        features = head.body(head.pooler.pool(leaves, boxes))
        predictor = head.box_predictor
        return predictor.cls_score(features), predictor.bbox_pred(features).unflatten(1, (-1, 4))

    inputs = [(16 * height, 16 * width) for height, width in sizes]
    outputs, gradients = outputs_and_gradients(lambda leaves: head(leaves, boxes, inputs))
    expected, expected_gradients = outputs_and_gradients(pooled_first)
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("regions", [0, 1, 9])
@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
def test_folded_head_equals_the_frozen_one(stride_in, regions):
    head, maps, boxes = head_and_regions("resnet50", stride_in, [(5, 6)])
    boxes = [boxes[0][:regions]]
    with torch.no_grad():
        expected = head(maps, boxes, [(80, 96)])
        head.body = fold_batch_norm(head.body)
        torch.testing.assert_close(head(maps, boxes, [(80, 96)]), expected, rtol=1e-10, atol=1e-10)


def test_head_gives_float32_from_low_precision_and_keeps_double():
    body: Any = nn.Flatten()
    body.out_channels = 6
    head = RoIHead(body, 2, RoIPooler("roi_align", 1, 16))
    features, boxes = torch.randn(1, 6, 4, 4), [torch.tensor([[0.0, 0, 40, 40]])]
    assert {output.dtype for output in head.bfloat16()([features.bfloat16()], boxes, [(64, 64)])} == {
        torch.float32
    }
    assert {output.dtype for output in head.double()([features.double()], boxes, [(64, 64)])} == {
        torch.float64
    }
