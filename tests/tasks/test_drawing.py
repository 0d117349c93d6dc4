"""The image of a first batch: all of it on one sheet, and none of an empty one."""

from __future__ import annotations

import numpy as np

from detres.data.decoding import read_image
from detres.tasks.drawing import draw_first_batch


def test_a_batch_is_one_sheet(tmp_path):
    images = [np.full((20, 20, 3), 250 * (index % 2), np.uint8) for index in range(4)]
    draw_first_batch(images, tmp_path)
    height, width = read_image(str(tmp_path / "first_batch.jpg")).shape[:2]
    assert height == width
    draw_first_batch(images, tmp_path, columns=4)
    height, width = read_image(str(tmp_path / "first_batch.jpg")).shape[:2]
    assert width > 3 * height


def test_an_empty_batch_is_not_drawn(tmp_path):
    draw_first_batch([], tmp_path)
    assert not list(tmp_path.iterdir())
