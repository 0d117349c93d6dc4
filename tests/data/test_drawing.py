"""Drawings pixel by pixel where the box says, untouched elsewhere; files read back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from detres.data.decoding import read_image
from detres.data.drawing import (
    class_color,
    contact_sheet,
    draw_annotations,
    draw_boxes,
    draw_detections,
    write_image,
    write_sheet,
)
from detres.errors import UserError

GRAY = np.full((80, 120, 3), 100, np.uint8)


def test_a_box_is_drawn_around_its_pixels_and_nowhere_else():
    before = GRAY.copy()
    drawn = draw_boxes(GRAY, np.array([[20, 30, 60, 70]]), [""], [(255, 0, 0)])
    assert np.array_equal(GRAY, before)
    changed = (drawn != GRAY).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == pytest.approx((30, 69, 20, 59), abs=1)
    assert not changed[33:67, 23:57].any()
    assert (drawn[30, 20:60] == (255, 0, 0)).all()


def test_dashes_alternate_and_boxes_outside_are_cut_off():
    drawn = draw_boxes(GRAY, np.array([[-50, 10, 500, 40]]), [""], [(200, 40, 40)], dashed=True)
    assert len(np.unique(drawn[10], axis=0)) == 2
    assert (drawn[39] != 100).any(axis=1).all()


def test_no_boxes_draw_nothing():
    none = np.zeros((0, 4), np.float32)
    assert np.array_equal(draw_detections(GRAY, none, [], [], ["a"]), GRAY)
    assert np.array_equal(draw_annotations(GRAY, none, [], ["a"]), GRAY)


def test_the_best_detection_lies_on_top():
    boxes = np.array([[20, 30, 60, 70], [20, 30, 60, 70]])
    drawn = draw_detections(GRAY, boxes, [1, 0], [0.9, 0.2], ["a", "b"])
    assert tuple(drawn[69, 40]) == class_color(1)


@pytest.mark.parametrize("corner", [(0, 0), (90, 0), (0, 70), (100, 70)])
def test_labels_stay_inside_the_image(corner):
    x, y = corner
    for draw in (
        draw_detections(GRAY, np.array([[x, y, x + 10, y + 10]]), [0], [0.5], ["long name"]),
        draw_annotations(GRAY, np.array([[x, y, x + 10, y + 10]]), [0], ["long name"]),
    ):
        assert draw.shape == GRAY.shape
        assert (draw != GRAY).any(axis=2).sum() > 400  # the whole label, not a sliver


def test_colors_are_repeatable_and_differ():
    colors = [class_color(label) for label in range(20)]
    assert colors == [class_color(label) for label in range(20)]
    distances = [np.abs(np.subtract(one, other)).sum() for one, other in itertools.combinations(colors, 2)]
    assert min(distances) > 40


def test_a_contact_sheet_holds_every_image():
    images = [np.full((10 + i, 20, 3), 10 * i, np.uint8) for i in range(5)]
    sheet = contact_sheet(images, 3)
    assert sheet.shape == (2 * (14 + 4) + 4, 3 * (20 + 4) + 4, 3)
    for i, image in enumerate(images):
        assert (sheet == 10 * i).all(axis=2).sum() == image.shape[0] * 20
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], 3)


def test_images_are_written_whole_and_read_back(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    write_image(tmp_path / "made" / "a.png", image[:, ::-1])
    assert np.array_equal(read_image(tmp_path / "made" / "a.png"), image[:, ::-1])
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["a.png"]
    with pytest.raises(UserError, match=r"\.png"):
        write_image(tmp_path / "a.txt", image)


@pytest.mark.parametrize(
    ("suffix", "side", "limit"), [(".jpg", 65501, 65500), (".jpeg", 65501, 65500), (".webp", 16384, 16383)]
)
def test_images_that_a_format_cannot_hold(tmp_path, suffix, side, limit, capfd):
    for shape in ((2, side, 3), (side, 2, 3)):
        with pytest.raises(UserError, match=rf"{shape[1]} x {shape[0]}.* at most {limit} pixels a side"):
            write_image(tmp_path / f"x{suffix}", np.zeros(shape, np.uint8))
    write_image(tmp_path / f"y{suffix}", np.zeros((2, limit, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == [f"y{suffix}"]
    assert capfd.readouterr().err == ""


def test_an_encoder_that_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("cv2.imencode", lambda *_: (False, ()))
    with pytest.raises(UserError, match=r"OpenCV encodes no \.png of 120 x 80 pixels"):
        write_image(tmp_path / "x.png", GRAY)


@pytest.mark.parametrize("shape", [(1, 40000), (40000, 1), (9000, 9000), (40, 30)])
def test_sheets_are_shrunk_to_fit(tmp_path, shape):
    write_sheet(tmp_path / "sheet.jpg", [np.zeros((*shape, 3), np.uint8)] * 4, 2)
    sheet = read_image(tmp_path / "sheet.jpg")
    if shape == (40, 30):
        assert sheet.shape == (92, 72, 3)
    assert max(sheet.shape) > 9000 or shape == (40, 30)


def test_a_sheet_that_cannot_be_written_is_left_out(tmp_path, caplog):
    (tmp_path / "sheet.jpg").mkdir()
    write_sheet(tmp_path / "sheet.jpg", [GRAY], 1)
    assert "left out: cannot write" in caplog.text
