"""Matched and sampled anchors and regions against cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from detres.boxes.anchors import cell_anchors, grid_anchors
from detres.detection.config import RCNNConfig, RPNConfig
from detres.detection.targets import sample_anchors, sample_regions

NO_BOXES = torch.zeros(0, 4)
NO_LABELS = torch.zeros(0, dtype=torch.int64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_anchors_by_hand():
    objects = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 80]])
    anchors = torch.tensor(
        [
            [0.0, 0, 10, 8],  # IoU 0.8 with the first: positive
            [0, 0, 10, 5],  # 0.5: between the thresholds, left out
            [0, 0, 2, 10],  # 0.2: negative
            [50, 50, 60, 60],  # 1/3 with the second, its best: positive
            [-5, 0, 10, 10],  # 2/3, crosses the border: left out
            [90, 90, 100, 100],  # 0: negative
        ]
    )
    config = RPNConfig(batch_size_per_image=8)
    targets = sample_anchors(anchors, objects, (100, 100), config, seeded())
    assert targets.positives == 2
    assert set(targets.indices[:2].tolist()) == {0, 3}
    assert set(targets.indices[2:].tolist()) == {2, 5}
    expected = {
        0: [0, 1 / 8, 0, math.log(10 / 8)],
        3: [0, 1, 0, math.log(3)],
    }  # (x, y, w, h), anchors 10x8 and 10x10
    for index, deltas in zip(targets.indices.tolist(), targets.deltas, strict=False):
        assert deltas.tolist() == pytest.approx(expected[index], abs=1e-6)


def test_anchors_across_the_border_take_part_where_told_to():
    anchors = torch.tensor([[-5.0, 0, 10, 10], [-9, 0, 3, 10]])
    objects = torch.tensor([[0.0, 0, 10, 10]])
    across = sample_anchors(
        anchors, objects, (100, 100), RPNConfig(batch_size_per_image=4, cross_boundary=True), seeded()
    )
    assert (across.indices.tolist(), across.positives) == ([0, 1], 1)  # the object's best, though 2/3 < 0.7
    inside = sample_anchors(anchors, objects, (100, 100), RPNConfig(batch_size_per_image=4), seeded())
    assert (inside.indices.tolist(), inside.positives, inside.deltas.shape) == ([], 0, (0, 4))


def test_no_anchor_inside_a_small_image():
    anchors = grid_anchors(cell_anchors((64, 128), (0.5, 1, 2)), 3, 3, 16)
    targets = sample_anchors(anchors, torch.tensor([[4.0, 4, 30, 30]]), (40, 40), RPNConfig(), seeded())
    assert (len(targets.indices), targets.positives, targets.deltas.shape) == (0, 0, (0, 4))


def test_anchors_of_a_image_without_objects_are_negative():
    anchors = grid_anchors(cell_anchors((16,), (1,)), 4, 4, 16)
    targets = sample_anchors(anchors, NO_BOXES, (64, 64), RPNConfig(batch_size_per_image=5), seeded())
    assert (len(targets.indices), targets.positives, targets.deltas.shape) == (5, 0, (0, 4))


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(8, 0.5, (4, 4)), (8, 0.25, (2, 6)), (30, 0.5, (10, 6))]
)
def test_anchor_counts(count, share, expected):
    anchors = torch.tensor([[0.0, 0, 10, 10]] * 10 + [[50, 50, 60, 60]] * 6)
    config = RPNConfig(batch_size_per_image=count, positive_fraction=share)
    targets = sample_anchors(anchors, anchors[:1], (100, 100), config, seeded())
    assert (targets.positives, len(targets.indices) - targets.positives) == expected
    assert len(targets.deltas) == targets.positives
    assert (targets.indices[: targets.positives] < 10).all()
    assert (targets.indices[targets.positives :] >= 10).all()


def test_regions_by_hand():
    objects = torch.tensor([[0.0, 0, 10, 10], [40, 40, 60, 60]])
    labels = torch.tensor([2, 0])
    proposals = torch.tensor(
        [
            [0.0, 0, 10, 5],  # IoU 0.5 with the first: positive
            [44, 40, 60, 60],  # 0.8 with the second: positive
            [0, 0, 10, 2],  # 0.2: background
            [80, 80, 90, 90],  # 0: background, or left out
        ]
    )
    targets = sample_regions(
        proposals, objects, labels, 3, RCNNConfig(batch_size_per_image=16, positive_fraction=0.5), seeded()
    )
    rows = {
        tuple(box): label for box, label in zip(targets.boxes.tolist(), targets.labels.tolist(), strict=True)
    }
    assert rows == {
        (0, 0, 10, 5): 2,
        (44, 40, 60, 60): 0,
        (0, 0, 10, 10): 2,  # the objects themselves take part
        (40, 40, 60, 60): 0,
        (0, 0, 10, 2): 3,  # background is the last
        (80, 80, 90, 90): 3,
    }
    assert targets.labels[:4].max() < 3, "positives come first"
    deltas = {
        tuple(box): row.tolist() for box, row in zip(targets.boxes.tolist(), targets.deltas, strict=False)
    }
    assert len(deltas) == 4
    assert deltas[(0, 0, 10, 5)] == pytest.approx([0, 0.5 / 0.1, 0, math.log(2) / 0.2], abs=1e-5)
    assert deltas[(44, 40, 60, 60)] == pytest.approx([-2 / 16 / 0.1, 0, math.log(20 / 16) / 0.2, 0], abs=1e-5)
    assert deltas[(0, 0, 10, 10)] == pytest.approx([0, 0, 0, 0], abs=1e-6)


def test_regions_under_the_lowest_overlap_are_left_out():
    proposals = torch.tensor([[0.0, 0, 10, 2], [80, 80, 90, 90]])
    objects, labels = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([1])
    targets = sample_regions(
        proposals, objects, labels, 2, RCNNConfig(batch_size_per_image=16, bg_iou_thresh_lo=0.1), seeded()
    )
    assert targets.labels.tolist() == [1, 2]
    assert targets.boxes.tolist() == [[0, 0, 10, 10], [0, 0, 10, 2]]
    empty = sample_regions(
        proposals, NO_BOXES, NO_LABELS, 2, RCNNConfig(batch_size_per_image=16, bg_iou_thresh_lo=0.1), seeded()
    )
    assert empty.labels.tolist() == [2, 2], "a picture without objects has background only"


def test_regions_of_nothing():
    targets = sample_regions(NO_BOXES, NO_BOXES, NO_LABELS, 2, RCNNConfig(), seeded())
    assert (targets.boxes.shape, targets.labels.shape, targets.deltas.shape) == ((0, 4), (0,), (0, 4))


def test_the_draw_follows_the_generator_and_nothing_else():
    proposals = torch.rand(200, 4, generator=seeded(3)) * 50
    proposals[:, 2:] += proposals[:, :2] + 1
    objects, labels = proposals[:2] + 1, torch.tensor([0, 1])
    config = RCNNConfig(batch_size_per_image=32)
    torch.manual_seed(1)
    first = sample_regions(proposals, objects, labels, 2, config, seeded(7))
    torch.manual_seed(2)
    again = sample_regions(proposals, objects, labels, 2, config, seeded(7))
    other = sample_regions(proposals, objects, labels, 2, config, seeded(8))
    assert first.boxes.equal(again.boxes)
    assert not first.boxes.equal(other.boxes)
