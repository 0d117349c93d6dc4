"""Global context: the whole image as a region, how often it is computed, gradients, weights with and without it.

The training step with it equals a plain one in test_plain_detector.
"""

from __future__ import annotations

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
from tiny_models import read_detector

from detres.data.preprocessing import TORCHVISION
from detres.detection.build import build_detector
from detres.detection.config import DetectionTestConfig
from detres.detection.context import check_context, concat_global_context
from detres.errors import WeightsError
from detres.weights.checkpoint import Metadata, save_weights

CLASSES = 2
WITH, WITHOUT = (small_architecture(model={"global_context": context}) for context in (True, False))
TEST = DetectionTestConfig(score_thresh=0.02, proposals=20, pre_nms_top_n=300)


@pytest.fixture(scope="module")
def image():
    return drawn_images(96, 128, CLASSES, count=1)[0][0]


@pytest.fixture(scope="module")
def network(image):
    return detector_with_spread_scores(WITH, CLASSES, image)


def test_features_stand_side_by_side():
    features, context = torch.tensor([[1.0], [2], [3]]), torch.tensor([[7.0], [8], [9]])
    assert concat_global_context(features, context, [2, 0, 1]).tolist() == [[1, 7], [2, 7], [3, 9]]
    assert concat_global_context(features[:0], context, [0, 0, 0]).shape == (0, 2)


@torch.no_grad()
@pytest.mark.parametrize("scales", [None, (64, 96, 128)])
@pytest.mark.parametrize("pooler", ["roi_align", "roi_pool"])
def test_the_whole_image_as_only_region_is_its_own_context(image, pooler, scales):
    architecture = small_architecture(model={"global_context": True, "pooler": pooler})
    network = detector_with_spread_scores(architecture, CLASSES, image)
    test = TEST.model_copy(update={"scales": scales})
    features = features_of(member_of(network, architecture), image, test)
    seen: list[torch.Tensor] = []
    handle = network.roi_head.box_predictor.cls_score.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    whole = torch.tensor([[0.0, 0, 128, 96]])
    predictions = features.predict(whole)
    logits, _ = network.roi_head(features.maps[0], [whole], [features.size])
    handle.remove()
    for inputs in seen:
        assert inputs.shape == (1, network.roi_head.box_predictor.cls_score.in_features)
        first, second = inputs.chunk(2, dim=1)
        assert first.equal(second)
        assert first.abs().max() > 0
    if scales is None:
        torch.testing.assert_close(predictions.scores, logits.softmax(dim=1)[:, :-1])


def test_it_is_computed_once_an_image(network, image):
    test = TEST.model_copy(update={"refine": True})
    with Calls(trunk=network.trunk, head=network.roi_head.body) as calls:
        detect_with([member_of(network, WITH)], image, test)
    assert calls == {"trunk": 1, "head": 3}, "whole image, proposals, refined boxes"


def test_gradients_reach_the_map_and_the_head_through_it_alone(network):
    """The region's own channels have weight 0: what is left comes from the whole image, also from far of the region."""
    head = build_detector(WITH, CLASSES, TORCHVISION).roi_head
    cls_score = head.box_predictor.cls_score
    features = torch.rand(1, 64, 6, 8).requires_grad_()
    with torch.no_grad():
        cls_score.weight[:, : head.body.out_channels] = 0
    logits, _ = head([features], [torch.tensor([[0.0, 0, 16, 16]])], [(96, 128)])
    logits[:, 0].sum().backward()
    assert features.grad is not None
    assert (features.grad.abs().sum(dim=1) > 0).float().mean() > 0.9
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.body.parameters())
    assert cls_score.weight.grad is not None


def test_detections_depend_on_it(network, image):
    member = member_of(network, WITH)
    detections = detect_with([member], image, TEST)
    assert len(detections.scores) > 3
    with torch.no_grad():
        width = network.roi_head.body.out_channels
        weight = network.roi_head.box_predictor.cls_score.weight
        kept = weight[:, width:].clone()
        weight[:, width:] = 0
        without = detect_with([member], image, TEST)
        weight[:, width:] = kept
    assert without.scores.tolist() != detections.scores.tolist()


def saved(path, tensors_of, described_by):
    metadata = Metadata(
        task="detection",
        architecture=described_by.model_dump(mode="json"),
        class_names=("cat", "dog"),
        preprocessing=TORCHVISION,
        sizes={"short_side": 96, "long_side": 160},
    )
    save_weights(path, build_detector(tensors_of, CLASSES, TORCHVISION).state_dict(), metadata)
    return path


def test_weights_say_whether_they_have_it(tmp_path):
    network, architecture, _ = read_detector(saved(tmp_path / "with.safetensors", WITH, WITH))
    assert architecture.model.global_context
    assert network.roi_head.global_context


@pytest.mark.parametrize(
    ("given", "model", "message"),
    [
        (
            WITH,
            WITHOUT,
            r"x\.safetensors: weights with global context .*model has none.*model.global_context: true",
        ),
        (
            WITHOUT,
            WITH,
            r"x\.safetensors: weights without global context .*has it.*model.global_context: false",
        ),
    ],
)
def test_weights_of_the_other_kind_are_refused_in_one_line(tmp_path, given, model, message):
    with pytest.raises(WeightsError, match=message) as caught:
        read_detector(saved(tmp_path / "x.safetensors", given, model))
    assert len(str(caught.value).splitlines()) == 1


def test_weights_without_class_layer_are_not_judged():
    check_context({}, {}, "x")
