"""The images that a run draws unasked: boxes lie where the objects are, whatever the images' size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectors import annotations_of

from detres.data.decoding import read_image
from detres.data.detection_samples import DetectionSample
from detres.data.drawing import class_color, write_image
from detres.data.records import DetectionTable
from detres.detection.visualize import ENLARGED_SIDE, LARGEST_SIDE, READABLE_SIDE, draw_samples, draw_split

GAP = 4


def sample(height: int, width: int) -> DetectionSample:
    return DetectionSample(
        image=torch.full((3, height, width), 200, dtype=torch.uint8),
        boxes=torch.tensor([[10.0, 20.0, 40.0, 50.0]]),
        labels=torch.tensor([0]),
        scale=(1.0, 1.0),
        size=(height, width),
        image_id="0",
        index=0,
        name="a.png",
    )


def test_samples():
    first, second = draw_samples([sample(300, 400), sample(320, 300)], ["thing"])
    assert (first.shape, second.shape) == ((300, 400, 3), (320, 300, 3))
    upper_edge = first[20, 10:40]
    assert (upper_edge == class_color(0)).all(axis=-1).sum() >= 12  # the dashes
    assert (first[19, 10:40] == 200).all()
    assert (first[35, 20] == 200).all()  # inside


def test_small_images_are_enlarged():
    (drawn,) = draw_samples([sample(96, 100)], ["thing"])
    factor = -(-READABLE_SIDE // 96)
    assert drawn.shape == (96 * factor, 100 * factor, 3)
    assert (drawn[20 * factor, 10 * factor] == class_color(0)).all()


def test_a_split(tmp_path):
    """Of a large picture: annotation dashed, the detection over 0.5 solid, the one under it not drawn; shrunk."""
    write_image(tmp_path / "a.png", np.full((800, 1280, 3), 200, np.uint8))
    truth = annotations_of([str(tmp_path / "a.png")] * 2, [(800, 1280)] * 2, [[[100, 100, 300, 300]], []])
    table = DetectionTable(
        images=np.array([0, 0, 1]),
        boxes=np.array([[600, 200, 900, 500], [100, 500, 300, 700], [600, 200, 900, 500]], np.float32),
        scores=np.array([0.9, 0.4, 0.1]),
        labels=np.array([0, 0, 0]),
    )
    draw_split(tmp_path / "s.png", truth, table, limit=12)
    sheet = read_image(tmp_path / "s.png")
    assert sheet.shape == (400 + 2 * GAP, 2 * (LARGEST_SIDE + GAP) + GAP, 3)
    first = sheet[GAP : GAP + 400, GAP : GAP + LARGEST_SIDE]
    color = np.array(class_color(0))
    left_edge = first[110:240, 300]
    assert (left_edge == color).all()
    dashes = (first[50, 50:150] == color).all(axis=-1)
    assert 0 < dashes.sum() < 100
    assert (first[250:350, 40:160] == 200).all()
    second = sheet[GAP : GAP + 400, 2 * GAP + LARGEST_SIDE : -GAP]
    assert (second == 200).all()


def test_an_empty_split_draws_nothing(tmp_path):
    none = DetectionTable.concatenate([])
    draw_split(tmp_path / "s.png", annotations_of([], [], []), none, limit=12)
    assert not (tmp_path / "s.png").exists()


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (1, 9000), (7, 5000)])
def test_narrow_images_are_not_enlarged_without_end(size):
    (drawn,) = draw_samples([sample(*size)], ["thing"])
    assert max(drawn.shape) <= max(ENLARGED_SIDE, *size)
