"""Pictures by class: folders, archives, drawn forms; classes agree by name."""

from __future__ import annotations

import functools
import operator
import zipfile

import numpy as np
import pytest

from detres.classification.data import read_image_labels, relabel_images, sources_of
from detres.data.config import Source
from detres.data.drawing import write_image
from detres.data.records import ImageLabels, Strings
from detres.errors import DataError


@pytest.fixture
def tree(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for number in range(2):
                write_image(tmp_path / "tree" / split / name / f"{number}.png", np.zeros((8, 8, 3), np.uint8))
    return tmp_path / "tree"


def test_folder_and_archive_are_the_same_images(tree, tmp_path):
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        for path in sorted(tree.rglob("*.png")):
            archive.write(path, path.relative_to(tree))
    in_folder = read_image_labels([Source(dir=str(tree), split="train")])
    in_archive = read_image_labels([Source(dir=str(tmp_path / "tree.zip"), split="train")])
    assert in_folder.class_names == in_archive.class_names == ("cat", "dog")
    assert in_folder.labels.tolist() == in_archive.labels.tolist() == [0, 0, 1, 1]


def test_splits_that_a_folder_offers(tree):
    train, val = sources_of(str(tree))
    assert [source.split for source in (*train, *val)] == ["train", "test"]
    assert [source.split for source in functools.reduce(operator.iadd, sources_of("shapes:20"), [])] == [
        "train",
        "val",
    ]
    train, val = sources_of(str(tree / "train"))
    assert (train[0].split, val) == ("all", [])


def test_drawn_forms_by_count_and_seed():
    default = read_image_labels([Source(dir="shapes", split="val")])
    some = read_image_labels([Source(dir="shapes:12:3", split="val")], side=48)
    assert (len(default), len(some)) == (1000, 12)
    assert some.paths[11] == "shapes://class/48/val/3/11"


def test_union_of_sources_with_the_same_classes(tree):
    both = read_image_labels([Source(dir=str(tree), split="train"), Source(dir=str(tree), split="test")])
    assert both.labels.tolist() == [0, 0, 1, 1] * 2
    assert both.paths[4].endswith("test/cat/0.png")


def test_classes_that_differ_name_both_sides(tree):
    with pytest.raises(
        DataError,
        match=r"list has 1 \(ant\), .* has 2 \(cat, dog\); missing there: ant;",
    ):
        relabel_images(read_image_labels([Source(dir=str(tree), split="train")]), ("ant",))


def test_labels_follow_the_expected_order():
    images = ImageLabels(Strings(["p", "q"]), np.array([0, 1]), ("cat", "dog"))
    assert relabel_images(images, ("dog", "cat")).labels.tolist() == [1, 0]


def test_no_source_is_refused():
    with pytest.raises(DataError, match="names no"):
        read_image_labels([])
