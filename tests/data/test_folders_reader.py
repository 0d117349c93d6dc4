"""Class-per-folder trees on disk and in archives: truth is the tree that the test makes, and known counts."""

from __future__ import annotations

import tarfile
import zipfile

import make_data
import numpy as np
import pytest

from detres.data.decoding import read_image
from detres.data.readers import folders
from detres.errors import DataError

TREE = ["train/ant/1.png", "train/ant/2.png", "train/bee/1.png", "val/bee/3.png"]


@pytest.fixture
def tree(tmp_path):
    for number, name in enumerate(TREE):
        make_data.write_image(tmp_path / "tree" / name, 12, 10, seed=number)
    return tmp_path / "tree"


def packed(tree, kind, prefix="", names=TREE):
    path = tree.parent / f"packed.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.write(tree / name, prefix + name)
    else:
        with tarfile.open(path, "w") as archive:
            for name in names:
                archive.add(tree / name, prefix + name)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_classes_are_those_of_all_splits(tree, kind):
    path = tree if kind == "folder" else packed(tree, kind)
    assert folders.splits(path) == ["train", "val"]
    train, _ = folders.read(path, "train")
    val, _ = folders.read(path, "val")
    assert train.class_names == val.class_names == ("ant", "bee")
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 0, 1], [1])
    np.testing.assert_array_equal(read_image(val.paths[0]), read_image(tree / "val/bee/3.png"))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_hidden_files_are_no_images(tree, kind):
    """What macOS leaves beside each file on a foreign disk and packs with it: `._1.png`, no picture."""
    hidden = [name.replace("ant/", "ant/._").replace("bee/", "bee/._") for name in TREE]
    for name in hidden:
        (tree / name).write_bytes(b"\x00\x05\x16\x07Mac OS X")
    path = tree if kind == "folder" else packed(tree, kind, names=[*TREE, *hidden])
    train, report = folders.read(path, "train")
    assert (train.labels.tolist(), report.counts()) == ([0, 0, 1], {})


def test_a_common_root_inside_an_archive_is_passed(tree):
    path = packed(tree, "zip", prefix="tiny-imagenet-200/")
    assert folders.splits(path) == ["train", "val"]
    assert len(folders.read(path, "train")[0]) == 3


def test_without_splits(tree):
    labels, _ = folders.read(tree / "train", None)
    assert (len(labels), labels.class_names) == (3, ("ant", "bee"))
    assert folders.splits(tree / "train") == ["all"]


def test_words_name_folders_and_stay_unique(tmp_path):
    for folder in ("n1", "n2", "n3"):
        make_data.write_image(tmp_path / "train" / folder / "images" / "1.png", 12, 10)
    (tmp_path / "words.txt").write_text("n1\tgoldfish, Carassius auratus\nn2\tcrane\nn3\tcrane, bird\n")
    assert folders.read(tmp_path, "train")[0].class_names == ("goldfish", "crane", "crane, bird")


def test_errors(tree, tmp_path):
    with pytest.raises(DataError, match="has several splits; choose one with --split; it has train, val"):
        folders.read(tree, None)
    with pytest.raises(DataError, match="split 'test' is not there; it has train, val"):
        folders.read(tree, "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty data set"):
        folders.read(tmp_path / "empty", None)
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(DataError, match=r"is not a folder, a \.zip or an uncompressed .tar"):
        folders.read(tmp_path / "text.zip", None)


def test_tiny_imagenet(real_data):
    path = real_data / "tiny-imagenet.zip"
    assert folders.splits(path) == ["train", "val"]
    train, _ = folders.read(path, "train")
    val, _ = folders.read(path, "val")
    assert np.bincount(train.labels).tolist() == [330] * 50
    assert np.bincount(val.labels).tolist() == [50] * 50
    assert train.class_names == val.class_names
    assert train.class_names[0] == "goldfish"
    assert read_image(train.paths[0]).shape == (64, 64, 3)


def test_cifar10(real_data):
    path = real_data / "cifar10.zip"
    train, _ = folders.read(path, "train")
    test, _ = folders.read(path, "test")
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.class_names[:2] == ("airplane", "automobile")
    assert read_image(test.paths[0]).shape == (32, 32, 3)


def test_class_folder_without_images(tree):
    (tree / "train" / "cat").mkdir()
    (tree / "train" / "cat" / "notes.txt").write_text("to do")
    (tree / "train" / ".hidden").mkdir()
    with pytest.raises(
        DataError, match="class folder without pictures: train/cat; put pictures in, or remove it"
    ):
        folders.read(tree, "train")
    val, report = folders.read(tree, "val")  # lacks ants: said, not refused
    assert (len(val), report.counts()) == (1, {"class without pictures": 1})
    path = tree.parent / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train/cat/", "")
        for name in TREE:
            archive.write(tree / name, name)
    with pytest.raises(DataError, match="class folder without pictures: train/cat"):
        folders.read(path, "train")


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    ("name", "text", "inside"),
    [
        ("val.txt", "p1.png 0\np2.png 1\n", "val"),
        ("val_labels.txt", "p1.png ant\n\np2.png bee\n", "val"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\np1,ant 5 8 9 9\np2,bee 1 1 2 2\n", "val"),
        ("val/val_annotations.txt", "p1.png\tant\t0\t1\t2\t3\np2.png\tbee\t0\t0\t1\t1\n", "val/images"),
    ],
)
def test_a_flat_split_has_its_classes_from_a_list(tmp_path, kind, name, text, inside):
    """ImageNet's validation pictures, as Caffe, Kaggle and Tiny-ImageNet have them."""
    root = tmp_path / "tree"
    images = [
        "train/ant/1.png",
        "train/bee/2.png",
        f"{inside}/p1.png",
        f"{inside}/p2.png",
        f"{inside}/p3.png",
    ]
    for number, member in enumerate(images):
        make_data.write_image(root / member, 12, 10, seed=number)
    (root / name).write_text(text)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
            for member in [*images, name]:
                archive.write(root / member, member)
    path = root if kind == "folder" else tmp_path / "tree.zip"
    val, report = folders.read(path, "val")
    assert (val.labels.tolist(), val.class_names) == ([0, 1], ("ant", "bee"))
    assert report.counts() == {"picture without class": 1}  # p3
    np.testing.assert_array_equal(read_image(val.paths[1]), read_image(root / f"{inside}/p2.png"))
    assert folders.read(path, "train")[0].labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("p1.png 2", r"val\.txt:2: label 2 is out of range 0\.\.1"),
        ("p1.png -1", r"val\.txt:2: label -1 is out of range"),
        ("p1.png anr", r"val\.txt:2: no class folder 'anr' \(did you mean 'ant'\?\)"),
        ("p1.png", r"val\.txt:2: a picture and its class are needed, not 'p1.png'"),
        ("p0.png 1", r"val\.txt:2: picture 'p0.png' has two classes"),
    ],
)
def test_a_wrong_line_of_a_list_is_named(tmp_path, line, said):
    for number, member in enumerate(["train/ant/1.png", "train/bee/2.png", "val/p0.png", "val/p1.png"]):
        make_data.write_image(tmp_path / member, 12, 10, seed=number)
    (tmp_path / "val.txt").write_text(f"p0.png 0\n{line}\n")
    with pytest.raises(DataError, match=said):
        folders.read(tmp_path, "val")


def test_truncated_archive_is_one_line(tree):
    for kind in ("zip", "tar"):
        path = packed(tree, kind)
        path.write_bytes(path.read_bytes()[:900])
        with pytest.raises(
            DataError, match=rf"packed\.{kind} is truncated or damaged \([^\n]*\): copy it again$"
        ):
            folders.read(path, "train")


@pytest.mark.parametrize("inside", ["test/images", "test"])
def test_a_flat_split_without_a_list_is_no_class(tmp_path, inside):
    """Tiny-ImageNet as it is published: the pictures of `test` have no public classes."""
    for number, name in enumerate([*TREE, f"{inside}/p1.png", f"{inside}/p2.png"]):
        make_data.write_image(tmp_path / name, 12, 10, seed=number)
    assert folders.splits(tmp_path) == ["test", "train", "val"]
    for split in ("train", "val"):
        found, report = folders.read(tmp_path, split)
        assert found.class_names == ("ant", "bee")
        assert "images" not in str(report.counts())
    with pytest.raises(
        DataError,
        match=r"'test' lie in no class folders.*looked for test\.txt and .*test/test_annotations\.txt",
    ):
        folders.read(tmp_path, "test")


@pytest.mark.parametrize(
    ("kind", "prefix"), [("tar", "./"), ("tar", "./tiny/"), ("zip", "tiny/"), ("zip", "./")]
)
def test_lists_and_words_are_found_under_any_root(tmp_path, kind, prefix):
    texts = {
        "words.txt": "ant\temmet, pismire\nbee\tbumblebee\n",
        "val/val_annotations.txt": "p1.png bee 0 0\n",
    }
    for number, name in enumerate(["train/ant/1.png", "train/bee/2.png", "val/images/p1.png"]):
        make_data.write_image(tmp_path / name, 12, 10, seed=number)
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    path = tmp_path / f"packed.{kind}"
    with zipfile.ZipFile(path, "w") if kind == "zip" else tarfile.open(path, "w") as archive:
        write = archive.write if isinstance(archive, zipfile.ZipFile) else archive.add
        for name in ["train/ant/1.png", "train/bee/2.png", "val/images/p1.png", *texts]:
            write(tmp_path / name, prefix + name)
    val, _ = folders.read(path, "val")
    assert (val.labels.tolist(), val.class_names) == ([1], ("emmet", "bumblebee"))
    np.testing.assert_array_equal(read_image(val.paths[0]), read_image(tmp_path / "val/images/p1.png"))
