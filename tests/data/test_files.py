"""Text and names as people's tools leave them: written here byte by byte."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import make_data
import pytest
from PIL import Image

from detres.data.decoding import read_header, read_image
from detres.data.files import IMAGE_SUFFIXES, read_text, search, visible, walk
from detres.data.readers import folders, yolo
from detres.errors import DataError


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_utf8_with_and_without_its_mark(tmp_path, start):
    path = tmp_path / "names.txt"
    path.write_bytes(start + "café\r\nno\n".encode())
    assert read_text(path) == "café\nno\n"


def test_what_cannot_be_read_is_one_line_with_the_place(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"^[^\n]*names\.txt: not UTF-8 text \(byte 3\); save it as UTF-8$"):
        read_text(path)
    with pytest.raises(DataError, match=r"none\.txt: cannot be read: No such file or directory$"):
        read_text(tmp_path / "none.txt")


def test_names_that_begin_with_a_dot_are_hidden():
    paths = [Path("a/1.jpg"), Path("a/._1.jpg"), Path(".a/2.jpg"), Path(".DS_Store")]
    assert list(visible(paths)) == [paths[0], paths[2]]
    assert list(visible([])) == []
    below = [Path("d/a/1.jpg"), Path("d/.a/2.jpg"), Path("d/b/.c/3.jpg")]
    assert list(visible(below, Path("d"))) == below[:1]


@pytest.fixture
def linked(tmp_path):
    """A folder with two loops, a link to elsewhere, a folder with two names, and what cannot be read."""
    root = tmp_path / "root"
    for name in ("a/1.png", "a/deep/2.jfif", "b/3.GIF", "b/x.heic", "a/.hidden/4.png", "__MACOSX/5.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"-")
    (tmp_path / "other" / "inner").mkdir(parents=True)
    (tmp_path / "other" / "inner" / "6.avif").write_bytes(b"-")
    for link, target in (
        ("a/self", "."),
        ("b/up", "../.."),
        ("b/twin", "../a"),
        ("c", "../other"),
        ("b/d", "../../other/inner"),
        ("gone.png", "nowhere.png"),
    ):
        (root / link).symlink_to(target)
    os.mkfifo(root / "pipe.png")
    return root


def test_walk_lists_each_real_folder_once(linked):
    listing = walk(linked)
    assert sorted(listing.files) == ["a/1.png", "a/deep/2.jfif", "b/3.GIF", "b/d/6.avif", "b/x.heic"]
    assert sorted(listing.folders) == ["a", "a/deep", "b", "b/d", "c"]
    unread = {name: (kind, why) for kind, name, why in listing.unread}
    assert set(unread) == {"a/self", "b/up", "b/twin", "c/inner", "b/x.heic", "gone.png", "pipe.png"}
    assert unread["b/twin"] == ("folder linked twice", "leads to a folder that is read already")
    assert unread["gone.png"] == ("broken link", "leads nowhere")
    assert unread["b/x.heic"] == ("picture not read", ".heic is not decoded: save it as .png or .jpg")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a/1.png", "a/deep/2.jfif", "b/3.GIF", "b/d/6.avif", "b/x.heic"]),
        ("**/*.png", ["a/1.png"]),
        ("**/d*/*", ["a/deep/2.jfif", "b/d/6.avif"]),
        ("*/**/6.*", ["b/d/6.avif"]),
        ("a/**", ["a/1.png", "a/deep/2.jfif"]),
        ("**/deep", ["a/deep/2.jfif"]),
        ("a/*.png", ["a/1.png"]),
    ],
)
def test_search(linked, pattern, expected):
    found = search(os.path.join(linked, pattern))
    assert sorted({os.path.relpath(os.path.realpath(name), linked.parent) for name in found.files}) == sorted(
        {os.path.relpath(os.path.realpath(linked / name), linked.parent) for name in expected}
    )


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_images_of_every_suffix_are_decoded(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    image = Image.new("1" if suffix == ".pbm" else "L" if suffix == ".pgm" else "RGB", (60, 40))
    image.save(path, "JPEG" if suffix in (".jfif", ".jpe") else None)
    assert read_image(path).shape == (40, 60, 3)
    assert read_header(path) == (40, 60, 1)


def test_readers_name_what_they_pass_over(linked):
    for split in ("train", "val"):
        make_data.write_image(linked.parent / "tree" / split / "a" / "1.png")
    tree = linked.parent / "tree"
    (tree / "train" / "a" / "2.heic").write_bytes(b"-")
    (tree / "train" / "a" / "up").symlink_to("..")
    labels, report = folders.read(tree, "train")
    assert len(labels) == 1
    assert report.counts() == {"picture not read": 1, "folder linked twice": 1}
    assert folders.read(tree, "val")[1].counts() == {}
    make_data.yolo(tree / "yolo", {"1": ""})
    (tree / "yolo" / "images" / "train" / "x.dng").write_bytes(b"-")
    assert yolo.scan(tree / "yolo", "train")[1].report.counts() == {"picture not read": 1}


def test_archives_name_what_they_pass_over(tmp_path):
    image = make_data.write_image(tmp_path / "1.png")
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        for name in ("a/1.png", "b/1.png", "a/2.heic", "__MACOSX/a/3.heic"):
            archive.write(image, name)
    labels, report = folders.read(tmp_path / "tree.zip", None)
    assert (len(labels), report.counts()) == (2, {"picture not read": 1})
