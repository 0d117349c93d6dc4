"""How well anchors fit the objects, by hand and against all anchors of a large map."""

from __future__ import annotations

import pytest
import torch
from detectors import annotations_of

from detres.boxes.anchors import cell_anchors, grid_anchors
from detres.boxes.geometry import box_iou
from detres.detection.coverage import best_anchor_overlaps, coverage_line

CELL = cell_anchors((32,), (1,))


def overlaps(boxes: list[list[float]], side: int = 320, short_side: int = 320) -> list[float]:
    scene = annotations_of(["image.png"], [(side, side)], [boxes])
    return best_anchor_overlaps(scene, short_side, 1000, CELL, 16).tolist()


def test_overlaps_by_hand():
    assert overlaps([[144, 144, 176, 176]]) == pytest.approx([1])  # center (160, 160) is an anchor's
    assert overlaps([[136, 144, 184, 176]]) == pytest.approx([32 / 48])  # wider than the anchor
    assert overlaps([[152, 152, 168, 168]]) == pytest.approx([256 / 1024])
    assert overlaps([[152, 144, 184, 176]]) == pytest.approx(
        [24 / 40]
    )  # half a stride from the next two centers
    assert overlaps([]) == []


def test_overlaps_are_taken_after_resizing():
    assert overlaps([[288, 288, 352, 352]], side=640) == pytest.approx([1])


def test_overlaps_equal_those_with_all_anchors_of_the_map():
    generator = torch.Generator().manual_seed(0)
    corners = 40 + torch.rand(50, 2, generator=generator) * 150
    boxes = torch.cat((corners, corners + 8 + torch.rand(50, 2, generator=generator) * 80), dim=1)
    cell = cell_anchors((16, 32, 64), (0.5, 1, 2))
    scene = annotations_of(["image.png"], [(320, 320)], [boxes.tolist()])
    expected = box_iou(boxes, grid_anchors(cell, 20, 20, 16)).max(dim=1).values
    torch.testing.assert_close(
        best_anchor_overlaps(scene, 320, 1000, cell, 16), expected, rtol=1e-4, atol=1e-5
    )


def test_the_line_says_what_share_is_reached():
    line = coverage_line(torch.tensor([0.8, 0.6, 0.55, 0.1]), 0.7)
    assert "IoU 0.7 with 25% of the objects and 0.5 with 75%" in line
    assert "rpn.anchor_sizes" in line
    assert "rpn.anchor_sizes" not in coverage_line(torch.tensor([0.9] * 10), 0.7)
    assert coverage_line(torch.zeros(0), 0.7) == "anchors: no objects to match"
