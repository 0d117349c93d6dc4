"""COCO json: truth is the json written by hand in `make_data`, and the counts that the real sample is known to have."""

from __future__ import annotations

import json

import make_data
import numpy as np
import pytest

from detres.data.formats import list_splits, read_annotations
from detres.errors import DataError


def test_ids_become_places_and_stay_known(tmp_path):
    make_data.coco(tmp_path)
    annotations, report = read_annotations(tmp_path, "val")
    assert annotations.class_names == ("dog", "cat")
    assert annotations.category_ids == (3, 7)
    assert [annotations.image_ids[i] for i in range(2)] == ["11", "5"]
    assert annotations.paths[0] == str(tmp_path / "val" / "a.png")
    np.testing.assert_array_equal(
        annotations.boxes, [[10, 20, 40, 60], [50, 40, 100, 80], [0.5, 0.25, 20.5, 10.25]]
    )
    assert annotations.labels.tolist() == [1, 0, 0]
    assert annotations.offsets.tolist() == [0, 2, 3]
    assert annotations.crowd.tolist() == [False, False, True]
    assert annotations.areas.tolist() == [600.5, 2000.0, 200.0]
    assert annotations.sizes.tolist() == [[80, 100], [80, 100]]
    assert report.counts() == {}


@pytest.mark.parametrize("asked", ["val2017", "val", None])
def test_split_is_found_by_its_name_or_part_of_it(tmp_path, asked):
    make_data.coco(tmp_path, "val2017")
    assert list_splits(tmp_path) == ["val2017"]
    assert len(read_annotations(tmp_path, asked)[0]) == 2


def test_captions_are_no_split(tmp_path):
    path = make_data.coco(tmp_path, "val2017")
    (path.parent / "captions_val2017.json").write_text(path.read_text())
    assert list_splits(tmp_path) == ["val2017"]


def test_unknown_split_lists_those_that_are_there(tmp_path):
    make_data.coco(tmp_path, "val2017")
    make_data.coco(tmp_path, "train2017")
    with pytest.raises(DataError, match="split 'test' is not there; it has train2017, val2017"):
        read_annotations(tmp_path, "test")
    with pytest.raises(DataError, match="several splits: train2017, val2017"):
        read_annotations(tmp_path, None)


def test_roboflow_layout_and_its_doubled_category(tmp_path):
    """Roboflow's exports hold the json beside the pictures and name the only class twice, as id 0 and 1."""
    source = make_data.coco(tmp_path / "other")
    content = json.loads(source.read_text())
    content["categories"] = [{"id": 0, "name": "cat"}, {"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    (tmp_path / "own" / "train").mkdir(parents=True)
    (tmp_path / "own" / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    for name in ("a.png", "b.png"):
        make_data.write_image(tmp_path / "own" / "train" / name)
    annotations, report = read_annotations(tmp_path / "own", "train")
    assert annotations.class_names == ("cat", "dog")
    assert annotations.category_ids == (7, 3)
    assert annotations.labels.tolist() == [0, 1, 1]
    assert report.counts() == {"category name used twice": 1}


def test_images_of_another_splits_folder_are_found_when_none_bears_the_name(tmp_path):
    path = make_data.coco(tmp_path, "val2014")
    path.rename(path.with_name("instances_minival.json"))
    annotations, _ = read_annotations(tmp_path, "minival")
    assert annotations.paths[0] == str(tmp_path / "val2014" / "a.png")


def test_evaluation_needs_no_images(tmp_path):
    path = make_data.coco(tmp_path)
    (tmp_path / "val" / "a.png").unlink()
    assert len(read_annotations(path, None)[0]) == 2
    assert len(read_annotations(tmp_path, "val", need_images=False)[0]) == 2


def test_size_is_read_where_the_json_states_none(tmp_path):
    make_data.write_image(tmp_path / "val" / "a.png", 60, 90)
    make_data.coco(tmp_path, images=[{"id": 11, "file_name": "a.png"}], annotations=[])
    annotations, _ = read_annotations(tmp_path, "val")
    assert annotations.sizes.tolist() == [[90, 60]]
    assert annotations.boxes.shape == (0, 4)


def box(*values, **more):
    return {"id": 1, "image_id": 11, "category_id": 7, "bbox": list(values), **more}


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (box(float("nan"), 1, 2, 3), "annotation 1: coordinate not finite"),
        (box(1, 1, 2, float("inf")), "annotation 1: coordinate not finite"),
        (box(1, 1, 2), "annotation 1: malformed box"),
        (box(1, 1, 2, "3"), "annotation 1: malformed box"),
        (box(1, 1, 2, 3, category_id=9), "annotation 1: unknown category: category 9 is not one of 3, 7"),
        (box(1, 1, 2, 3, image_id=99), "annotation 1: unknown image id: image 99"),
        (box(10, 20, 95, 75), "boxes look like corners: 100%"),
    ],
)
def test_what_is_an_error(tmp_path, annotation, message):
    path = make_data.coco(tmp_path, annotations=[annotation])
    with pytest.raises(DataError, match=message) as raised:
        read_annotations(tmp_path, "val")
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("annotation", "kind", "left"),
    [
        (box(10, 10, 0, 5), "zero-size box", []),
        (box(10, 10, -4, 5), "zero-size box", []),
        (box(120, 10, 5, 5), "box outside the picture", []),
        (box(90, 70, 20, 20), "box clipped", [[90, 70, 100, 80]]),
    ],
)
def test_what_is_dropped_or_clipped_with_a_count(tmp_path, annotation, kind, left):
    make_data.coco(tmp_path, annotations=[annotation])
    annotations, report = read_annotations(tmp_path, "val")
    assert report.counts() == {kind: 1}
    assert "annotation 1" in report.defects[0].where
    assert annotations.boxes.tolist() == left


def test_duplicate_annotation_id_is_kept_and_counted(tmp_path):
    make_data.coco(tmp_path, annotations=[box(1, 1, 5, 5), box(10, 10, 5, 5)])
    annotations, report = read_annotations(tmp_path, "val")
    assert len(annotations.boxes) == 2
    assert report.counts() == {"duplicate annotation id": 1}


def test_duplicate_image_id(tmp_path):
    images = [{"id": 11, "file_name": name, "width": 100, "height": 80} for name in ("a.png", "b.png")]
    make_data.coco(tmp_path, images=images, annotations=[])
    with pytest.raises(DataError, match=r"image 11: duplicate image id: 'a.png' and 'b.png' share it"):
        read_annotations(tmp_path, "val")


def test_all_errors_are_listed_up_to_ten(tmp_path):
    make_data.coco(tmp_path, annotations=[box(1, 1, 2, 3, category_id=9) | {"id": i} for i in range(13)])
    with pytest.raises(DataError) as raised:
        read_annotations(tmp_path, "val")
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("13 errors in ")
    assert len(lines) == 12
    assert lines[-1] == "... and 3 more (check_data lists all)"


def test_missing_image(tmp_path):
    make_data.coco(tmp_path)
    (tmp_path / "val" / "b.png").unlink()
    with pytest.raises(DataError, match=r"'b\.png': missing picture"):
        read_annotations(tmp_path, "val")


def test_empty_data_set(tmp_path):
    make_data.coco(tmp_path, images=[], annotations=[])
    with pytest.raises(DataError, match="empty data set"):
        read_annotations(tmp_path, "val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [],\n "annotations": [,]}', "line 2: malformed JSON"),
        ('{"images": [], "annotations": []}', "no list 'categories'"),
        ('{"images": [{}], "annotations": [], "categories": []}', r"images\[0\] has no 'id'"),
        ('{"images": [3], "annotations": [], "categories": []}', r"images\[0\] is not a mapping"),
        ("[]", "no list 'images'"),
    ],
)
def test_malformed_json(tmp_path, text, message):
    path = make_data.coco(tmp_path)
    path.write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        read_annotations(tmp_path, "val")
    assert str(path) in str(raised.value)


IMAGE = {"id": 11, "file_name": "a.png", "width": 100, "height": 80}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": [{"id": 7}, {"id": "cat"}]}, r"categories\[1\]: id 'cat' is not a whole number"),
        ({"categories": [{"id": None, "name": "cat"}]}, r"categories\[0\]: id None is not a whole number"),
        ({"categories": [{"id": 1.5}]}, r"categories\[0\]: id 1.5 is not a whole number"),
        ({"images": [IMAGE, IMAGE | {"id": [5]}]}, r"images\[1\]: id \[5\] is not a number or text"),
        ({"images": [IMAGE | {"id": None}]}, r"images\[0\]: id None is not a number or text"),
        ({"images": [IMAGE | {"width": "fifty"}]}, "image 11: malformed size: width 'fifty' is not a number"),
        ({"images": [IMAGE | {"height": [80]}]}, r"image 11: malformed size: height \[80\] is not a number"),
        ({"images": [IMAGE | {"width": float("nan")}]}, "image 11: malformed size: width nan"),
    ],
)
def test_malformed_entries(tmp_path, changes, message):
    path = make_data.coco(tmp_path, annotations=[], **changes)
    with pytest.raises(DataError, match=message) as raised:
        read_annotations(tmp_path, "val")
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_an_unhashable_category_of_an_object_is_unknown(tmp_path):
    make_data.coco(tmp_path, annotations=[box(1, 1, 5, 5, category_id={"id": 7})])
    with pytest.raises(DataError, match="annotation 1: unknown category"):
        read_annotations(tmp_path, "val")


def test_numbers_in_quotes_are_numbers(tmp_path):
    images = [IMAGE | {"width": "100", "height": 80.0}]
    categories = [{"id": "10", "name": "cat"}, {"id": 9.0, "name": "dog"}]
    make_data.coco(tmp_path, annotations=[], images=images, categories=categories)
    annotations, _ = read_annotations(tmp_path, "val")
    assert annotations.sizes.tolist() == [[80, 100]]
    assert (annotations.class_names, annotations.category_ids) == (("dog", "cat"), (9, 10))


def test_json_that_is_not_utf8(tmp_path):
    path = make_data.coco(tmp_path)
    path.write_bytes(b'{"images": ["caf\xe9"]}')
    with pytest.raises(
        DataError, match=r"instances_val\.json: not UTF-8 text \(byte 16\); save it as UTF-8$"
    ):
        read_annotations(tmp_path, "val")


def test_hidden_files_are_no_split(tmp_path):
    path = make_data.coco(tmp_path)
    path.with_name(f".{path.name}").write_bytes(path.read_bytes())
    assert list_splits(tmp_path) == ["val"]


def test_real_sample(real_data):
    """Counts of data/README: 382 annotations, 5 crowds, 48 classes with objects, two pictures without."""
    annotations, report = read_annotations(real_data / "coco_val50", "val2017")
    assert (len(annotations), len(annotations.boxes), int(annotations.crowd.sum())) == (50, 382, 5)
    ordinary = annotations.labels[~annotations.crowd]
    assert (len(ordinary), len(np.unique(ordinary))) == (377, 48)
    empty = [annotations.image_ids[i] for i in np.flatnonzero(np.diff(annotations.offsets) == 0).tolist()]
    assert sorted(empty) == ["226111", "58636"]
    assert annotations.category_ids is not None
    assert (len(annotations.class_names), annotations.category_ids[0], annotations.category_ids[-1]) == (
        80,
        1,
        90,
    )
    assert report.counts() == {}


def test_real_sample_agrees_with_pycocotools(real_data):
    """Every box, class id, area and flag, against pycocotools' own reading of the file."""
    pycocotools = pytest.importorskip("pycocotools.coco")
    annotations, _ = read_annotations(real_data / "coco_val50", "val2017")
    truth = pycocotools.COCO(str(real_data / "coco_val50" / "annotations" / "instances_val2017.json"))
    assert annotations.category_ids is not None
    for index in range(len(annotations)):
        rows = annotations.objects(index)
        entries = truth.imgToAnns[int(annotations.image_ids[index])]
        sides = annotations.boxes[rows, 2:] - annotations.boxes[rows, :2]
        ours = np.concatenate([annotations.boxes[rows, :2], sides], axis=1)
        np.testing.assert_allclose(ours, np.array([e["bbox"] for e in entries]).reshape(-1, 4), atol=0.011)
        ids = [annotations.category_ids[label] for label in annotations.labels[rows]]
        assert ids == [e["category_id"] for e in entries]
        assert annotations.areas[rows].tolist() == [e["area"] for e in entries]
        assert annotations.crowd[rows].tolist() == [bool(e["iscrowd"]) for e in entries]
