"""Text and names as people's tools leave them: written here byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from detres.data.files import read_text, visible
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
