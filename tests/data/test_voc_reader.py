"""VOC XML: truth is what the tests write into the files, and the counts that the real sets are known to have."""

from __future__ import annotations

import make_data
import numpy as np
import pytest

from detres.data.formats import list_splits, read_annotations
from detres.errors import DataError

PART = "<difficult>1</difficult><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"


def one(tmp_path, text):
    make_data.voc(tmp_path, {"train": {"a": text}})
    return read_annotations(tmp_path, "train")


def test_box_is_one_based_and_inclusive(tmp_path):
    """(1, 1, 100, 80) is a whole picture of 100 x 80: (0, 0, 100, 80)."""
    annotations, report = one(
        tmp_path, make_data.xml([("cell", (1, 1, 100, 80)), ("cell", (11, 21, 30.5, 40))])
    )
    np.testing.assert_array_equal(annotations.boxes, [[0, 0, 100, 80], [10, 20, 30.5, 40]])
    assert annotations.areas.tolist() == [8000.0, 410.0]
    assert report.counts() == {}


def test_difficult_is_kept_and_parts_are_not_objects(tmp_path):
    annotations, _ = one(tmp_path, make_data.xml([("person", (1, 1, 50, 50))], extra=PART))
    assert annotations.difficult.tolist() == [True]
    assert annotations.objects_per_class()["person"] == 1
    assert len(annotations.class_names) == 20


def test_class_names_are_those_of_all_splits(tmp_path):
    texts = {name: make_data.xml([(name, (1, 1, 9, 9))]) for name in ("wolf", "ant")}
    make_data.voc(tmp_path, {"train": {"a": texts["wolf"]}, "test": {"b": texts["ant"]}})
    for split in ("train", "test"):
        assert read_annotations(tmp_path, split)[0].class_names == ("ant", "wolf")


def test_several_years_are_united(tmp_path):
    text = make_data.xml([("dog", (1, 1, 9, 9))])
    make_data.voc(tmp_path / "VOCdevkit" / "VOC2007", {"trainval": {"1": text}, "test": {"2": text}})
    make_data.voc(tmp_path / "VOCdevkit" / "VOC2012", {"trainval": {"1": text}})
    annotations, _ = read_annotations(tmp_path, "trainval")
    assert [annotations.image_ids[i] for i in range(2)] == ["VOC2007/1", "VOC2012/1"]
    test, _ = read_annotations(tmp_path, "test")
    assert [test.image_ids[i] for i in range(len(test))] == [
        "2"
    ]  # of one year alone: as in its results files
    everything, _ = read_annotations(tmp_path, "all")
    assert [everything.image_ids[i] for i in range(3)] == ["VOC2007/1", "VOC2007/2", "VOC2012/1"]
    assert list_splits(tmp_path) == ["test", "trainval"]
    alone, _ = read_annotations(tmp_path / "VOCdevkit" / "VOC2012", "trainval")
    assert alone.image_ids[0] == "1"


def test_class_list_chooses_images_that_show_the_class(tmp_path):
    text = make_data.xml([("dog", (1, 1, 9, 9))])
    make_data.voc(tmp_path, {"train": {"a": text, "b": text}})
    (tmp_path / "ImageSets" / "Main" / "dog_train.txt").write_text("a -1\nb  1\n")
    assert list_splits(tmp_path) == ["train"]
    assert read_annotations(tmp_path, "dog_train")[0].image_ids[0] == "b"


@pytest.mark.parametrize(
    ("name", "rows", "is_split"),
    [
        ("dog_train", "a -1\nb  1\n\n", False),
        ("dog_train", "a  0\nb  1\n", False),
        ("train_train", "a -1\nb  1\n", False),
        ("train_small", "a\nb\n", True),  # begins with a class, ends with no list
        ("train_small", "a -1\nb  1\n", True),
        ("train_train", "a\nb\n", True),  # no flags
        ("dog_train", "a 2\nb 1\n", True),
        ("dog_train", "a 1 1\nb 1 1\n", True),
        ("dog_test", "a -1\nb  1\n", True),  # there is no list `test`
        ("wolf_train", "a -1\nb  1\n", True),
    ],
)
def test_what_is_the_list_of_a_class(tmp_path, name, rows, is_split):
    text = make_data.xml([("dog", (1, 1, 9, 9))])
    make_data.voc(tmp_path, {"train": {"a": text, "b": text}})
    (tmp_path / "ImageSets" / "Main" / f"{name}.txt").write_text(rows)
    assert list_splits(tmp_path) == sorted(["train", *([name] if is_split else [])])
    assert len(read_annotations(tmp_path, name)[0]) == 1 + (" -1" not in rows)


def test_list_that_is_not_utf8(tmp_path):
    make_data.voc(tmp_path, {"train": {"a": make_data.xml([])}})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes(b"a\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"train\.txt: not UTF-8 text \(byte 5\); save it as UTF-8$"):
        read_annotations(tmp_path, "train")


@pytest.mark.parametrize("encoding", ["gb2312", "shift_jis", "utf-32", "nonsense"])
def test_xml_in_an_encoding_that_is_not_read(tmp_path, encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n{make_data.xml([("cell", (1, 1, 9, 9))])}'
    make_data.voc(tmp_path, {"train": {"a": text, "b": make_data.xml([])}})
    with pytest.raises(
        DataError, match=rf"a\.xml: malformed XML: encoding '{encoding}' is not read; save it as UTF-8$"
    ):
        read_annotations(tmp_path, "train")


@pytest.mark.parametrize("flat", [False, True])
def test_hidden_files_are_no_data(tmp_path, flat):
    """What macOS leaves beside each file on a foreign disk: `._a.png`, no picture, and its like of every text file."""
    text = make_data.xml([("cell", (1, 1, 9, 9))])
    if flat:
        make_data.write_image(tmp_path / "train" / "a.png")
        (tmp_path / "train" / "a.xml").write_text(text)
    else:
        make_data.voc(tmp_path, {"train": {"a": text}})
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07Mac OS X <annotation\xff")
    assert list_splits(tmp_path) == ["train"]
    annotations, report = read_annotations(tmp_path, "train")
    assert (len(annotations), annotations.class_names, report.counts()) == (1, ("cell",), {})


@pytest.mark.parametrize(
    ("corners", "kind", "left"),
    [
        ((50, 40, 50, 40), "zero-size box", []),
        ((50, 40, 50, 60), "zero-size box", []),
        ((150, 40, 170, 60), "box outside the picture", []),
        ((0, 40, 20, 60), "box clipped", [[0, 39, 20, 60]]),
        ((90, 70, 101, 81), "box clipped", [[89, 69, 100, 80]]),
    ],
)
def test_what_is_dropped_or_clipped_with_a_count(tmp_path, corners, kind, left):
    annotations, report = one(tmp_path, make_data.xml([("cell", corners)]))
    assert report.counts() == {kind: 1}
    assert report.defects[0].where == f"{tmp_path / 'Annotations' / 'a.xml'}, line 3, cell"
    assert annotations.boxes.tolist() == left


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>\n<size></annotation>", "line 2: mismatched tag"),
        ("<annotation>\n<object><bndbox/></object></annotation>", "line 2: object without <name>"),
        (
            "<annotation>\n<object><name>a</name></object></annotation>",
            "line 2: object without <bndbox/xmin>",
        ),
        (make_data.xml([("cell", ("nan", 1, 5, 5))]), "a.xml, line 3, cell: coordinate not finite"),
        (make_data.xml([("cell", ("x", 1, 5, 5))]), "malformed XML"),
        (make_data.xml([("cell", (50, 40, 20, 10))]), "boxes look like xywh: 100%"),
        ("", "line 1: no element found"),
    ],
)
def test_what_is_an_error(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        one(tmp_path, text)


def test_entities_are_refused_unread(tmp_path):
    """Nested entities would expand to 10^9 letters; the document type is refused at its line, before any of it."""
    nested = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10))
    text = f'<?xml version="1.0"?>\n<!DOCTYPE a [<!ENTITY e0 "x">{nested}]>\n<annotation>&e9;</annotation>'
    with pytest.raises(DataError, match=r"a.xml: malformed XML: line 2: declares a document type"):
        one(tmp_path, text)


def test_missing_image_and_missing_annotation(tmp_path):
    make_data.voc(tmp_path, {"train": {"a": make_data.xml([])}})
    (tmp_path / "JPEGImages" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a.xml: missing picture"):
        read_annotations(tmp_path, "train")
    assert len(read_annotations(tmp_path, "train", need_images=False)[0]) == 1
    (tmp_path / "Annotations" / "a.xml").unlink()
    with pytest.raises(DataError, match=r"train.txt, 'a': missing annotation"):
        read_annotations(tmp_path, "train")


def test_image_listed_twice(tmp_path):
    make_data.voc(tmp_path, {"train": {"a": make_data.xml([])}})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\na\n")
    with pytest.raises(DataError, match="duplicate image id: 'a' is listed 2 times"):
        read_annotations(tmp_path, "train")


def test_unknown_split_and_empty_list(tmp_path):
    make_data.voc(tmp_path, {"train": {"a": make_data.xml([])}, "none": {}})
    with pytest.raises(DataError, match="split 'test' is not there or empty; it has none, train"):
        read_annotations(tmp_path, "test")
    with pytest.raises(DataError, match="split 'none' is not there or empty"):
        read_annotations(tmp_path, "none")


def test_size_zero_is_read_from_the_image(tmp_path):
    annotations, _ = one(tmp_path, make_data.xml([("cell", (1, 1, 100, 80))], size=(0, 0)))
    assert annotations.sizes.tolist() == [[80, 100]]


def test_flat_folders(tmp_path):
    """XML beside pictures in train/ and test/; or annotations/ and images/ without splits; a picture without XML."""
    for split in ("train", "test"):
        make_data.write_image(tmp_path / "beside" / split / f"{split}1.png")
        (tmp_path / "beside" / split / f"{split}1.xml").write_text(make_data.xml([("cell", (1, 1, 9, 9))]))
    assert list_splits(tmp_path / "beside") == ["test", "train"]
    assert read_annotations(tmp_path / "beside", "test")[0].image_ids[0] == "test1"
    for stem in ("1", "2"):
        make_data.write_image(tmp_path / "apart" / "images" / f"{stem}.png")
    (tmp_path / "apart" / "annotations").mkdir()
    (tmp_path / "apart" / "annotations" / "1.xml").write_text(make_data.xml([("cell", (1, 1, 9, 9))]))
    annotations, report = read_annotations(tmp_path / "apart", None)
    assert (len(annotations), report.counts()) == (1, {"picture without annotation file": 1})


def test_bccd(real_data):
    """The table of data/README, less the two boxes of no size that it names."""
    counts = {"train": (205, 2382, 214, 209), "val": (87, 968, 87, 83), "test": (72, 805, 71, 69)}
    dropped = {"train": ["BloodImage_00343"], "val": ["BloodImage_00338"], "test": []}
    for split, (images, red, white, platelets) in counts.items():
        annotations, report = read_annotations(real_data / "bccd", split)
        assert len(annotations) == images
        objects = {"Platelets": platelets, "RBC": red - len(dropped[split]), "WBC": white}
        assert annotations.objects_per_class() == objects
        assert report.counts() == ({"zero-size box": 1} if dropped[split] else {})
        for defect, stem in zip(report.defects, dropped[split], strict=True):
            assert stem in defect.where
            assert "RBC" in defect.where


def test_voc2007_mini(real_data):
    """Pictures and boxes of data/README; 548 difficult in all; parts are no objects; 20 classes in every split."""
    counts = {"train": (417, 1216), "val": (64, 208), "trainval": (481, 1424), "test": (294, 901)}
    difficult = 0
    for split, (images, objects) in counts.items():
        annotations, report = read_annotations(real_data / "voc2007_mini", split)
        assert (len(annotations), len(annotations.boxes)) == (images, objects)
        assert (len(annotations.class_names), report.counts()) == (20, {})
        difficult += int(annotations.difficult.sum()) if split in ("trainval", "test") else 0
    assert difficult == 548


def test_folders_of_labelling_tools(real_data):
    raccoon, _ = read_annotations(real_data / "raccoon", None)
    assert (len(raccoon), len(raccoon.boxes), raccoon.class_names) == (120, 127, ("raccoon",))
    assert list_splits(real_data / "fruit") == ["test", "train"]
    for split, images in (("train", 95), ("test", 31)):
        fruit, _ = read_annotations(real_data / "fruit", split)
        assert (len(fruit), fruit.class_names) == (images, ("apple", "banana", "orange"))
        assert (fruit.sizes > 0).all()
    kangaroo, _ = read_annotations(real_data / "kangaroo_oddities", "all")
    assert (len(kangaroo), len(kangaroo.boxes)) == (5, 15)
