"""Boxes against hand-worked cases, torchvision, and the laws they state."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.anchor_utils import AnchorGenerator

from detres.boxes.anchors import cell_anchors, grid_anchors
from detres.boxes.coding import MAX_LOG_RATIO, decode_boxes, encode_boxes
from detres.boxes.geometry import (
    box_area,
    box_iou,
    boxes_at_least,
    boxes_inside,
    clip_boxes,
    flip_boxes,
    scale_boxes,
)
from detres.boxes.matching import IGNORED, NEGATIVE, POSITIVE, match_boxes
from detres.boxes.nms import nms, nms_per_class
from detres.boxes.sampling import sample_matches

coordinates = st.floats(0, 500, width=32)
sides = st.floats(1, 400, width=32)
box_lists = st.lists(st.tuples(coordinates, coordinates, sides, sides), max_size=12)


def as_boxes(rows: list[tuple[float, float, float, float]]) -> torch.Tensor:
    boxes = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1)


def random_boxes(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 200
    return torch.cat((corner, corner + 1 + torch.rand(count, 2, generator=generator) * 100), dim=1)


def test_iou_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 5]])
    others = torch.tensor([[5.0, 0, 15, 10], [20, 20, 30, 30], [0, 0, 10, 10], [5, 5, 5, 5]])
    expected = torch.tensor([[50 / 150, 0, 1, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(box_iou(boxes, others), expected)
    assert box_iou(boxes[:0], others).shape == (0, 4)
    assert box_iou(boxes, others[:0]).shape == (2, 0)


@given(box_lists, box_lists)
def test_iou_equals_torchvision(first, second):
    boxes, others = as_boxes(first), as_boxes(second)
    torch.testing.assert_close(box_iou(boxes, others), torchvision.ops.box_iou(boxes, others))
    torch.testing.assert_close(box_area(boxes), torchvision.ops.box_area(boxes))


@given(box_lists)
def test_decode_inverts_encode(rows):
    boxes = as_boxes(rows)
    references = boxes.flip(0) * 0.7 + 3
    target_stds = (0.1, 0.1, 0.2, 0.2)
    deltas = encode_boxes(boxes, references, target_stds)
    bounded = (deltas[:, 2:] * 0.2 < MAX_LOG_RATIO).all(dim=1)
    torch.testing.assert_close(
        decode_boxes(deltas, references, target_stds)[bounded], boxes[bounded], atol=1e-6, rtol=1e-9
    )
    per_class = deltas[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(
        decode_boxes(per_class, references, target_stds)[:, 2], decode_boxes(deltas, references, target_stds)
    )


def test_encode_by_hand():
    reference = torch.tensor([[0.0, 0, 10, 20]])
    box = torch.tensor([[5.0, 0, 25, 20]])  # center moves by 10 = one width; twice as wide, as high
    torch.testing.assert_close(encode_boxes(box, reference), torch.tensor([[1.0, 0, math.log(2), 0]]))


def test_decode_bounds_growth():
    grown = decode_boxes(torch.tensor([[0.0, 0, 100, 100]]), torch.tensor([[0.0, 0, 16, 16]]))
    assert (grown[0, 2] - grown[0, 0]).item() == pytest.approx(1000)


@given(box_lists)
def test_flip_twice_is_the_identity(rows):
    boxes = as_boxes(rows)
    torch.testing.assert_close(flip_boxes(flip_boxes(boxes, 640), 640), boxes)
    torch.testing.assert_close(box_area(flip_boxes(boxes, 640)), box_area(boxes))


def test_clip_scale_inside():
    boxes = torch.tensor([[-5.0, 2, 30, 8], [1, 1, 4, 5]])
    assert clip_boxes(boxes, 6, 20).tolist() == [[0, 2, 20, 6], [1, 1, 4, 5]]
    assert scale_boxes(boxes[1:], (2.0, 3.0)).tolist() == [[3, 2, 12, 10]]
    assert boxes_inside(boxes, 6, 20).tolist() == [False, True]
    assert boxes_at_least(boxes, 4, 3).tolist() == [True, True]
    assert boxes_at_least(boxes, 4.5, 3).tolist() == [True, False]


def test_cell_anchors_have_the_areas_and_ratios_asked_for():
    anchors = cell_anchors((32, 128), (0.5, 1, 2))
    widths, heights = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    torch.testing.assert_close((widths * heights).sqrt(), torch.tensor([32.0, 128] * 3))
    torch.testing.assert_close(heights / widths, torch.tensor([0.5, 0.5, 1, 1, 2, 2]))
    torch.testing.assert_close(anchors[:, :2], -anchors[:, 2:])


def test_anchors_equal_torchvisions_but_for_its_rounding():
    cell = cell_anchors((64, 128, 256), (0.5, 1, 2))
    peer = AnchorGenerator(((64, 128, 256),), ((0.5, 1.0, 2.0),))
    torch.testing.assert_close(cell.round(), peer.cell_anchors[0])
    expected = peer.grid_anchors([[3, 5]], [[torch.tensor(16), torch.tensor(16)]])[0]
    torch.testing.assert_close(grid_anchors(cell.round(), 3, 5, 16), expected)


def test_match_by_hand():
    iou = torch.tensor([[0.75, 0.1], [0.5, 0.2], [0.1, 0.25], [0.05, 0.25], [0.35, 0.0]])
    plain, objects = match_boxes(iou, fg_iou_thresh=0.7, bg_iou_thresh=0.3)
    assert plain.tolist() == [POSITIVE, IGNORED, NEGATIVE, NEGATIVE, IGNORED]
    assert objects.tolist() == [0, 0, 1, 1, 0]
    best, _ = match_boxes(iou, fg_iou_thresh=0.7, bg_iou_thresh=0.3, allow_low_quality_matches=True)
    assert best.tolist() == [POSITIVE, IGNORED, POSITIVE, POSITIVE, IGNORED]  # both best of the second object
    low, _ = match_boxes(iou, fg_iou_thresh=0.5, bg_iou_thresh=0.5, bg_iou_thresh_lo=0.1)
    assert low.tolist() == [POSITIVE, POSITIVE, NEGATIVE, NEGATIVE, NEGATIVE]
    lower, _ = match_boxes(iou, fg_iou_thresh=0.5, bg_iou_thresh=0.5, bg_iou_thresh_lo=0.3)
    assert lower.tolist() == [POSITIVE, POSITIVE, IGNORED, IGNORED, NEGATIVE]


def test_match_object_that_overlaps_nothing_makes_nothing_positive():
    matches, _ = match_boxes(
        torch.zeros(3, 1), fg_iou_thresh=0.7, bg_iou_thresh=0.3, allow_low_quality_matches=True
    )
    assert matches.tolist() == [NEGATIVE] * 3


@pytest.mark.parametrize("shape", [(0, 0), (3, 0), (0, 2)])
def test_match_of_nothing(shape):
    matches, objects = match_boxes(
        torch.zeros(shape),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        bg_iou_thresh_lo=0.1,
        allow_low_quality_matches=True,
    )
    assert matches.tolist() == [NEGATIVE] * shape[0]
    assert objects.tolist() == [0] * shape[0]


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [(50, 200, (8, 24)), (3, 200, (3, 29)), (50, 4, (8, 4)), (0, 9, (0, 9)), (0, 0, (0, 0))],
)
def test_sample_counts(positives, negatives, expected):
    matches = torch.tensor([POSITIVE] * positives + [NEGATIVE] * negatives + [IGNORED] * 5)
    chosen = sample_matches(matches, 32, 0.25, torch.Generator().manual_seed(3))
    assert (len(chosen[0]), len(chosen[1])) == expected
    assert (matches[chosen[0]] == POSITIVE).all()
    assert (matches[chosen[1]] == NEGATIVE).all()
    assert len(set(torch.cat(chosen).tolist())) == sum(expected)


def slow_nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i)):
        if all(box_iou(boxes[index : index + 1], boxes[k : k + 1]).item() <= threshold for k in kept):
            kept.append(index)
    return kept


@pytest.mark.parametrize("count", [0, 1, 60])
def test_nms_equals_the_obvious_loop(count):
    boxes, scores = random_boxes(count), torch.rand(count, generator=torch.Generator().manual_seed(1))
    scores[: count // 3] = 0.5  # ties
    assert nms(boxes, scores, 0.4).tolist() == slow_nms(boxes, scores, 0.4)


@pytest.mark.parametrize("clusters", [1, 20, 2000])
@pytest.mark.parametrize("limit", [None, 1, 130, 2000])
def test_nms_of_many_boxes_equals_torchvision_cut_at_the_limit(clusters, limit):
    generator = torch.Generator().manual_seed(clusters)
    centers = torch.rand(clusters, 2, generator=generator) * 800
    center = centers[torch.randint(clusters, (3000,), generator=generator)]
    center = center + 15 * torch.randn(3000, 2, generator=generator)
    half = (torch.rand(3000, 2, generator=generator) + 0.5) * 40
    boxes = torch.cat((center - half, center + half), dim=1)
    boxes[::50, 2:] = boxes[::50, :2]  # of no area
    scores = torch.rand(3000, generator=generator).round(decimals=2)  # ties
    expected = torchvision.ops.nms(boxes, scores, 0.7)[:limit]
    assert torch.equal(nms(boxes, scores, 0.7, limit), expected)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
def test_nms_of_many_boxes_at_an_overlap_that_is_the_threshold(threshold):
    left = torch.arange(1100.0) * 20 + 100
    far = torch.stack((left, torch.zeros(1100), left + 10, torch.full((1100,), 10.0)), dim=1)
    boxes = torch.cat((torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10 * threshold]]), far))
    scores = torch.linspace(1, 0, len(boxes))
    assert torch.equal(nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


def test_nms_follows_a_chain_of_boxes_each_dropped_by_the_one_before_only():
    left = torch.arange(1200.0)
    boxes = torch.stack((left, torch.zeros(1200), left + 3, torch.ones(1200)), dim=1)  # neighbors: IoU 0.5
    assert nms(boxes, -left, 0.4).tolist() == list(range(0, 1200, 2))


def test_nms_per_class_equals_one_class_at_a_time():
    boxes, labels = random_boxes(80) - 50, torch.arange(80) % 3
    scores = torch.rand(80, generator=torch.Generator().manual_seed(2))
    apart = [torch.nonzero(labels == label).flatten() for label in range(3)]
    expected = torch.cat([rows[nms(boxes[rows], scores[rows], 0.3)] for rows in apart])
    expected = expected[scores[expected].argsort(descending=True)]
    assert nms_per_class(boxes, scores, labels, 0.3).tolist() == expected.tolist()
    assert nms_per_class(boxes[:0], scores[:0], labels[:0], 0.3).tolist() == []
