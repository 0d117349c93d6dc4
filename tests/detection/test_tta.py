"""Multi-scale testing: scales by hand and by a slow loop, features against two passes, one scale as the plain test."""

from __future__ import annotations

import math

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

from detres.boxes.geometry import box_area, scale_boxes
from detres.config import load_config
from detres.detection import tta
from detres.detection.config import DetectionConfig
from detres.detection.detect import TestConfig
from detres.detection.tta import adjacent_scales, pyramid_features, pyramid_sizes
from detres.errors import ConfigError

CLASSES = 3
PAPER = (200, 400, 600, 800, 1000)
SCALES = (64, 96, 128)
ARCHITECTURE = small_architecture()
TEST = TestConfig(score_thresh=0.02, proposals=30, pre_nms_top_n=400)
ON = TEST.model_copy(update={"scales": SCALES})


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


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_one_scale_is_the_plain_test_to_the_last_bit(network, count, flip):
    images = drawn_images(120, 150, CLASSES, count=count)[0]
    plain = TEST.model_copy(update={"flip": flip})
    one = plain.model_copy(update={"scales": (96,)})
    member = member_of(network, ARCHITECTURE, TEST)
    for found, expected in zip(
        found_by([member], images, one), found_by([member], images, plain), strict=True
    ):
        assert len(found.scores) > 3
        assert found.boxes.equal(expected.boxes)
        assert found.scores.equal(expected.scores)
        assert found.labels.equal(expected.labels)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["roi_align", "roi_pool"])
def test_features_are_the_maximum_over_both_scales(image, pooling, monkeypatch):
    """Against each region pooled alone from each of its two maps; best at 64 pixels, not 224: the picture is small."""
    monkeypatch.setattr(tta, "BEST_AREA", 64.0**2)
    network = detector_with_spread_scores(small_architecture(pooler=pooling), CLASSES, image)
    member = member_of(network, ARCHITECTURE, ON)
    view = view_of(member, image, ON)
    sizes = [maps[0].shape[2:] for maps in view.maps]
    assert sizes == [(4, 6), (6, 8), (8, 11)], "64 x 85, 96 x 128, 128 x 171 pixels, stride 16"
    corners = torch.tensor([[3.0, 5], [40, 20], [10, 8], [0, 0], [60, 30]])
    regions = torch.cat(
        (corners, corners + torch.tensor([[12.0, 9], [60, 60], [90, 70], [128, 96], [0, 0]])), dim=1
    )
    pixels = [(64 / 96, 85 / 128), (1.0, 1.0), (128 / 96, 171 / 128)]
    chosen = adjacent_scales(box_area(regions), [math.prod(factor) for factor in pixels])
    assert set(chosen.tolist()) == {0, 1}
    merged = view.features([regions])
    for row, pair in enumerate(chosen.tolist()):
        both = [
            network.region_head.features(view.maps[k], [scale_boxes(regions[row : row + 1], pixels[k])])
            for k in (pair, pair + 1)
        ]
        torch.testing.assert_close(merged[row : row + 1], torch.maximum(*both), rtol=1e-4, atol=1e-5)


def test_regions_of_several_images_keep_their_places():
    """Maps of one value for each scale and image: a feature says which maps it came from."""
    maps = [[torch.full((1, 1, 1, 1), 10.0 * scale + image) for image in range(2)] for scale in range(3)]
    factors = [[(scale, scale)] * 2 for scale in (0.5, 1.0, 2.0)]

    def features(of_scale, boxes):
        rows = [torch.full((len(b), 1), m.item()) for m, b in zip(of_scale, boxes, strict=True)]
        return torch.cat(rows)

    large, small = [0.0, 0, 400, 400], [0.0, 0, 50, 50]
    boxes = [torch.tensor([small, large]), torch.tensor([large, small, large])]
    assert pyramid_features(features, maps, factors, boxes).flatten().tolist() == [20, 10, 11, 21, 11]
    nothing = [torch.zeros(0, 4)] * 2
    assert pyramid_features(features, maps, factors, nothing).shape == (0, 1)


@pytest.mark.parametrize(
    ("scales", "trunk"),
    [(None, 1), ((96,), 1), (SCALES, 3), ((64, 128), 3), ((64,), 2)],  # 96 is for the proposals in any case
)
@pytest.mark.parametrize("switches", [{}, {"refine": True, "box_voting": True, "flip": True}])
def test_the_trunk_runs_once_a_scale_whatever_the_switches(network, image, scales, trunk, switches):
    test = TEST.model_copy(update={"scales": scales, **switches})
    with Calls(trunk=network.trunk, rpn=network.rpn) as calls:
        found_by([member_of(network, ARCHITECTURE, test)], [image], test)
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
