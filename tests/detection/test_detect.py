"""One image's way through a test: original coordinates, empty cases, whole splits; images of any size in one call."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectors import (
    assert_same_detections,
    changed,
    detect_as_is,
    detector_with_spread_scores,
    drawn_images,
    member_of,
    small_architecture,
)

from detres.data.shapes import shapes_annotations
from detres.detection.config import DetectionTestConfig
from detres.detection.detect import as_table, detect_split, fuse_for_inference
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.roi_head import region_predictions

CLASSES = 3
ARCHITECTURE = small_architecture()
TEST = DetectionTestConfig(
    score_thresh=0.02, detections_per_img=50, nms_thresh=0.5, proposals=30, pre_nms_top_n=400
)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return drawn_images(96, 128, CLASSES, count=1)[0][0]


@pytest.fixture(scope="module")
def network(image) -> FasterRCNN:
    return detector_with_spread_scores(ARCHITECTURE, CLASSES, image)


@torch.no_grad()
@pytest.mark.parametrize("pooler", ["roi_align", "roi_pool"])
def test_images_of_different_sizes_go_through_together_as_each_alone(pooler):
    """Maps, anchors, RPN outputs, and the head's predictions for regions of all images."""
    small, large = drawn_images(96, 128, CLASSES)[0], drawn_images(163, 229, CLASSES)[0]
    network = detector_with_spread_scores(small_architecture(model={"pooler": pooler}), CLASSES, small[0])
    images = [small[0], large[0], small[1]]
    outputs = network(images)
    boxes = [output.anchors[count : 20 + count] for count, output in enumerate(outputs)]
    sizes = [output.size for output in outputs]
    logits, deltas = network.roi_head([output.features for output in outputs], boxes, sizes)
    stds = ARCHITECTURE.rcnn.target_stds
    for place, (image, output) in enumerate(zip(images, outputs, strict=True)):
        (alone,) = network([image])
        assert output.size == alone.size == tuple(image.shape[-2:])
        assert output.anchors.equal(alone.anchors)
        for name in ("features", "objectness", "deltas"):
            torch.testing.assert_close(getattr(output, name), getattr(alone, name), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network.maps(images)[place], alone.features, rtol=1e-4, atol=1e-4)
        rows = slice(20 * place, 20 * place + 20)
        together = region_predictions(logits[rows], deltas[rows], stds)
        alone_logits, alone_deltas = network.roi_head([alone.features], [boxes[place]], [alone.size])
        expected = region_predictions(alone_logits, alone_deltas, stds)
        torch.testing.assert_close(together.scores, expected.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(together.offsets, expected.offsets, rtol=1e-4, atol=1e-4)


def test_the_copy_for_inference_detects_the_same_and_leaves_the_network_alone(network):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for image in drawn_images(96, 128, CLASSES)[0]:
        ours = detect_as_is(fuse_for_inference(network), ARCHITECTURE, image, TEST)
        expected = detect_as_is(network, ARCHITECTURE, image, TEST)
        assert len(expected.scores) >= 5
        assert_same_detections(ours, expected, score=1e-4, box=0.05, lowest=TEST.score_thresh)
    assert_state(network, before)


def test_bfloat16_rounds_maps_and_scores_but_not_the_geometry(network, image):
    low = fuse_for_inference(network, "bfloat16")
    with torch.no_grad():
        (output,), (expected,) = low([image]), network([image])
    assert output.features.dtype == torch.bfloat16
    assert torch.equal(output.anchors, expected.anchors)
    assert {output.objectness.dtype, output.deltas.dtype} == {torch.float32}
    spread = expected.objectness.std()
    assert (output.objectness - expected.objectness).abs().mean() < 0.05 * spread
    assert len(output.objectness.unique()) == len(
        expected.objectness.unique()
    )  # no ties: they are kept by place
    detections = detect_as_is(low, ARCHITECTURE, image, TEST)
    assert {detections.boxes.dtype, detections.scores.dtype} == {torch.float32}


def assert_state(network: FasterRCNN, expected: dict[str, torch.Tensor]) -> None:
    state = network.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@torch.no_grad()
def test_the_network_computes_the_same_in_training_mode(network, image):
    (tested,) = network([image])
    (trained,) = network.train()([image])
    network.eval()
    assert tested.objectness.equal(trained.objectness)


def test_boxes_come_back_in_pixels_of_the_original_image(network, image):
    """Twice the scale halves the boxes; the proposals' smallest side, in original pixels, is off for that."""
    any_size = changed(ARCHITECTURE, rpn={"min_size": 0})
    plain = detect_as_is(network, any_size, image, TEST)
    scaled = detect_as_is(network, any_size, image, TEST, scale=(2.0, 0.5))
    torch.testing.assert_close(scaled.boxes, plain.boxes * torch.tensor([2.0, 0.5, 2.0, 0.5]))
    assert scaled.scores.equal(plain.scores)
    assert plain.boxes[:, 2].max() <= 128
    assert plain.boxes[:, 3].max() <= 96


def test_no_proposals_no_detections(network, image):
    nothing = detect_as_is(network, changed(ARCHITECTURE, rpn={"min_size": 1000}), image, TEST)
    assert nothing.boxes.shape == (0, 4)
    assert len(as_table(nothing, 3)) == 0
    enlarged = detect_as_is(network, ARCHITECTURE, image, TEST, scale=(100.0, 100.0))
    assert len(enlarged.scores) == 0, "no proposal is large enough in original pixels"
    assert len(detect_as_is(network, ARCHITECTURE, image, TEST).scores) > 0


def test_an_image_smaller_than_any_anchor(network):
    tiny = torch.randint(0, 256, (3, 17, 19), dtype=torch.uint8)
    detections = detect_as_is(network, ARCHITECTURE, tiny, TEST)
    assert (detections.boxes >= 0).all()
    assert (detections.boxes <= torch.tensor([19.0, 17, 19, 17])).all()


def test_thresholds_do_what_they_say(network, image):
    def detected(**options):
        return detect_as_is(network, ARCHITECTURE, image, TEST.model_copy(update=options))

    base = detected()
    assert base.scores.min() > TEST.score_thresh
    assert (base.scores.diff() <= 0).all(), "best first"
    assert detected(detections_per_img=3).scores.equal(base.scores[:3])
    middle = float(base.scores.median())
    high = detected(score_thresh=middle)
    assert 0 < len(high.scores) < len(base.scores)
    assert high.scores.min() > middle
    assert set(base.labels.tolist()) <= set(range(CLASSES))


def test_a_split_is_detected_as_its_images_are(network):
    scenes = shapes_annotations("val", 3, seed=2)
    members = [member_of(network, ARCHITECTURE)]
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
