"""Box refinement against the doubled set, and against the head called by hand; what it runs again."""

from __future__ import annotations

import copy

import pytest
import torch
from detectors import (
    Calls,
    detector_with_spread_scores,
    drawn_images,
    found_by,
    member_of,
    small_architecture,
    view_of,
)

from detres.detection.detect import TestConfig
from detres.detection.refine import best_class_boxes, refine_boxes
from detres.detection.roi_head import ScoredRegions, class_scores_and_boxes, suppress

CLASSES = 3
ARCHITECTURE = small_architecture(pooler="roi_pool")
TEST = TestConfig(score_thresh=0.05, nms_thresh=0.7, proposals=30, pre_nms_top_n=400, refine=True)


@pytest.fixture(scope="module")
def network():
    return detector_with_spread_scores(ARCHITECTURE, CLASSES, drawn_images(96, 128, CLASSES, count=1)[0][0])


@pytest.fixture(scope="module")
def image():
    return drawn_images(96, 128, CLASSES, count=1)[0][0]


def suppressed(scores, boxes, vote):
    return suppress(
        scores,
        boxes,
        score_thresh=TEST.score_thresh,
        nms=TEST.nms_thresh,
        detections_per_img=TEST.detections_per_img,
        voting_iou_thresh=0.5 if vote else None,
    )


@torch.no_grad()
@pytest.mark.parametrize("vote", [True, False])
def test_without_regression_it_is_what_the_doubled_set_gives(network, image, vote):
    """Zero offsets: the second pass finds the first pass's boxes and scores again."""
    still = copy.deepcopy(network)
    still.region_head.box_deltas.weight.zero_()
    still.region_head.box_deltas.bias.zero_()
    test = TEST.model_copy(update={"box_voting": vote})
    member = member_of(still, ARCHITECTURE, test)
    (found,) = found_by([member], [image], test)
    view = view_of(member, image, test)
    (proposals,) = view.proposals()
    logits, _ = still.region_head(view.maps[0], [proposals])
    scores, boxes = logits.softmax(dim=1)[:, :-1], proposals[:, None].expand(-1, CLASSES, 4)
    expected = suppressed(torch.cat((scores, scores)), torch.cat((boxes, boxes)), vote)
    assert len(found.scores) > 5
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=0)
    assert found.labels.equal(expected.labels)


@torch.no_grad()
@pytest.mark.parametrize("vote", [True, False])
def test_the_second_pass_pools_the_best_class_box(network, image, vote):
    test = TEST.model_copy(update={"box_voting": vote})
    member = member_of(network, ARCHITECTURE, test)
    (found,) = found_by([member], [image], test)
    view = view_of(member, image, test)
    regions, passes = view.proposals()[0], []
    for _ in range(2):
        outputs = network.region_head(view.maps[0], [regions])
        scores, boxes = class_scores_and_boxes(*outputs, regions, view.sizes[0], ARCHITECTURE.target_stds)
        passes.append((scores, boxes))
        regions = torch.stack(
            [of_region[int(best)] for of_region, best in zip(boxes, scores.argmax(1), strict=True)]
        )
    scores, boxes = (torch.cat(parts) for parts in zip(*passes, strict=True))
    expected = suppressed(scores, boxes, vote)
    assert found.boxes.equal(expected.boxes)
    assert found.scores.equal(expected.scores)
    (plain,) = found_by([member], [image], TEST.model_copy(update={"refine": False}))
    assert found.scores.tolist() != plain.scores.tolist(), "the second pass changed something"


def test_only_the_head_runs_again(network, image):
    with Calls(trunk=network.trunk, rpn=network.rpn, head=network.region_head.body) as calls:
        found_by([member_of(network, ARCHITECTURE, TEST)], [image], TEST)
    assert calls == {"trunk": 1, "rpn": 1, "head": 2}


def test_the_best_class_by_hand():
    regions = ScoredRegions(torch.tensor([[0.1, 0.6], [0.3, 0.2]]), torch.arange(16.0).view(2, 2, 4))
    assert best_class_boxes(regions).tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]


def test_no_regions_stay_none():
    nothing = ScoredRegions(torch.zeros(0, 2), torch.zeros(0, 2, 4))
    (joined,) = refine_boxes([nothing], lambda boxes: [nothing] if boxes[0].shape == (0, 4) else [])
    assert (joined.scores.shape, joined.boxes.shape) == ((0, 2), (0, 2, 4))
