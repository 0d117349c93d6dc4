"""The image pyramid and the mirror image in a test.

Pyramid: scales by hand and by a slow loop, features against two passes, one scale as the plain test. Mirror image: its
result is the mirrored result; the average by hand.
"""

from __future__ import annotations

import math

import pytest
import torch
from detectors import (
    Calls,
    assert_same_detections,
    detect_with,
    detector_with_spread_scores,
    drawn_images,
    features_of,
    member_of,
    small_architecture,
)

from detres.boxes.coding import decode_boxes, flip_deltas
from detres.boxes.geometry import box_area, flip_boxes, scale_boxes
from detres.config import load_config
from detres.detection import tta
from detres.detection.config import DetectionConfig, DetectionTestConfig
from detres.detection.postprocess import Detections
from detres.detection.tta import adjacent_scales, pyramid_features, pyramid_sizes
from detres.errors import ConfigError

CLASSES = 3
PAPER = (200, 400, 600, 800, 1000)
SCALES = (64, 96, 128)
ARCHITECTURE = small_architecture()
TEST = DetectionTestConfig(score_thresh=0.02, proposals=30, pre_nms_top_n=400)
PYRAMID = TEST.model_copy(update={"scales": SCALES})
FLIP = TEST.model_copy(update={"flip": True})


def factors_of(scales, own):
    return [(scale / own) ** 2 for scale in scales]


@pytest.fixture(scope="module")
def image():
    return drawn_images(96, 128, CLASSES, count=1)[0][0]


@pytest.fixture(scope="module")
def network(image):
    return detector_with_spread_scores(ARCHITECTURE, CLASSES, image)


@pytest.mark.parametrize(
    ("side", "pair"),
    [
        # log-distances to 224^2 at 200, 400, 600, 800, 1000 of a square of so many pixels at 600:
        (224, (600, 800)),  # 2.20, 0.81, 0.00, 0.58, 1.02: pairs 3.01, 0.81, 0.58, 1.60
        (448, (200, 400)),  # 0.81, 0.58, 1.39, 1.96, 2.41: pairs 1.39, 1.96, 3.35, 4.37
        (100, (800, 1000)),  # 3.81, 2.42, 1.61, 1.04, 0.59: pairs 6.23, 4.04, 2.65, 1.63
        (280, (400, 600)),  # 1.75, 0.36, 0.45, 1.02, 1.47: pairs 2.11, 0.81, 1.47, 2.49
        (900, (200, 400)),
        (0, (800, 1000)),  # of no area: as one pixel
    ],
)
def test_scales_of_a_region_by_hand(side, pair):
    (chosen,) = adjacent_scales(torch.tensor([float(side**2)]), factors_of(PAPER, 600)).tolist()
    assert PAPER[chosen : chosen + 2] == pair


def test_halfway_is_the_smaller_pair():
    """224^2 at the middle of 200, 400, 800: both neighbors are as far."""
    assert adjacent_scales(torch.tensor([224.0**2]), factors_of((200, 400, 800), 400)).tolist() == [0]


def test_scales_by_the_obvious_loop():
    areas = torch.rand(200, generator=torch.Generator().manual_seed(0)) * 500**2
    factors = factors_of(PAPER, 600)
    expected = []
    for area in areas.tolist():
        distances = [abs(math.log(max(area, 1) * factor) - math.log(224**2)) for factor in factors]
        costs = [distances[k] + distances[k + 1] for k in range(4)]
        expected.append(costs.index(min(costs)))
    assert adjacent_scales(areas, factors).tolist() == expected
    assert set(expected) == {0, 1, 2, 3}
    assert adjacent_scales(areas[:0], factors).shape == (0,)


@pytest.mark.parametrize(
    ("height", "width", "scales", "expected"),
    [
        (480, 640, None, {600: (600, 800)}),
        (500, 1500, None, {600: (333, 1000)}),  # the plain test's limit
        (500, 1500, (600,), {600: (333, 1000)}),  # one scale, the network's own: the plain test
        (
            480,
            640,
            PAPER,
            {200: (200, 267), 400: (400, 533), 600: (600, 800), 800: (800, 1067), 1000: (1000, 1333)},
        ),
        (500, 1500, (400, 800), {400: (400, 1200), 600: (600, 1800), 800: (667, 2000)}),
    ],
)
def test_sizes_by_hand(height, width, scales, expected):
    assert pyramid_sizes(height, width, scales, 600, 1000) == expected


def test_a_limit_over_the_pyramids_stays():
    assert pyramid_sizes(1000, 3000, (400, 600), 600, 2400) == {400: (400, 1200), 600: (600, 1800)}
    assert pyramid_sizes(1000, 5000, (400, 600), 600, 2400)[600] == (480, 2400)


@pytest.mark.parametrize("flip", [False, True])
def test_one_scale_is_the_plain_test_to_the_last_bit(network, flip):
    plain = TEST.model_copy(update={"flip": flip})
    one = plain.model_copy(update={"scales": (96,)})
    member = member_of(network, ARCHITECTURE)
    for image in drawn_images(120, 150, CLASSES)[0]:
        detections, expected = detect_with([member], image, one), detect_with([member], image, plain)
        assert len(detections.scores) > 3
        assert detections.boxes.equal(expected.boxes)
        assert detections.scores.equal(expected.scores)
        assert detections.labels.equal(expected.labels)


@torch.no_grad()
@pytest.mark.parametrize("pooler", ["roi_align", "roi_pool"])
def test_features_are_the_maximum_over_both_scales(image, pooler, monkeypatch):
    """Against each region pooled alone from each of its two maps; best at 64 pixels, not 224: the picture is small."""
    monkeypatch.setattr(tta, "BEST_AREA", 64.0**2)
    network = detector_with_spread_scores(small_architecture(model={"pooler": pooler}), CLASSES, image)
    features = features_of(member_of(network, ARCHITECTURE), image, PYRAMID)
    sizes = [maps[0].shape[2:] for maps in features.maps]
    assert sizes == [(4, 6), (6, 8), (8, 11)], "64 x 85, 96 x 128, 128 x 171 pixels, stride 16"
    corners = torch.tensor([[3.0, 5], [40, 20], [10, 8], [0, 0], [60, 30]])
    regions = torch.cat(
        (corners, corners + torch.tensor([[12.0, 9], [60, 60], [90, 70], [128, 96], [0, 0]])), dim=1
    )
    pixels = [(64 / 96, 85 / 128), (1.0, 1.0), (128 / 96, 171 / 128)]
    chosen = adjacent_scales(box_area(regions), [math.prod(factor) for factor in pixels])
    assert set(chosen.tolist()) == {0, 1}
    merged = features.region_features([regions])
    for row, pair in enumerate(chosen.tolist()):
        both = [
            network.roi_head.region_features(
                features.maps[k], [scale_boxes(regions[row : row + 1], pixels[k])]
            )
            for k in (pair, pair + 1)
        ]
        torch.testing.assert_close(merged[row : row + 1], torch.maximum(*both), rtol=1e-4, atol=1e-5)


def test_regions_of_both_views_keep_their_places():
    """Maps of one value for each scale and view: a feature says which maps it came from."""
    maps = [[torch.full((1, 1, 1, 1), 10.0 * scale + view) for view in range(2)] for scale in range(3)]
    factors = [(scale, scale) for scale in (0.5, 1.0, 2.0)]

    def region_features(maps_at_scale, boxes):
        rows = [torch.full((len(b), 1), m.item()) for m, b in zip(maps_at_scale, boxes, strict=True)]
        return torch.cat(rows)

    large, small = [0.0, 0, 400, 400], [0.0, 0, 50, 50]
    boxes = [torch.tensor([small, large]), torch.tensor([large, small, large])]
    merged = pyramid_features(region_features, maps, factors, boxes)
    assert merged.flatten().tolist() == [20, 10, 11, 21, 11]
    nothing = [torch.zeros(0, 4)] * 2
    assert pyramid_features(region_features, maps, factors, nothing).shape == (0, 1)


@pytest.mark.parametrize(
    ("scales", "trunk"),
    [(None, 1), ((96,), 1), (SCALES, 3), ((64, 128), 3), ((64,), 2)],  # 96 is for the proposals in any case
)
@pytest.mark.parametrize("switches", [{}, {"refine": True, "box_voting": True, "flip": True}])
def test_the_trunk_runs_once_a_scale_whatever_the_switches(network, image, scales, trunk, switches):
    test = TEST.model_copy(update={"scales": scales, **switches})
    with Calls(trunk=network.trunk, rpn=network.rpn) as calls:
        detect_with([member_of(network, ARCHITECTURE)], image, test)
    assert calls == {"trunk": trunk, "rpn": 1}


@pytest.mark.parametrize("scales", ["[]", "[600, 400]", "[400, 400]", "[0, 400]", "[400.5]", "400"])
def test_lists_that_are_no_scales_are_refused_in_one_line(scales):
    with pytest.raises(ConfigError, match=r"test\.scales") as caught:
        load_config(DetectionConfig, None, [f"test.scales={scales}"])
    assert len(str(caught.value).splitlines()) == 1


def test_scales_of_a_configuration():
    config = load_config(DetectionConfig, None, ["test.scales=[200, 400]", "test.refine=true"])
    assert config.test.scales == (200, 400)
    assert config.test.refine
    assert DetectionConfig().test.scales is None


def mirrored(detections: Detections, width: int) -> Detections:
    return Detections(flip_boxes(detections.boxes, width), detections.scores, detections.labels)


def test_deltas_of_mirror_images_decode_to_mirror_images():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(50, 2, generator=generator) * 100
    boxes = torch.cat((corners, corners + torch.rand(50, 2, generator=generator) * 40 + 1), dim=1)
    deltas = torch.randn(50, 3, 4, generator=generator)
    target_stds = (0.1, 0.2, 0.3, 0.4)
    expected = flip_boxes(decode_boxes(deltas, boxes, target_stds), 130)
    decoded = decode_boxes(flip_deltas(deltas), flip_boxes(boxes, 130), target_stds)
    torch.testing.assert_close(decoded, expected, atol=1e-3, rtol=1e-5)
    assert flip_deltas(flip_deltas(deltas)).equal(deltas)


@pytest.mark.parametrize("switches", [{}, {"refine": True, "box_voting": True, "scales": SCALES}])
@pytest.mark.parametrize("context", [False, True])
def test_of_the_mirror_image_it_is_the_mirrored_result(image, context, switches):
    """By RoIAlign: rounded bins give neighboring regions the same cells, so the same score: a tie in suppression."""
    architecture = small_architecture(model={"pooler": "roi_align", "global_context": context})
    member = member_of(detector_with_spread_scores(architecture, CLASSES, image), architecture)
    test = FLIP.model_copy(update=switches)
    straight = detect_with([member], image, test)
    of_mirror_image = detect_with([member], image.flip(-1), test)
    assert len(straight.scores) > 5
    assert_same_detections(
        of_mirror_image, mirrored(straight, 128), score=1e-4, box=0.05, lowest=TEST.score_thresh
    )
    without = detect_with([member], image, test.model_copy(update={"flip": False}))
    assert without.scores.tolist() != straight.scores.tolist()


@torch.no_grad()
def test_scores_and_offsets_are_the_means_of_both_images(network, image):
    boxes = torch.tensor([[3.0, 5, 40, 50], [60, 20, 120, 90]])
    predictions = features_of(member_of(network, ARCHITECTURE), image, FLIP).predict(boxes)
    (straight,), (mirror,) = network([image]), network([image.flip(-1)])
    logits, deltas = network.roi_head([straight.features], [boxes], [straight.size])
    mirror_logits, mirror_deltas = network.roi_head(
        [mirror.features], [flip_boxes(boxes, 128)], [mirror.size]
    )
    scores = (logits.softmax(1)[:, :-1] + mirror_logits.softmax(1)[:, :-1]) / 2
    target_stds = torch.tensor(ARCHITECTURE.rcnn.target_stds)
    turned = mirror_deltas * torch.tensor([-1.0, 1, 1, 1])
    torch.testing.assert_close(predictions.scores, scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predictions.offsets, (deltas + turned) / 2 * target_stds, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_proposals_of_both_images_are_united(network, image):
    member = member_of(network, ARCHITECTURE)
    both = features_of(member, image, FLIP).propose(FLIP)
    straight = features_of(member, image, TEST).propose(TEST)
    mirror = features_of(member, image.flip(-1), TEST).propose(TEST)
    assert len(both) == len(straight) + len(mirror)
    torch.testing.assert_close(both[: len(straight)], straight, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(both[len(straight) :], flip_boxes(mirror, 128), rtol=1e-4, atol=1e-3)
