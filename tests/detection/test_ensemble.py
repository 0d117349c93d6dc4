"""Ensembles: a model with itself, the mean by hand, members that differ in all that may; all switches together."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from detectors import (
    Calls,
    assert_same_detections,
    changed,
    detect_with,
    detector_with_spread_scores,
    drawn_images,
    features_of,
    member_of,
    resized_for,
    small_architecture,
)

from detres.boxes.geometry import scale_boxes
from detres.data.preprocessing import MSRA
from detres.detection.config import DetectionTestConfig
from detres.detection.ensemble import mean_predictions, union_of_boxes
from detres.detection.postprocess import decode_predictions, postprocess_detections, select_candidates
from detres.detection.roi_head import RegionPredictions
from detres.tasks.ensemble import class_order

CLASSES = 3
ARCHITECTURE = small_architecture()
OTHER = small_architecture(
    "resnet50",
    0.125,
    model={"pooler": "roi_pool", "global_context": True, "aligned": True},
    rcnn={"target_stds": (1, 1, 1, 1)},
)
TEST = DetectionTestConfig(score_thresh=0.02, proposals=30, pre_nms_top_n=400)
ALL = {"refine": True, "box_voting": True, "flip": True, "scales": (64, 96, 128)}


@pytest.fixture(scope="module")
def image():
    return drawn_images(120, 160, CLASSES, count=1)[0][0]


@pytest.fixture(scope="module")
def network(image):
    return detector_with_spread_scores(ARCHITECTURE, CLASSES, image)


@pytest.fixture(scope="module")
def members(image, network):
    """ResNet-18 at 96 px and ResNet-50 at 80 px: other depth, pooling, context, preprocessing and target_stds."""
    other = detector_with_spread_scores(OTHER, CLASSES, image, MSRA, seed=1)
    return [member_of(network, ARCHITECTURE), member_of(other, OTHER, 80, 120)]


def test_the_union_leaves_out_what_is_there_already():
    first, second = (
        torch.tensor([[0.0, 0, 4, 4], [1, 1, 3, 3]]),
        torch.tensor([[1.0, 1, 3, 3], [1, 1, 3, 3.5]]),
    )
    assert union_of_boxes([first, second]).tolist() == [[0, 0, 4, 4], [1, 1, 3, 3], [1, 1, 3, 3.5]]
    assert union_of_boxes([first]).equal(first)
    assert union_of_boxes([first[:0], second]).equal(second)
    assert union_of_boxes([first, first[:0], first]).equal(first)


def test_the_mean_by_hand():
    predictions = [
        RegionPredictions(torch.full((2, 3), value), torch.full((2, 3, 4), -value))
        for value in (0.2, 0.4, 0.9)
    ]
    mean = mean_predictions(predictions)
    torch.testing.assert_close(mean.scores, torch.full((2, 3), 0.5))
    torch.testing.assert_close(mean.offsets, torch.full((2, 3, 4), -0.5))


@pytest.mark.parametrize("switches", [{}, {"refine": True, "box_voting": True}, ALL])
def test_of_a_model_with_itself_it_is_the_model(network, image, switches):
    test = TEST.model_copy(update=switches)
    member = member_of(network, ARCHITECTURE)
    alone, twice = detect_with([member], image, test), detect_with([member, member], image, test)
    assert len(alone.scores) > 5
    assert twice.boxes.equal(alone.boxes)
    assert twice.scores.equal(alone.scores)
    assert twice.labels.equal(alone.labels)


def test_of_a_model_with_itself_in_other_words(network, image):
    """The same function with its classes in another order and its offsets divided by other numbers."""
    order, target_stds = [2, 0, 1], (0.2, 0.4, 0.1, 0.5)
    again = copy.deepcopy(network)
    predictor, original = again.roi_head.box_predictor, network.roi_head.box_predictor
    ratio = torch.tensor(ARCHITECTURE.rcnn.target_stds) / torch.tensor(target_stds)
    with torch.no_grad():
        predictor.cls_score.weight[:3] = original.cls_score.weight[order]
        predictor.cls_score.bias[:3] = original.cls_score.bias[order]
        for parameter, source in zip(
            predictor.bbox_pred.parameters(), original.bbox_pred.parameters(), strict=True
        ):
            parts = source.view(3, 4, -1)[order] * ratio[:, None]
            parameter.copy_(parts.view_as(parameter))
    names = ("cat", "dog", "cow")
    places = class_order([names[label] for label in order], names, "b", "a")
    member = member_of(network, ARCHITECTURE)
    other_stds = changed(ARCHITECTURE, rcnn={"target_stds": target_stds})
    reworded = replace(member, network=again, architecture=other_stds, class_order=places)
    alone = detect_with([member], image, TEST)
    for detections in (detect_with([member, reworded], image, TEST), detect_with([reworded], image, TEST)):
        assert_same_detections(detections, alone, score=1e-5, box=0.01, lowest=TEST.score_thresh)


@torch.no_grad()
def test_members_that_differ_are_averaged_on_the_union_of_their_proposals(members, image):
    detections = detect_with(members, image, TEST)
    passes = [features_of(member, image, TEST) for member in members]
    assert [features.size for features in passes] == [(96, 128), (80, 107)]
    to_second = (80 / 96, 107 / 128)
    own, others = (features.propose(TEST) for features in passes)
    regions = torch.cat((own, scale_boxes(others, (1 / to_second[0], 1 / to_second[1]))))
    first, second = passes[0].predict(regions), passes[1].predict(scale_boxes(regions, to_second))
    mean = RegionPredictions((first.scores + second.scores) / 2, (first.offsets + second.offsets) / 2)
    candidates = select_candidates(decode_predictions(mean, regions, (96, 128)), TEST.score_thresh)
    expected = postprocess_detections(candidates, TEST.nms_thresh, TEST.detections_per_img)
    assert len(detections.scores) > 5
    torch.testing.assert_close(detections.scores, expected.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(detections.boxes, expected.boxes * 1.25, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("count", range(1, 5))
def test_switches_combine(members, image, count):
    """Every choice of `count` switches, with both members: boxes in the picture, the trunk once a scale."""
    for names in itertools.combinations(ALL, count):
        test = TEST.model_copy(update={name: ALL[name] for name in names})
        with Calls(first=members[0].network.trunk, second=members[1].network.trunk) as calls:
            detections = detect_with(members, image, test)
        assert calls == ({"first": 3, "second": 4} if "scales" in names else {"first": 1, "second": 1})
        assert 0 < len(detections.scores) <= TEST.detections_per_img
        assert (detections.scores.diff() <= 0).all()
        assert detections.boxes.min() >= -1e-3
        assert (detections.boxes <= torch.tensor([160.0, 120, 160, 120]) + 1e-3).all()


@pytest.mark.parametrize("switches", [{}, ALL])
def test_nothing_proposed_nothing_detected(members, image, switches):
    test = TEST.model_copy(update=switches)
    none = [
        replace(member, architecture=changed(member.architecture, rpn={"min_size": 1000}))
        for member in members
    ]
    assert len(detect_with(none, image, test).scores) == 0
    sure = test.model_copy(update={"score_thresh": 0.9999})
    assert detect_with(members, image, sure).boxes.shape == (0, 4)
    assert len(resized_for(members, image, test)) == 2
