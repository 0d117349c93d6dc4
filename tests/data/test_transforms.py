"""Sizes worked by hand; flips against the formula and against the pixels; crops against plain slicing."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from detres.data import transforms
from detres.data.config import AugmentationConfig, CropConfig, DetectionDataConfig
from detres.data.transforms import (
    DetectionAugmentation,
    center_crop,
    jittered_sides,
    resize_boxes,
    resize_image,
    resized_size,
    ten_crops,
    train_crop,
)
from detres.errors import DataError

FLIP = DetectionAugmentation(AugmentationConfig(flip=1.0))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (600, 800, 1.25)),
        (375, 500, (600, 800, 1.6)),
        (500, 333, (901, 600, 600 / 333)),  # 500 * 600 / 333 = 900.9
        (333, 500, (600, 901, 600 / 333)),
        (300, 600, (500, 1000, 1000 / 600)),  # 600 / 300 would make the longer side 1200
        (1200, 100, (1000, 83, 1000 / 1200)),
        (1, 5000, (1, 1000, 0.2)),
        (600, 1000, (600, 1000, 1.0)),
    ],
)
def test_sizes_worked_by_hand(height, width, expected):
    assert resized_size(height, width, 600, 1000) == pytest.approx(expected)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 800), st.integers(0, 600))
def test_neither_side_exceeds_its_limit_and_one_reaches_it(height, width, short_side, extra):
    h, w, scale = resized_size(height, width, short_side, short_side + extra)
    assert min(h, w) <= short_side
    assert max(h, w) <= short_side + extra
    assert min(h, w) == short_side or max(h, w) == short_side + extra
    assert abs(h - height * scale) <= 0.5 or h == 1


def test_a_resize_keeps_pixel_centers_in_place():
    """A ramp stays a ramp in continuous coordinates: value at (i + 0.5) / scale, away from the border."""
    ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], 4, axis=0).repeat(3, axis=2)
    wide = resize_image(ramp, 4, 250)
    centers = (np.arange(250) + 0.5) / 2.5
    assert np.abs(wide[0, 5:-5, 0] - (centers - 0.5)[5:-5] * 2).max() <= 0.51
    assert resize_image(ramp, 4, 100) is ramp


def test_boxes_scale_by_axis_and_may_be_absent():
    boxes = resize_boxes(np.array([[10, 20, 30, 40]], np.float32), (2.0, 0.5))
    assert boxes.tolist() == [[5, 40, 15, 80]]
    assert boxes.dtype == np.float32
    assert resize_boxes(np.zeros((0, 4), np.float32), (2.0, 0.5)).shape == (0, 4)


coordinates = st.floats(0, 1, width=32)


@given(
    st.integers(2, 4000),
    st.integers(2, 60),
    st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates), max_size=6),
)
def test_a_flip_mirrors_boxes_to_a_thousandth_of_a_pixel_and_loses_none(width, height, corners):
    unit = np.array(corners, dtype=np.float64).reshape(-1, 4)
    low, high = np.minimum(unit[:, :2], unit[:, 2:]), np.maximum(unit[:, :2], unit[:, 2:])
    sides = np.array([width, height])
    boxes = np.concatenate([low * sides, np.minimum(high * sides + 0.5, sides)], axis=1).astype(np.float32)
    boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) >= 0.25).all(axis=1)]
    image = np.zeros((height, width, 3), np.uint8)
    _, flipped, kept = FLIP(image, boxes, np.random.default_rng(0))
    expected = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    assert kept.tolist() == list(range(len(boxes)))
    assert flipped.shape == boxes.shape
    assert flipped.dtype == np.float32
    assert np.abs(flipped - expected).max(initial=0) < 1e-3


def test_a_flipped_box_lies_on_the_same_pixels():
    image = np.zeros((20, 31, 3), np.uint8)
    image[4:9, 3:12] = 255
    changed, boxes, _ = FLIP(image, np.array([[3, 4, 12, 9]], np.float32), np.random.default_rng(0))
    x1, y1, x2, y2 = np.rint(boxes[0]).astype(int)
    assert (changed[y1:y2, x1:x2] == 255).all()
    assert changed.astype(int).sum() == image.astype(int).sum()


def test_flips_come_at_their_probability_and_from_the_generator_alone():
    augment = DetectionAugmentation(AugmentationConfig(flip=0.3))
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, 0] = 9
    none = np.zeros((0, 4), np.float32)
    flips = [augment(image, none, np.random.default_rng(seed))[0][0, 0, 0] == 0 for seed in range(400)]
    assert abs(np.mean(flips) - 0.3) < 0.07
    again = [augment(image, none, np.random.default_rng(seed))[0][0, 0, 0] == 0 for seed in range(400)]
    assert flips == again


def test_brightness_changes_pixels_but_no_box_and_is_independent_of_the_flip():
    augment = DetectionAugmentation(AugmentationConfig(flip=0.5, brightness_contrast=0.4))
    image = np.full((8, 10, 3), 100, np.uint8)
    image[:, 0] = 0
    brighter = {True: 0, False: 0}
    for seed in range(200):
        changed, boxes, _ = augment(image, np.array([[1, 1, 4, 5]], np.float32), np.random.default_rng(seed))
        flipped = bool(boxes[0, 0] > 3)
        assert boxes[0] == pytest.approx([6, 1, 9, 5] if flipped else [1, 1, 4, 5], abs=1e-3)
        brighter[flipped] += int(changed[4, 5, 0] > 100)
    assert min(brighter.values()) > 25


def test_without_any_change_nothing_is_touched():
    image, boxes = np.zeros((4, 6, 3), np.uint8), np.array([[0, 0, 0.1, 0.1]], np.float32)
    changed, same, kept = DetectionAugmentation(AugmentationConfig(flip=0))(
        image, boxes, np.random.default_rng(0)
    )
    assert changed is image
    assert same is boxes
    assert kept.tolist() == [0]


def test_scale_jitter_draws_one_factor_for_both_sides():
    config = AugmentationConfig(scale_jitter=(0.5, 1.5))
    sides = np.array([jittered_sides(600, 1000, config, np.random.default_rng(seed)) for seed in range(300)])
    assert np.abs(sides[:, 0] / 600 - sides[:, 1] / 1000).max() < 2e-3
    assert sides[:, 0].min() < 340
    assert sides[:, 0].max() > 860
    assert jittered_sides(600, 1000, AugmentationConfig(), np.random.default_rng(0)) == (600, 1000)


def test_the_central_crop_is_the_middle_of_the_resized_image():
    image = np.random.default_rng(0).integers(0, 256, (256, 300, 3), dtype=np.uint8)
    assert np.array_equal(center_crop(image, CropConfig()), image[16:240, 38:262])


def test_random_crops_are_windows_of_the_image_or_their_mirror():
    image = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    windows = {image[y : y + 9, x : x + 9].tobytes() for y in range(4) for x in range(7)}
    mirrored = {image[y : y + 9, x : x + 9][:, ::-1].tobytes() for y in range(4) for x in range(7)}
    config = CropConfig(size=9, train_sides=None, test_side=None)
    seen = {train_crop(image, config, np.random.default_rng(seed)).tobytes() for seed in range(600)}
    assert seen <= windows | mirrored
    assert len(seen & windows) > 20
    assert len(seen & mirrored) > 20


def test_cifar_crops_pad_by_four():
    """§4.2: 4 pixels are padded on each side, and a 32 x 32 crop is sampled."""
    image = np.full((32, 32, 3), 200, np.uint8)
    config = CropConfig(size=32, train_sides=None, test_side=None, pad=4)
    shares = {int((train_crop(image, config, np.random.default_rng(seed)) > 0).sum()) for seed in range(300)}
    assert min(shares) == 28 * 28 * 3
    assert max(shares) == 32 * 32 * 3
    assert center_crop(image, config).min() == 200


def test_a_crop_larger_than_the_image_is_padded():
    image = np.full((5, 30, 3), 7, np.uint8)
    config = CropConfig(size=8, train_sides=None, test_side=None)
    assert center_crop(image, config).shape == (8, 8, 3)
    assert train_crop(image, config, np.random.default_rng(0)).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (DetectionDataConfig, {"short_side": 600, "long_side": 500}),
        (AugmentationConfig, {"scale_jitter": (1.2, 0.8)}),
        (AugmentationConfig, {"flip": 1.5}),
        (CropConfig, {"size": 224, "train_sides": (200, 480)}),
        (CropConfig, {"test_side": 128}),
    ],
)
def test_values_that_cannot_be_are_refused(model, values):
    with pytest.raises(ValidationError):
        model(**values)


@pytest.mark.parametrize(("height", "width"), [(3, 900), (700, 2)])
def test_squares_of_narrow_images_are_those_of_the_whole(height, width, monkeypatch):
    """Truth: OpenCV's resize of the whole image, which counts in steps of 1/2048."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    config = CropConfig(size=32, train_sides=(32, 40), test_side=32, pad=4)
    parts = [train_crop(image, config, np.random.default_rng(seed)) for seed in range(20)]
    parts += ten_crops(image, config)
    monkeypatch.setattr(transforms, "NARROW", 10**6)
    wholes = [train_crop(image, config, np.random.default_rng(seed)) for seed in range(20)]
    wholes += ten_crops(image, config)
    for part, whole in zip(parts, wholes, strict=True):
        assert np.abs(part.astype(int) - whole).max() <= 1


def test_a_very_narrow_image_takes_no_memory():
    """At a shorter side of 256 it would have 6.5 G pixels."""
    image = np.zeros((1, 100_000, 3), np.uint8)
    config = CropConfig(size=224, train_sides=(256, 256), test_side=256)
    tracemalloc.start()
    assert train_crop(image, config, np.random.default_rng(0)).shape == (224, 224, 3)
    assert center_crop(image, config).shape == (224, 224, 3)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    with pytest.raises(DataError, match=r"100000 x 1 pixels .* too narrow"):
        transforms.resize_shorter(image, 256)
