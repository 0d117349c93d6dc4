"""Files are whole or not there, and what stood there before stays until then."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from detres import files
from detres.errors import UserError


def only(path: Path) -> bool:
    """No other file lies beside `path`."""
    return list(path.parent.iterdir()) == [path]


def test_written_whole(tmp_path: Path):
    path = tmp_path / "new" / "a.txt"
    files.write_text(path, "é")
    assert path.read_text(encoding="utf-8") == "é"
    assert only(path)


def test_an_error_leaves_the_earlier_file(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    with pytest.raises(ZeroDivisionError), files.atomic_path(path) as beside:
        assert beside.suffix == ".txt"
        beside.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "earlier"
    assert only(path)


def test_ctrl_c_leaves_the_earlier_file(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    with pytest.raises(KeyboardInterrupt), files.atomic_path(path) as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "earlier"
    assert only(path)


@pytest.mark.parametrize("at", ["write", "sync"])
def test_no_space_is_one_line_and_leaves_the_earlier_file(tmp_path: Path, monkeypatch, at: str):
    path = tmp_path / "a.txt"
    path.write_text("earlier")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if at == "sync":
        monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError) as caught, files.atomic_path(path) as beside:
        beside.write_text("half")
        if at == "write":
            full()
    assert str(caught.value) == f"no space left on the device for {path}: free some or choose another folder"
    assert path.read_text() == "earlier"
    assert only(path)


def test_a_full_device_is_one_line(tmp_path: Path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(UserError, match="no space left on the device"), files.atomic_path(tmp_path / "x.bin"):
        full.write_bytes(b"x")


def test_a_place_that_is_a_file(tmp_path: Path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*a/b\.txt"):
        files.write_text(tmp_path / "a" / "b.txt", "x")


def test_json_refuses_nan_and_leaves_the_earlier_file(tmp_path: Path):
    path = tmp_path / "a.json"
    files.write_json(path, {"AP": None, "images": 3})
    earlier = path.read_text()
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"AP": float("nan")})
    assert path.read_text() == earlier == '{\n "AP": null,\n "images": 3\n}\n'
    assert only(path)


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    files.check_writable(None, tmp_path / "new" / "deep" / "a.json", tmp_path / "file")
    for path, message in (
        (tmp_path / "folder", "folder cannot be written: .*folder is in its place"),
        (tmp_path / "file" / "a.json", "cannot be written: .*file is in its place"),
        (Path("/"), "/ cannot be written: / is in its place"),
        (tmp_path / ("n" * 300) / "a.json", "cannot be written: File name too long"),
    ):
        with pytest.raises(UserError, match=message):
            files.check_writable(path)
    monkeypatch.setattr(files.os, "access", lambda place, mode: False)
    with pytest.raises(UserError, match=r"nothing may be written in \S+; choose another place"):
        files.check_writable(tmp_path / "a.json")
