"""Testing with the mirror image: the mirrored picture's result is the mirrored result; the average by hand."""

from __future__ import annotations

import pytest
import torch
from detectors import (
    assert_same_detections,
    detector_with_spread_scores,
    drawn_images,
    found_by,
    member_of,
    small_architecture,
    view_of,
)

from detres.boxes.coding import decode_boxes, flip_deltas
from detres.boxes.geometry import flip_boxes
from detres.detection.detect import TestConfig
from detres.detection.roi_head import Detections

CLASSES = 3
TEST = TestConfig(score_thresh=0.02, proposals=30, pre_nms_top_n=400, flip=True)


@pytest.fixture(scope="module")
def image():
    return drawn_images(96, 128, CLASSES, count=1)[0][0]


def mirrored(found: Detections, width: int) -> Detections:
    return Detections(flip_boxes(found.boxes, width), found.scores, found.labels)


def test_deltas_of_mirror_images_decode_to_mirror_images():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(50, 2, generator=generator) * 100
    boxes = torch.cat((corners, corners + torch.rand(50, 2, generator=generator) * 40 + 1), dim=1)
    deltas = torch.randn(50, 3, 4, generator=generator)
    target_stds = (0.1, 0.2, 0.3, 0.4)
    expected = flip_boxes(decode_boxes(deltas, boxes, target_stds), 130)
    found = decode_boxes(flip_deltas(deltas), flip_boxes(boxes, 130), target_stds)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)
    assert flip_deltas(flip_deltas(deltas)).equal(deltas)


@pytest.mark.parametrize("switches", [{}, {"refine": True, "box_voting": True, "scales": (64, 96, 128)}])
@pytest.mark.parametrize("context", [False, True])
def test_of_the_mirrored_image_it_is_the_mirrored_result(image, context, switches):
    """By RoIAlign: rounded bins give neighboring regions the same cells, so the same score: a tie in suppression."""
    architecture = small_architecture(pooler="roi_align", global_context=context)
    member = member_of(detector_with_spread_scores(architecture, CLASSES, image), architecture, TEST)
    test = TEST.model_copy(update=switches)
    (straight,) = found_by([member], [image], test)
    (of_mirrored,) = found_by([member], [image.flip(-1)], test)
    assert len(straight.scores) > 5
    assert_same_detections(
        of_mirrored, mirrored(straight, 128), score=1e-4, box=0.05, lowest=TEST.score_thresh
    )
    plain = test.model_copy(update={"flip": False})
    (without,) = found_by([member], [image], plain)
    assert without.scores.tolist() != straight.scores.tolist()


@torch.no_grad()
def test_scores_and_offsets_are_the_means_of_both_images(image):
    architecture = small_architecture()
    network = detector_with_spread_scores(architecture, CLASSES, image)
    view = view_of(member_of(network, architecture, TEST), image, TEST)
    boxes = torch.tensor([[3.0, 5, 40, 50], [60, 20, 120, 90]])
    (outputs,) = view.score([boxes])
    (of_image,), (of_mirror,) = network([image]), network([image.flip(-1)])
    logits, deltas = network.region_head([of_image.features], [boxes])
    mirror_logits, mirror_deltas = network.region_head([of_mirror.features], [flip_boxes(boxes, 128)])
    scores = (logits.softmax(1)[:, :-1] + mirror_logits.softmax(1)[:, :-1]) / 2
    target_stds = torch.tensor(architecture.target_stds)
    turned = mirror_deltas * torch.tensor([-1.0, 1, 1, 1])
    torch.testing.assert_close(outputs.scores, scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.offsets, (deltas + turned) / 2 * target_stds, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_proposals_of_both_images_are_joined(image):
    architecture = small_architecture()
    member = member_of(detector_with_spread_scores(architecture, CLASSES, image), architecture, TEST)
    plain = TEST.model_copy(update={"flip": False})
    (both,) = view_of(member, image, TEST).proposals()
    (straight,) = view_of(member, image, plain).proposals()
    (mirror,) = view_of(member, image.flip(-1), plain).proposals()
    assert len(both) == len(straight) + len(mirror)
    torch.testing.assert_close(both[: len(straight)], straight, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(both[len(straight) :], flip_boxes(mirror, 128), rtol=1e-4, atol=1e-3)
