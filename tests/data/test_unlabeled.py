"""Splits whose objects are not public: COCO's image_info files and VOC's lists without XML, in folders made by hand."""

from __future__ import annotations

import json

import make_data
import pytest

from detres.data.formats import list_splits, read_annotations, read_unlabeled
from detres.errors import DataError


@pytest.fixture
def coco(tmp_path):
    """`val2017` with annotations; `test-dev2017` with pictures of `test2017/` alone."""
    root = tmp_path / "coco"
    path = make_data.coco(root, "val2017")
    content = json.loads(path.read_text())
    del content["annotations"]
    content["images"] = [{"id": 77, "file_name": "t.png", "width": 60, "height": 40}]
    (path.parent / "image_info_test-dev2017.json").write_text(json.dumps(content))
    make_data.write_image(root / "test2017" / "t.png", 60, 40)
    return root


@pytest.fixture
def voc(tmp_path):
    """`val` with XML; of `test`'s three pictures one has an XML, of another task."""
    root = tmp_path / "VOC2012"
    make_data.voc(root, {"val": {"a": make_data.xml([("cat", (1, 1, 5, 5))])}})
    for stem in ("b", "c", "d"):
        make_data.write_image(root / "JPEGImages" / f"{stem}.jpg", 30, 20)
    (root / "ImageSets" / "Main" / "test.txt").write_text("b\nc\nd\n")
    (root / "Annotations" / "c.xml").write_text(make_data.xml([("head", (1, 1, 5, 5))]))
    return root


@pytest.mark.parametrize("split", ["test-dev2017", "test-dev"])
def test_coco_images_and_classes(coco, split):
    found = read_unlabeled(coco, split)
    assert found is not None
    assert [found.image_ids[0], found.paths[0]] == ["77", str(coco / "test2017" / "t.png")]
    assert (found.class_names, found.category_ids) == (("dog", "cat"), (3, 7))
    assert found.sizes.tolist() == [[40, 60]]
    assert (len(found), len(found.labels), found.offsets.tolist()) == (1, 0, [0, 0])


def test_splits_with_annotations_stay_what_they_were(coco, voc):
    assert list_splits(coco) == ["val2017"]
    for folder, split in (
        (coco, "val2017"),
        (coco, "val"),
        (coco, None),
        (coco, "none"),
        (voc, "val"),
        (voc, "none"),
    ):
        assert read_unlabeled(folder, split) is None
    assert len(read_annotations(coco, "val")[0]) == 2
    with pytest.raises(DataError, match="missing annotation"):
        read_annotations(voc, "test")


def test_voc_images(voc):
    found = read_unlabeled(voc, "test")
    assert found is not None
    assert [found.image_ids[i] for i in range(3)] == ["b", "c", "d"]
    assert found.paths[2] == str(voc / "JPEGImages" / "d.jpg")
    assert found.sizes.tolist() == [[20, 30]] * 3
    assert (found.class_names, len(found.labels)) == ((), 0)


def test_images_that_are_missing(coco, voc):
    (coco / "test2017" / "t.png").unlink()
    with pytest.raises(DataError, match="missing picture"):
        read_unlabeled(coco, "test-dev2017")
    found = read_unlabeled(coco, "test-dev2017", need_images=False)
    assert found is not None
    assert found.sizes.tolist() == [[40, 60]]
    assert read_unlabeled(voc, "test", need_images=False) is None  # sizes are read off the pictures
    (voc / "JPEGImages" / "d.jpg").unlink()
    with pytest.raises(DataError, match="'d': missing picture"):
        read_unlabeled(voc, "test")
