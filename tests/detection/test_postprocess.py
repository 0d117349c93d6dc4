"""From predictions to detections: decoding by hand, suppression against a slow loop, voting, empty cases."""

from __future__ import annotations

import pytest
import torch

from detres.boxes.geometry import box_iou
from detres.detection import postprocess
from detres.detection.postprocess import (
    DecodedRegions,
    Detections,
    decode_predictions,
    postprocess_detections,
    select_candidates,
    vote_detections,
)
from detres.detection.roi_head import region_predictions


def suppressed(
    scores, boxes, score_thresh: float, nms_thresh: float, detections_per_img: int
) -> tuple[Detections, Detections]:
    """The detections of regions, and the candidates that they are chosen from."""
    candidates = select_candidates(DecodedRegions(scores, boxes), score_thresh)
    return postprocess_detections(candidates, nms_thresh, detections_per_img), candidates


def test_scores_and_boxes_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.0]])  # two classes and background
    deltas = torch.tensor(
        [[[0.0, 0, 0, 0], [5, 0, 0, 0]]]
    )  # half a width (5 / 10) to the right for the second
    proposals = torch.tensor([[10.0, 10, 30, 20]])
    predictions = region_predictions(logits, deltas, (0.1, 0.1, 0.2, 0.2))
    decoded = decode_predictions(predictions, proposals, (18, 35))
    torch.testing.assert_close(decoded.scores, torch.tensor([[0.24473, 0.66524]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(decoded.boxes, torch.tensor([[[10.0, 10, 30, 18], [20, 10, 35, 18]]]))


def slow_suppression(scores, boxes, score_thresh, nms_thresh, detections_per_img, min_size):
    candidates = [
        (scores[r, k].item(), r, k)
        for r in range(scores.shape[0])
        for k in range(scores.shape[1])
        if scores[r, k] > score_thresh and (boxes[r, k, 2:] - boxes[r, k, :2]).min() >= min_size
    ]
    kept = []
    for score, r, k in sorted(candidates, key=lambda candidate: -candidate[0]):
        alike = [other for other in kept if other[2] == k]
        if all(box_iou(boxes[r, k][None], boxes[o, k][None]).item() <= nms_thresh for _, o, _ in alike):
            kept.append((score, r, k))
    return kept[:detections_per_img]


@pytest.mark.parametrize(("regions", "detections_per_img"), [(40, 1000), (40, 7), (1, 5)])
def test_suppression_equals_the_obvious_loop(regions, detections_per_img, monkeypatch):
    monkeypatch.setattr(postprocess, "MIN_SIZE", 2.0)
    generator = torch.Generator().manual_seed(regions)
    scores = torch.rand(regions, 3, generator=generator)
    corners = torch.rand(regions, 3, 2, generator=generator) * 30
    boxes = torch.cat((corners, corners + torch.rand(regions, 3, 2, generator=generator) * 30), dim=-1)
    detections, _ = suppressed(scores, boxes, 0.2, 0.3, detections_per_img)
    expected = slow_suppression(scores, boxes, 0.2, 0.3, detections_per_img, 2.0)
    assert detections.labels.tolist() == [k for _, _, k in expected]
    assert detections.scores.tolist() == [score for score, _, _ in expected]
    assert detections.boxes.tolist() == [boxes[r, k].tolist() for _, r, k in expected]


@pytest.mark.parametrize("regions", [0, 3])
def test_no_candidates(regions):
    suppression = suppressed(torch.zeros(regions, 2), torch.zeros(regions, 2, 4), 0.0, 0.3, 9)
    for detections in (*suppression, vote_detections(*suppression, 0.5)):
        shapes = detections.boxes.shape, detections.scores.shape, detections.labels.shape
        assert shapes == ((0, 4), (0,), (0,))
        assert detections.labels.dtype == torch.int64


def test_voting_moves_boxes_and_nothing_else():
    """By hand: IoU 0.8 with the best, voters' weights 0.6 and 0.3; the other class does not vote."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9]], [[0, 0, 10, 8], [50, 50, 60, 60]]])
    scores = torch.tensor([[0.6, 0.01], [0.3, 0.5]])
    detections, candidates = suppressed(scores, boxes, 0.001, 0.3, 9)
    assert detections.labels.tolist() == [0, 1, 1]
    voted = vote_detections(detections, candidates, 0.5)
    assert (voted.scores.tolist(), voted.labels.tolist()) == (detections.scores.tolist(), [0, 1, 1])
    expected = torch.tensor([[0, 0, 10, (0.6 * 10 + 0.3 * 8) / 0.9], [50, 50, 60, 60], [0, 0, 10, 9]])
    torch.testing.assert_close(voted.boxes, expected)
