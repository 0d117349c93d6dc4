"""Results files: round trips, VOC's own numbers by hand, and what is refused."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from detres.data.records import DetectionTable
from detres.errors import DataError, UserError
from detres.evaluation.results_files import (
    read_coco_results,
    read_comp4,
    read_results,
    write_coco_results,
    write_comp4,
)


@pytest.fixture
def truth(make_truth):
    images = [[(0, 1, 2, 30, 40)], [], [(2, 5, 5, 9, 9)]]
    return make_truth(images, ids=["139", "285", "000042"], category_ids=(18, 21, 44))


def random_table(count: int = 40) -> DetectionTable:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (count, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(1, 100, (count, 2))), axis=1).astype(np.float32)
    return DetectionTable(rng.integers(0, 3, count), boxes, rng.random(count), rng.integers(0, 3, count))


def entry(**changes) -> dict:
    return {"image_id": 139, "category_id": 18, "bbox": [1, 2, 3, 4], "score": 0.5, **changes}


def write(path, value) -> None:
    path.write_text(json.dumps(value))


def test_coco_round_trip_is_exact(tmp_path, truth):
    table = random_table()
    write_coco_results(tmp_path / "a.json", truth, table)
    found = read_coco_results(tmp_path / "a.json", truth)
    for name in ("images", "boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(table, name))


def test_coco_file_has_the_datas_own_ids(tmp_path, truth, make_table):
    rows = [(0, 2, 0.25, 1, 2, 4, 6), (2, 0, 0.5, 0, 0, 1, 1)]
    write_coco_results(tmp_path / "a.json", truth, make_table(rows))
    assert json.loads((tmp_path / "a.json").read_text()) == [
        {"image_id": 139, "category_id": 44, "bbox": [1, 2, 3, 4], "score": 0.25},
        {"image_id": "000042", "category_id": 18, "bbox": [0, 0, 1, 1], "score": 0.5},
    ]


def test_coco_ids_may_be_numbers_or_text(tmp_path, truth):
    write(tmp_path / "a.json", [entry(), entry(image_id="139"), entry(image_id=42), entry(image_id="000042")])
    assert read_coco_results(tmp_path / "a.json", truth).images.tolist() == [0, 0, 2, 2]


def test_without_category_ids_classes_are_1_to_k(tmp_path, make_truth):
    write(tmp_path / "a.json", [entry(image_id="1", category_id=1), entry(image_id="1", category_id=3)])
    assert read_coco_results(tmp_path / "a.json", make_truth([[]])).labels.tolist() == [0, 2]


def test_empty_files(tmp_path, truth, make_table):
    write_coco_results(tmp_path / "a.json", truth, make_table([]))
    assert len(read_results(tmp_path / "a.json", truth)) == 0
    write_comp4(tmp_path / "comp4", truth, make_table([]), "test")
    assert len(read_results(tmp_path / "comp4", truth)) == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [entry(), entry(image_id=7), entry(image_id=8)],
            r"2 of 3 detections are of images.* the first 7;",
        ),
        (
            [entry(category_id=1), entry()],
            r"1 of 2 detections have an unknown category_id, the first 1; .*18, 21, 44",
        ),
        ([entry(category_id="cat")], "unknown category_id, the first 'cat'"),
        ([entry(score=float("nan"))], "detection 0 .image 139.: score nan is not a finite number"),
        ([entry(score="0.5")], "score 0.5 is not a finite number"),
        ([entry(bbox=[1, 2, 3])], "not four finite numbers"),
        ([entry(bbox=[1, 2, float("inf"), 4])], "not four finite numbers"),
        ([{"image_id": 139, "bbox": [1, 2, 3, 4]}], "detection 0 has no category_id, score"),
        ([17], "detection 0 is 17"),
        ({"images": [], "annotations": []}, "holds a dict with keys images, annotations, not COCO results"),
    ],
)
def test_coco_refused(tmp_path, truth, rows, message):
    write(tmp_path / "a.json", rows)
    with pytest.raises(DataError, match=message):
        read_coco_results(tmp_path / "a.json", truth)


def test_coco_missing_or_malformed_file(tmp_path, truth):
    with pytest.raises(DataError, match="no such file"):
        read_coco_results(tmp_path / "a.json", truth)
    (tmp_path / "a.json").write_text('[\n{"image_id": 139,\n]')
    with pytest.raises(DataError, match=r"a\.json:3: malformed json"):
        read_coco_results(tmp_path / "a.json", truth)


def test_comp4_is_in_vocs_own_numbers(tmp_path, truth, make_table):
    """(10, 20, 30, 40) here covers VOC's pixels 11..30 and 21..40."""
    write_comp4(tmp_path, truth, make_table([(0, 0, 0.25, 10, 20, 30, 40)]), "test")
    text = (tmp_path / "comp4_det_test_cat.txt").read_text()
    assert text.split() == ["139", "0.25", "11.000000", "21.000000", "30.000000", "40.000000"]
    assert (tmp_path / "comp4_det_test_dog.txt").read_text() == ""


@pytest.mark.parametrize("blocked", ["cat", "dog"])
def test_comp4_leaves_earlier_files_where_one_cannot_be_written(tmp_path, truth, make_table, blocked):
    other = {"cat": "dog", "dog": "cat"}[blocked]
    (tmp_path / f"comp4_det_test_{other}.txt").write_text("earlier")
    (tmp_path / f"comp4_det_test_{blocked}.txt").mkdir()
    with pytest.raises(UserError, match=rf"{blocked}\.txt cannot be written"):
        write_comp4(tmp_path, truth, make_table([]), "test")
    assert (tmp_path / f"comp4_det_test_{other}.txt").read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 2


def test_comp4_leaves_earlier_files_where_the_disk_is_full(tmp_path, truth, make_table, monkeypatch):
    write_comp4(tmp_path, truth, make_table([(0, 0, 0.25, 10, 20, 30, 40)]), "test")
    before = {path: path.read_text() for path in tmp_path.iterdir()}
    written, write = [], Path.write_text

    def full(path, text, **options):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="no space left on the device"):
        write_comp4(tmp_path, truth, make_table([]), "test")
    assert {path: path.read_text() for path in tmp_path.iterdir()} == before


def test_comp4_round_trip(tmp_path, truth):
    table = random_table()
    write_comp4(tmp_path, truth, table, "my_split")
    found = read_comp4(tmp_path, truth)
    order = np.argsort(table.labels, kind="stable")
    np.testing.assert_array_equal(found.images, table.images[order])
    np.testing.assert_array_equal(found.labels, table.labels[order])
    np.testing.assert_allclose(found.boxes, table.boxes[order], atol=1e-5)
    np.testing.assert_allclose(found.scores, table.scores[order], rtol=1e-8)


def test_comp4_class_without_a_file_has_no_detections(tmp_path, truth):
    (tmp_path / "comp4_det_test_dog.txt").write_text("139 0.5 1 1 2 2\n\n")
    assert read_comp4(tmp_path, truth, "test").labels.tolist() == [1]


def test_comp4_class_name_that_ends_as_another_does(tmp_path, make_truth):
    truth = make_truth([[]], classes=["table", "dining_table"])
    (tmp_path / "comp4_det_test_dining_table.txt").write_text("1 0.5 1 1 2 2")
    assert read_comp4(tmp_path, truth, "test").labels.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("comp4_det_test_cow.txt", "139 0.5 1 1 2\n", r"cow\.txt:1: '139 0.5 1 1 2' should be: image score"),
        ("comp4_det_test_cow.txt", "139 0.5 1 1 2 2\n139 nan 1 1 2 2", r"cow\.txt:2: .* not finite"),
        ("comp4_det_test_cow.txt", "stranger 0.5 1 1 2 2", r"1 of 1 detections are of images.*'stranger'"),
        ("comp4_det_test_dgo.txt", "", r"unknown class .did you mean 'dog'.*cat, dog, cow"),
        ("comp4_det_val_cow.txt", "", "no files comp4_det_test_<class>.txt; its files are of val"),
        ("other.txt", "", "no comp4 files at all"),
    ],
)
def test_comp4_refused(tmp_path, truth, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_comp4(tmp_path, truth, "test")


def test_text_that_is_not_utf8(tmp_path, truth):
    for name in ("a.json", "comp4_det_test_cow.txt"):
        (tmp_path / name).write_bytes(b"caf\xe9 0.5 1 1 2 2\n")
    with pytest.raises(DataError, match=r"a\.json: cannot be read as text.*; should be a COCO results json$"):
        read_results(tmp_path / "a.json", truth)
    with pytest.raises(DataError, match=r"test_cow\.txt: not UTF-8 text \(byte 3\); save it as UTF-8$"):
        read_results(tmp_path, truth)


def test_comp4_of_several_splits_needs_one_named(tmp_path, truth, make_table):
    for split in ("val", "test"):
        write_comp4(tmp_path, truth, make_table([]), split)
    with pytest.raises(DataError, match="several splits"):
        read_comp4(tmp_path, truth)
    with pytest.raises(DataError, match="no such folder"):
        read_comp4(tmp_path / "nothing", truth)
