"""Finding formats and folders, unions and class lists: truth is what the test lays out."""

from __future__ import annotations

import make_data
import numpy as np
import pytest

from detres.data.config import Source
from detres.data.format_names import FORMAT_NAMES, WRITABLE
from detres.data.formats import (
    FORMATS,
    find_format,
    list_splits,
    read_annotations,
    resolve_directory,
    select_classes,
)
from detres.data.sources import read_sources
from detres.data.writers import WRITERS
from detres.errors import DataError, UserError


def source(directory, split, format=None):
    return Source(dir=str(directory), split=split, format=format)


XML = make_data.xml([("dog", (1, 1, 9, 9))])


def test_command_line_names_the_formats_of_the_tables():
    assert (tuple(FORMATS), tuple(WRITERS)) == (FORMAT_NAMES, WRITABLE)


def test_formats_are_found_by_looking(tmp_path):
    make_data.coco(tmp_path / "coco")
    make_data.voc(tmp_path / "voc", {"train": {"a": XML}})
    make_data.yolo(tmp_path / "yolo", {"a": "0 0.5 0.5 1 1\n"})
    for name in ("coco", "voc", "yolo"):
        assert find_format(tmp_path / name) == name


def test_two_formats_in_one_folder(tmp_path):
    make_data.coco(tmp_path)
    make_data.voc(tmp_path, {"train": {"a": XML}})
    with pytest.raises(UserError, match="holds coco and voc data: choose with --format coco or --format voc"):
        read_annotations(tmp_path, "train")
    assert read_annotations(tmp_path, "train", format="voc")[0].image_ids[0] == "a"
    assert len(read_annotations(tmp_path, "val", format="coco")[0]) == 2
    with pytest.raises(
        UserError,
        match=r"format 'cocoo' is not one of coco, voc, yolo, imagenet_det \(did you mean 'coco'\?\)",
    ):
        read_annotations(tmp_path, "val", format="cocoo")
    with pytest.raises(UserError, match="holds no yolo data; it holds coco, voc"):
        read_annotations(tmp_path, "val", format="yolo")


def test_nothing_known_in_the_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"holds no known data set: .* found notes.txt"):
        read_annotations(tmp_path, None)
    with pytest.raises(UserError, match="does not exist"):
        read_annotations(tmp_path / "nowhere", None)


def test_drawn_images_are_a_data_set(tmp_path):
    annotations, _ = read_annotations(resolve_directory("shapes:12:3"), "val")
    assert len(annotations) == 12
    assert "test" in list_splits(resolve_directory("shapes"))


def test_relative_folders_are_looked_up_in_order(tmp_path, monkeypatch):
    data, here = tmp_path / "data", tmp_path / "here"
    for place in (data / "one", here / "datasets" / "one", here / "datasets" / "two", here / "three"):
        place.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("DETRES_DATA", str(data))
    assert resolve_directory("one") == data / "one"
    assert resolve_directory("two") == here / "datasets" / "two"
    assert resolve_directory("three") == here / "three"
    assert resolve_directory(str(here / "three")) == here / "three"
    with pytest.raises(
        UserError, match=f"data 'four' does not exist; tried {data / 'four'}, datasets/four, four"
    ):
        resolve_directory("four")
    monkeypatch.delenv("DETRES_DATA")
    with pytest.raises(UserError, match="DETRES_DATA is not set"):
        resolve_directory("four")


def test_union_maps_by_name_not_by_number(tmp_path):
    """The second source has the same names under other ids: cat is 1 and dog 2 there, dog 3 and cat 7 in the first."""
    make_data.coco(tmp_path / "a", "train")
    objects = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]
    images = [{"id": 1, "file_name": "c.png", "width": 100, "height": 80}]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    make_data.coco(tmp_path / "b", "train", images=images, annotations=objects, categories=categories)
    union, reports = read_sources([source(tmp_path / "a", "train"), source(tmp_path / "b", None)])
    assert (union.class_names, union.category_ids) == (("dog", "cat"), (3, 7))
    assert union.offsets.tolist() == [0, 2, 3, 4]
    assert union.labels.tolist() == [1, 0, 0, 1]
    np.testing.assert_array_equal(union.boxes[3], [1, 2, 4, 6])
    assert [union.image_ids[i] for i in range(3)] == ["11", "5", "1"]
    assert len(reports) == 2


def test_union_of_declared_lists_that_differ(tmp_path):
    make_data.coco(tmp_path, "train")
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dogs"}]
    make_data.coco(tmp_path, "val", categories=categories)
    with pytest.raises(
        DataError, match=r"class names differ: .*\(dog, cat\).*\(dogs, cat\).*did you mean 'dog'"
    ):
        read_sources([source(tmp_path, "train"), source(tmp_path, "val")])


def test_union_joins_names_found_by_looking(tmp_path):
    make_data.voc(tmp_path / "a", {"train": {"x": make_data.xml([("wolf", (1, 1, 9, 9))])}})
    make_data.voc(tmp_path / "b", {"train": {"x": make_data.xml([("ant", (1, 1, 9, 9))])}})
    union, _ = read_sources([source(tmp_path / "a", "train"), source(tmp_path / "b", "train")])
    assert union.class_names == ("ant", "wolf")
    assert union.labels.tolist() == [1, 0]
    assert [union.image_ids[i] for i in range(2)] == ["1/x", "2/x"]


def test_a_image_in_two_sources_is_reported(tmp_path):
    make_data.voc(tmp_path, {"train": {"x": XML}, "trainval": {"x": XML}})
    _, reports = read_sources([source(tmp_path, "train"), source(tmp_path, "trainval")])
    assert reports[1].counts() == {"picture in two sources": 1}


def test_no_source():
    with pytest.raises(UserError, match="no data set is named"):
        read_sources([])


def test_classes_of_a_model(tmp_path):
    make_data.coco(tmp_path / "coco", "val")
    declared, _ = read_annotations(tmp_path / "coco", "val")
    turned = select_classes(declared, ["cat", "dog"])
    assert turned.labels.tolist() == [0, 1, 1]
    assert turned.category_ids == (7, 3)
    with pytest.raises(DataError, match=r"class names differ: .*cat, dog, eel.*dog, cat.*missing there: eel"):
        select_classes(declared, ["cat", "dog", "eel"])
    with pytest.raises(DataError, match="unknown: dog"):
        select_classes(declared, ["cat"])
    make_data.voc(tmp_path / "voc", {"train": {"x": make_data.xml([("ant", (1, 1, 9, 9))])}})
    found, _ = read_annotations(tmp_path / "voc", "train")
    assert select_classes(found, ["wolf", "ant"]).labels.tolist() == [1]


def test_union_of_real_sets(real_data):
    """The train and val of bccd are its trainval: 292 pictures, 3,941 boxes that are not of zero size."""
    union, _ = read_sources([source(real_data / "bccd", "train"), source(real_data / "bccd", "val", "voc")])
    whole, _ = read_annotations(real_data / "bccd", "trainval")
    assert len(union) == len(whole) == 292
    assert union.objects_per_class() == whole.objects_per_class()
