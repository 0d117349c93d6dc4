"""A picture's way through a test: neighbors in the batch, original coordinates, empty cases, whole splits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectors import (
    assert_same_detections,
    detector_with_spread_scores,
    drawn_images,
    member_of,
    small_architecture,
)

from detres.data.shapes import shapes_annotations
from detres.detection.detect import TestConfig, as_table, detect, detect_split, fuse_for_inference
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.rpn import ProposalOptions

CLASSES = 3
ARCHITECTURE = small_architecture()
TEST = TestConfig(score_thresh=0.02, detections_per_img=50, nms_thresh=0.5, proposals=30, pre_nms_top_n=400)
OPTIONS = ARCHITECTURE.proposal_options(TEST)
DIVISORS = ARCHITECTURE.target_stds
ONE = (1.0, 1.0)


@pytest.fixture(scope="module")
def network() -> FasterRCNN:
    images, _, _ = drawn_images(96, 128, CLASSES, count=1)
    return detector_with_spread_scores(ARCHITECTURE, CLASSES, images[0])


def found_in(network, images, scales=None, options: ProposalOptions = OPTIONS, test: TestConfig = TEST):
    return detect(network, images, scales or [ONE] * len(images), options, DIVISORS, test)


@pytest.mark.parametrize("pooling", ["roi_align", "roi_pool"])
def test_a_image_is_found_the_same_alone_and_beside_a_larger_one(pooling):
    small, large = drawn_images(96, 128, CLASSES)[0], drawn_images(163, 229, CLASSES)[0]
    network = detector_with_spread_scores(small_architecture(pooler=pooling), CLASSES, small[0])
    images = [small[0], large[0], small[1]]
    together = found_in(network, images)
    for image, beside in zip(images, together, strict=True):
        (alone,) = found_in(network, [image])
        assert len(alone.scores) >= 5
        assert_same_detections(beside, alone, score=1e-5, box=0.1, lowest=TEST.score_thresh)


def test_the_copy_for_inference_finds_the_same_and_leaves_the_network_alone(network):
    images, _, _ = drawn_images(96, 128, CLASSES)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for ours, expected in zip(
        found_in(fuse_for_inference(network), images), found_in(network, images), strict=True
    ):
        assert_same_detections(ours, expected, score=1e-4, box=0.05, lowest=TEST.score_thresh)
    assert_state(network, before)


def test_bfloat16_rounds_maps_and_scores_but_not_the_geometry(network):
    images, _, _ = drawn_images(96, 128, CLASSES, count=1)
    low = fuse_for_inference(network, "bfloat16")
    with torch.no_grad():
        (output,), (expected,) = low(images), network(images)
    assert output.features.dtype == torch.bfloat16
    assert torch.equal(output.anchors, expected.anchors)
    assert {output.objectness.dtype, output.deltas.dtype} == {torch.float32}
    spread = expected.objectness.std()
    assert (output.objectness - expected.objectness).abs().mean() < 0.05 * spread
    assert len(output.objectness.unique()) == len(
        expected.objectness.unique()
    )  # no ties: they are kept by place
    (found,) = found_in(low, images)
    assert {found.boxes.dtype, found.scores.dtype} == {torch.float32}


def assert_state(network: FasterRCNN, expected: dict[str, torch.Tensor]) -> None:
    state = network.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@torch.no_grad()
def test_the_maps_of_a_batch_are_those_of_each_image_alone(network):
    images = [drawn_images(96, 128, CLASSES)[0][0], drawn_images(70, 90, CLASSES)[0][0]]
    for image, output in zip(images, network(images), strict=True):
        (alone,) = network([image])
        assert output.size == tuple(image.shape[-2:])
        torch.testing.assert_close(output.features, alone.features)
        torch.testing.assert_close(output.anchors, alone.anchors)


@torch.no_grad()
def test_the_network_computes_the_same_in_training_mode(network):
    images, _, _ = drawn_images(96, 128, CLASSES, count=1)
    (tested,) = network(images)
    (trained,) = network.train()(images)
    network.eval()
    assert tested.objectness.equal(trained.objectness)


def test_boxes_come_back_in_pixels_of_the_original_image(network):
    """Twice the scale halves the boxes; the proposals' smallest side, in original pixels, is off for that."""
    images, _, _ = drawn_images(96, 128, CLASSES, count=1)
    options = replace(OPTIONS, min_size=0)
    (plain,) = found_in(network, images, options=options)
    (scaled,) = found_in(network, images, [(2.0, 0.5)], options)
    torch.testing.assert_close(scaled.boxes, plain.boxes * torch.tensor([2.0, 0.5, 2.0, 0.5]))
    assert scaled.scores.equal(plain.scores)
    assert plain.boxes[:, 2].max() <= 128
    assert plain.boxes[:, 3].max() <= 96


def test_no_proposals_no_detections(network):
    images, _, _ = drawn_images(96, 128, CLASSES)
    nothing = found_in(network, images, options=replace(OPTIONS, min_size=1000))
    assert [found.boxes.shape for found in nothing] == [(0, 4), (0, 4)]
    assert len(as_table(nothing[0], 3)) == 0
    mixed = found_in(network, images, [ONE, (100.0, 100.0)])
    assert len(mixed[0].scores) > 0
    assert len(mixed[1].scores) == 0, "no proposal of the second is large enough in its own pixels"


def test_a_image_smaller_than_any_anchor(network):
    (found,) = found_in(network, [torch.randint(0, 256, (3, 17, 19), dtype=torch.uint8)])
    assert (found.boxes >= 0).all()
    assert (found.boxes <= torch.tensor([19.0, 17, 19, 17])).all()


def test_thresholds_do_what_they_say(network):
    images, _, _ = drawn_images(96, 128, CLASSES, count=1)
    (base,) = found_in(network, images)
    assert base.scores.min() > TEST.score_thresh
    assert (base.scores.diff() <= 0).all(), "best first"
    (few,) = found_in(network, images, test=TEST.model_copy(update={"detections_per_img": 3}))
    assert few.scores.equal(base.scores[:3])
    middle = float(base.scores.median())
    (high,) = found_in(network, images, test=TEST.model_copy(update={"score_thresh": middle}))
    assert 0 < len(high.scores) < len(base.scores)
    assert high.scores.min() > middle
    assert set(base.labels.tolist()) <= set(range(CLASSES))


def test_a_split_is_found_as_its_images_are(network):
    scenes = shapes_annotations("val", 3, seed=2)
    members = [member_of(network, ARCHITECTURE, TEST)]
    table, seconds = detect_split(members, scenes, test=TEST, quiet=True)
    assert seconds > 0
    assert set(table.images.tolist()) == {0, 1, 2}
    for index in range(3):
        height, width = scenes.sizes[index]
        rows = table.images == index
        assert table.boxes[rows, 2].max() <= width + 1e-3
        assert table.boxes[rows, 3].max() <= height + 1e-3
        assert table.boxes[rows].max() > 160, "in pixels of the stored picture, not of the resized one"
    again, _ = detect_split(members, scenes.select([2]), test=TEST, quiet=True)
    np.testing.assert_array_equal(again.boxes, table.boxes[table.images == 2])
