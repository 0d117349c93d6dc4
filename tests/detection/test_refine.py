"""Box refinement against the doubled set, and against the head called by hand; what it runs again."""

from __future__ import annotations

import copy

import pytest
import torch
from detectors import (
    Calls,
    detect_with,
    detector_with_spread_scores,
    drawn_images,
    features_of,
    member_of,
    small_architecture,
)

from detres.detection.config import DetectionTestConfig
from detres.detection.postprocess import (
    DecodedRegions,
    decode_predictions,
    postprocess_detections,
    select_candidates,
    vote_detections,
)
from detres.detection.refine import best_class_boxes, refine_boxes
from detres.detection.roi_head import region_predictions

CLASSES = 3
ARCHITECTURE = small_architecture(model={"pooler": "roi_pool"})
TEST = DetectionTestConfig(score_thresh=0.05, nms_thresh=0.7, proposals=30, pre_nms_top_n=400, refine=True)


@pytest.fixture(scope="module")
def network(image):
    return detector_with_spread_scores(ARCHITECTURE, CLASSES, image)


@pytest.fixture(scope="module")
def image():
    return drawn_images(96, 128, CLASSES, count=1)[0][0]


def detections_of(scores, boxes, voting):
    candidates = select_candidates(DecodedRegions(scores, boxes), TEST.score_thresh)
    detections = postprocess_detections(candidates, TEST.nms_thresh, TEST.detections_per_img)
    return vote_detections(detections, candidates, 0.5) if voting else detections


@torch.no_grad()
@pytest.mark.parametrize("voting", [True, False])
def test_without_regression_it_is_what_the_doubled_set_gives(network, image, voting):
    """Zero offsets: the second pass finds the first pass's boxes and scores again."""
    still = copy.deepcopy(network)
    for parameter in still.roi_head.box_predictor.bbox_pred.parameters():
        parameter.zero_()
    test = TEST.model_copy(update={"box_voting": voting})
    member = member_of(still, ARCHITECTURE)
    detections = detect_with([member], image, test)
    features = features_of(member, image, test)
    proposals = features.propose(test)
    logits, _ = still.roi_head(features.maps[0], [proposals], [features.size])
    scores, boxes = logits.softmax(dim=1)[:, :-1], proposals[:, None].expand(-1, CLASSES, 4)
    expected = detections_of(torch.cat((scores, scores)), torch.cat((boxes, boxes)), voting)
    assert len(detections.scores) > 5
    torch.testing.assert_close(detections.scores, expected.scores)
    torch.testing.assert_close(detections.boxes, expected.boxes, atol=1e-3, rtol=0)
    assert detections.labels.equal(expected.labels)


@torch.no_grad()
@pytest.mark.parametrize("voting", [True, False])
def test_the_second_pass_pools_the_best_class_box(network, image, voting):
    test = TEST.model_copy(update={"box_voting": voting})
    member = member_of(network, ARCHITECTURE)
    detections = detect_with([member], image, test)
    features = features_of(member, image, test)
    regions, passes = features.propose(test), []
    for _ in range(2):
        logits, deltas = network.roi_head(features.maps[0], [regions], [features.size])
        predictions = region_predictions(logits, deltas, ARCHITECTURE.rcnn.target_stds)
        decoded = decode_predictions(predictions, regions, features.size)
        passes.append((decoded.scores, decoded.boxes))
        regions = torch.stack(
            [
                region_boxes[int(best)]
                for region_boxes, best in zip(decoded.boxes, decoded.scores.argmax(1), strict=True)
            ]
        )
    scores, boxes = (torch.cat(parts) for parts in zip(*passes, strict=True))
    expected = detections_of(scores, boxes, voting)
    assert detections.boxes.equal(expected.boxes)
    assert detections.scores.equal(expected.scores)
    plain = detect_with([member], image, TEST.model_copy(update={"refine": False}))
    assert detections.scores.tolist() != plain.scores.tolist(), "the second pass changed something"


def test_only_the_head_runs_again(network, image):
    with Calls(trunk=network.trunk, rpn=network.rpn, head=network.roi_head.body) as calls:
        detect_with([member_of(network, ARCHITECTURE)], image, TEST)
    assert calls == {"trunk": 1, "rpn": 1, "head": 2}


def test_the_best_class_by_hand():
    predictions = DecodedRegions(torch.tensor([[0.1, 0.6], [0.3, 0.2]]), torch.arange(16.0).view(2, 2, 4))
    assert best_class_boxes(predictions).tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]


def test_no_regions_stay_none():
    nothing = DecodedRegions(torch.zeros(0, 2), torch.zeros(0, 2, 4))

    def predict(boxes):
        assert boxes.shape == (0, 4)
        return nothing

    refined = refine_boxes(nothing, predict)
    assert (refined.scores.shape, refined.boxes.shape) == ((0, 2), (0, 2, 4))
