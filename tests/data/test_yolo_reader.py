"""YOLO labels: truth is worked out by hand for pictures of 100 x 80, and the known counts of the real sample."""

from __future__ import annotations

import re

import make_data
import numpy as np
import pytest

from detres.data.formats import list_splits, read_annotations
from detres.data.readers import yolo
from detres.errors import DataError


def one(tmp_path, text):
    make_data.yolo(tmp_path, {"a": text})
    return read_annotations(tmp_path, "train")


def test_fractions_become_pixels(tmp_path):
    annotations, report = one(tmp_path, "1 0.5 0.5 0.2 0.1\n0 0.25 0.25 0.5 0.5\n\n")
    np.testing.assert_allclose(annotations.boxes, [[40, 36, 60, 44], [0, 0, 50, 40]], atol=1e-5)
    assert annotations.labels.tolist() == [1, 0]
    assert (annotations.class_names, annotations.category_ids) == (("cat", "dog"), (0, 1))
    assert report.counts() == {}


def test_polygon_gives_its_box(tmp_path):
    annotations, _ = one(tmp_path, "0 0.1 0.5 0.3 0.25 0.2 0.75\n")
    np.testing.assert_allclose(annotations.boxes, [[10, 20, 30, 60]], atol=1e-5)


def test_sizes_are_those_of_the_upright_image(tmp_path):
    make_data.yolo(tmp_path, {"a": "0 0.5 0.5 1 1\n"})
    make_data.write_image(tmp_path / "images" / "train" / "a.png", 100, 80, exif_orientation=6)
    annotations, _ = read_annotations(tmp_path, "train")
    assert annotations.sizes.tolist() == [[100, 80]]
    np.testing.assert_allclose(annotations.boxes, [[0, 0, 80, 100]])


def test_strays_are_counted(tmp_path):
    make_data.yolo(tmp_path, {"a": "0 0.5 0.5 1 1\n"})
    make_data.write_image(tmp_path / "images" / "train" / "b.png")
    (tmp_path / "labels" / "train" / "c.txt").write_text("0 0.5 0.5 1 1\n")
    annotations, report = read_annotations(tmp_path, "train")
    assert (len(annotations), len(annotations.boxes)) == (2, 1)
    assert report.counts() == {"label without picture": 1, "picture without label file": 1}


def test_names_without_a_list_are_the_numbers_of_all_splits(tmp_path):
    make_data.yolo(tmp_path, {"a": "0 0.5 0.5 1 1\n"}, names=None)
    make_data.yolo(tmp_path, {"b": "2 0.5 0.5 1 1\n"}, split="val", names=None)
    annotations, _ = read_annotations(tmp_path, "train")
    assert (annotations.class_names, annotations.category_ids) == (("0", "1", "2"), None)


@pytest.mark.parametrize("names", ["[cat, dog]", "{0: cat, 1: dog}"])
@pytest.mark.parametrize("train", ["images/train", "../images/train", "[images/train]", "list.txt"])
def test_data_yaml(tmp_path, names, train):
    make_data.yolo(tmp_path, {"a": "1 0.5 0.5 1 1\n"}, names=None)
    (tmp_path / "data.yaml").write_text(f"names: {names}\ntrain: {train}\nnc: 2\n")
    (tmp_path / "list.txt").write_text("./images/train/a.png\n")
    annotations, _ = read_annotations(tmp_path, "train")
    assert list_splits(tmp_path) == ["train"]
    assert (annotations.class_names, annotations.labels.tolist()) == (("cat", "dog"), [1])


@pytest.mark.parametrize(
    "names", ["[yes, 010]", "[no, off]", "[1.10, 2.0]", "{0: no, 1: 1.10}", "[null, 1e3]", "['no', \"2_0\"]"]
)
def test_class_names_are_taken_as_they_are_written(tmp_path, names):
    make_data.yolo(tmp_path, {"a": "1 0.5 0.5 1 1\n"}, names=None)
    (tmp_path / "data.yaml").write_text(f"names: {names}\ntrain: images/train\nval: null\n")
    written = re.sub(r"[\[\]'\"{}]|[01]: ", "", names).split(", ")
    assert list(read_annotations(tmp_path, "train")[0].class_names) == written
    assert list_splits(tmp_path) == ["train"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("{cat: 0, dog: 1}", "names: 'cat' is not a whole number from 0 on"),
        ("{0: cat, 2: dog}", "names are numbered 0, 2, not 0 to 1"),
        ("{0: cat, 00: dog}", "names are numbered 0, 0, not 0 to 1"),
        ("3", "names: should be a list of names or a mapping of numbers to names, not '3'"),
        ("cat", "names: should be a list of names or a mapping of numbers to names, not 'cat'"),
        ("[cat, [dog]]", r"names: number 1 is \['dog'\], not a name"),
        ("\n- cat\n- \n", "names: number 1 is '', not a name"),
        ("[cat, cat]", "class names cat occur twice"),
        ("[cat", "line 2: malformed YAML"),
        ("[c\0at]", "malformed YAML: unacceptable character"),
        ("[cat]\ndate: 2024-13-01", "malformed YAML: month must be in 1..12"),
    ],
)
def test_names_that_are_none(tmp_path, names, message):
    make_data.yolo(tmp_path, {"a": "0 0.5 0.5 1 1\n"}, names=None)
    (tmp_path / "data.yaml").write_text(f"names: {names}\ntrain: images/train\n")
    with pytest.raises(DataError, match=message) as raised:
        read_annotations(tmp_path, "train")
    assert "data.yaml" in str(raised.value) or names == "[cat, cat]"
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["data.yaml", "classes.txt", "list.txt", "labels/train/a.txt"])
@pytest.mark.parametrize("names", [None, ("cat", "dog")])
def test_text_that_is_not_utf8(tmp_path, name, names):
    make_data.yolo(tmp_path, {"a": "1 0.5 0.5 1 1\n", "b": "1 0.5 0.5 1 1\n"}, names=names)
    if name == "list.txt":
        (tmp_path / "data.yaml").write_text("names: [cat, dog]\ntrain: list.txt\n")
    (tmp_path / name).write_bytes(b"1 0.5 caf\xe9 1 1\n")
    with pytest.raises(DataError, match=rf"{name}: .*not UTF-8 text \(byte 9\); save it as UTF-8$"):
        read_annotations(tmp_path, "train")


def test_label_file_that_is_not_utf8_is_one_finding_of_many(tmp_path):
    make_data.yolo(
        tmp_path, {"a": "0 0.5 0.5 1 1\n", "b": "0 0.5 0.5 1 1\n", "c": "1 0.5 0.5 1 1\n"}, names=None
    )
    for stem in ("a", "b"):
        (tmp_path / "labels" / "train" / f"{stem}.txt").write_text("0 0.5 0.5 1 1\n", encoding="utf-16")
    annotations, findings = yolo.scan(tmp_path, "train")
    assert [error.kind for error in findings.errors] == ["malformed label"] * 2
    assert (annotations.labels.tolist(), annotations.class_names) == ([1], ("0", "1"))


def test_hidden_files_are_no_data(tmp_path):
    """What macOS leaves beside each file on a foreign disk: `._a.png`, no picture, and its like of every text file."""
    make_data.yolo(tmp_path, {"a": "1 0.5 0.5 1 1\n"}, names=None)
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\ntrain: images/train\n")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    for with_yaml in (True, False):
        for path in files:
            path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07Mac OS X\xff9 ")
        (tmp_path / "labels" / ".cache").mkdir(exist_ok=True)
        annotations, report = read_annotations(tmp_path, "train")
        assert [annotations.paths[i] for i in range(len(annotations))] == [
            str(tmp_path / "images/train/a.png")
        ]
        assert report.counts() == {}
        assert list_splits(tmp_path) == ["train"]
        if with_yaml:
            (tmp_path / "data.yaml").unlink()


def test_split_folders_with_images_and_labels_inside(tmp_path):
    make_data.write_image(tmp_path / "valid" / "images" / "a.png")
    (tmp_path / "valid" / "labels").mkdir()
    (tmp_path / "valid" / "labels" / "a.txt").write_text("0 0.5 0.5 1 1\n")
    assert list_splits(tmp_path) == ["valid"]
    assert len(read_annotations(tmp_path, "valid")[0].boxes) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 1 1\n0 0.5 x 1 1\n", "a.txt, line 2: malformed label"),
        ("0 0.5 0.5 1\n", "a.txt, line 1: malformed label: 4 values"),
        ("0 0.5 0.5 1 1 0.9\n", "a.txt, line 1: malformed label: 6 values"),
        ("0.5 0.5 0.5 1 1\n", "class 0.5 is not a whole number"),
        ("2 0.5 0.5 1 1\n", r"unknown category: class 2; there are 2 \(0 to 1\)"),
        ("0 nan 0.5 1 1\n", "a.txt, line 1: coordinate not finite"),
        ("0 50 40 20 10\n", "boxes look like pixels: 100%"),
    ],
)
def test_what_is_an_error(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        one(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("0 0.5 0.5 0 0.1\n", "zero-size box"),
        ("0 1.2 0.5 0.1 0.1\n", "box outside the picture"),
        ("0 0.9 0.5 0.4 0.1\n", "box clipped"),
    ],
)
def test_what_is_dropped_or_clipped_with_a_count(tmp_path, text, kind):
    _, report = one(tmp_path, text)
    assert report.counts() == {kind: 1}
    assert "a.txt, line 1" in report.defects[0].where


def test_unreadable_image(tmp_path):
    make_data.yolo(tmp_path, {"a": "0 0.5 0.5 1 1\n"})
    (tmp_path / "images" / "train" / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"a\.png: unreadable picture"):
        read_annotations(tmp_path, "train")


def test_coco128(real_data):
    """60 pictures, 80 names, the strays that data/README names, and every value against numpy's reading."""
    annotations, report = read_annotations(real_data / "coco128", "train2017")
    assert (len(annotations), len(annotations.class_names), annotations.class_names[0]) == (60, 80, "person")
    assert report.counts() == {"label without picture": 2, "picture without label file": 2}
    named = "".join(defect.where for defect in report.defects)
    assert all(f"000000000{number}." in named for number in (250, 508, 656, 659))
    for index in range(len(annotations)):
        label = real_data / "coco128" / "labels" / "train2017" / f"{annotations.image_ids[index]}.txt"
        if not label.is_file():
            continue
        truth = np.loadtxt(label, ndmin=2)
        rows = annotations.objects(index)
        height, width = annotations.sizes[index]
        boxes = annotations.boxes[rows]
        assert annotations.labels[rows].tolist() == truth[:, 0].astype(int).tolist()
        sides = (boxes[:, 2:] - boxes[:, :2]) / [width, height]
        np.testing.assert_allclose(sides, truth[:, 3:5], atol=2e-5)
