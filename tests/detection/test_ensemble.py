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
    detector_with_spread_scores,
    drawn_images,
    found_by,
    member_of,
    sized_for,
    small_architecture,
    view_of,
)

from detres.boxes.geometry import scale_boxes
from detres.data.preprocessing import MSRA
from detres.detection.detect import TestConfig
from detres.detection.ensemble import class_order, mean_outputs, union_of_boxes
from detres.detection.roi_head import RegionOutputs, regressed, suppress
from detres.errors import WeightsError

CLASSES = 3
ARCHITECTURE = small_architecture()
OTHER = small_architecture(
    "resnet50", 0.125, pooler="roi_pool", global_context=True, target_stds=(1, 1, 1, 1), aligned=True
)
TEST = TestConfig(score_thresh=0.02, proposals=30, pre_nms_top_n=400)
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
    return [member_of(network, ARCHITECTURE, TEST), member_of(other, OTHER, TEST, 80, 120)]


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
    outputs = [
        RegionOutputs(torch.full((2, 3), value), torch.full((2, 3, 4), -value)) for value in (0.2, 0.4, 0.9)
    ]
    mean = mean_outputs(outputs)
    torch.testing.assert_close(mean.scores, torch.full((2, 3), 0.5))
    torch.testing.assert_close(mean.offsets, torch.full((2, 3, 4), -0.5))


@pytest.mark.parametrize("switches", [{}, {"refine": True, "box_voting": True}, ALL])
def test_of_a_model_with_itself_it_is_the_model(network, image, switches):
    test = TEST.model_copy(update=switches)
    member = member_of(network, ARCHITECTURE, test)
    (alone,), (twice,) = found_by([member], [image], test), found_by([member, member], [image], test)
    assert len(alone.scores) > 5
    assert twice.boxes.equal(alone.boxes)
    assert twice.scores.equal(alone.scores)
    assert twice.labels.equal(alone.labels)


def test_of_a_model_with_itself_in_other_words(network, image):
    """The same function with its classes in another order and its offsets divided by other numbers."""
    order, target_stds = [2, 0, 1], (0.2, 0.4, 0.1, 0.5)
    again = copy.deepcopy(network)
    head, ratio = again.region_head, torch.tensor(ARCHITECTURE.target_stds) / torch.tensor(target_stds)
    with torch.no_grad():
        head.class_logits.weight[:3] = network.region_head.class_logits.weight[order]
        head.class_logits.bias[:3] = network.region_head.class_logits.bias[order]
        for parameter, source in zip(
            head.box_deltas.parameters(), network.region_head.box_deltas.parameters(), strict=True
        ):
            parts = source.view(3, 4, -1)[order] * ratio[:, None]
            parameter.copy_(parts.view_as(parameter))
    names = ("cat", "dog", "cow")
    place = class_order(names, [names[label] for label in order], "a", "b")
    member = member_of(network, ARCHITECTURE, TEST)
    reworded = replace(member, network=again, target_stds=target_stds, class_order=place)
    (alone,), (both,) = found_by([member], [image], TEST), found_by([member, reworded], [image], TEST)
    (only,) = found_by([reworded], [image], TEST)
    for found in (both, only):
        assert_same_detections(found, alone, score=1e-5, box=0.01, lowest=TEST.score_thresh)


@torch.no_grad()
def test_members_that_differ_are_averaged_on_the_union_of_their_proposals(members, image):
    (found,) = found_by(members, [image], TEST)
    views = [view_of(member, image, TEST) for member in members]
    assert [view.sizes[0] for view in views] == [(96, 128), (80, 107)]
    to_second = (80 / 96, 107 / 128)
    own, others = (view.proposals()[0] for view in views)
    regions = torch.cat((own, scale_boxes(others, (1 / to_second[0], 1 / to_second[1]))))
    outputs = [views[0].score([regions])[0], views[1].score([scale_boxes(regions, to_second)])[0]]
    mean = RegionOutputs(
        (outputs[0].scores + outputs[1].scores) / 2, (outputs[0].offsets + outputs[1].offsets) / 2
    )
    scored = regressed(mean, regions, (96, 128))
    expected = suppress(
        scored.scores,
        scored.boxes,
        score_thresh=TEST.score_thresh,
        nms=TEST.nms_thresh,
        detections_per_img=TEST.detections_per_img,
    )
    assert len(found.scores) > 5
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.boxes, expected.boxes * 1.25, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("count", range(1, 5))
def test_switches_combine(members, image, count):
    """Every choice of `count` switches, with both members: boxes in the picture, the trunk once a scale."""
    for names in itertools.combinations(ALL, count):
        test = TEST.model_copy(update={name: ALL[name] for name in names})
        with Calls(first=members[0].network.trunk, second=members[1].network.trunk) as calls:
            (found,) = found_by(members, [image], test)
        assert calls == ({"first": 3, "second": 4} if "scales" in names else {"first": 1, "second": 1})
        assert 0 < len(found.scores) <= TEST.detections_per_img
        assert (found.scores.diff() <= 0).all()
        assert found.boxes.min() >= -1e-3
        assert (found.boxes <= torch.tensor([160.0, 120, 160, 120]) + 1e-3).all()


def test_a_batch_gives_what_its_images_give_alone(members, image):
    test = TEST.model_copy(update=ALL)
    images = [image, drawn_images(90, 160, CLASSES, count=1)[0][0]]
    for together, picture in zip(found_by(members, images, test), images, strict=True):
        (alone,) = found_by(members, [picture], test)
        assert_same_detections(together, alone, score=1e-4, box=0.1, lowest=TEST.score_thresh)


@pytest.mark.parametrize("switches", [{}, ALL])
def test_nothing_proposed_nothing_found(members, image, switches):
    test = TEST.model_copy(update=switches)
    none = [replace(member, proposals=replace(member.proposals, min_size=1000)) for member in members]
    assert [len(found.scores) for found in found_by(none, [image], test)] == [0]
    sure = test.model_copy(update={"score_thresh": 0.9999})
    assert [found.boxes.shape for found in found_by(members, [image], sure)] == [(0, 4)]
    assert len(sized_for(members, image, test)) == 2


def test_classes_by_name():
    assert class_order(("a", "b", "c"), ("c", "a", "b"), "x", "y") == (1, 2, 0)
    with pytest.raises(
        WeightsError, match=r"y: its 2 classes are not the 2 of x: it lacks b and adds d; an ensemble"
    ):
        class_order(("a", "b"), ("a", "d"), "x", "y")
    with pytest.raises(WeightsError, match="it lacks b;"):
        class_order(("a", "b"), ("a",), "x", "y")
