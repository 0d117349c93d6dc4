"""Files are whole or not there, and what stood there before stays until then."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
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


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path: Path):
    path = tmp_path / "a.json"
    files.write_json(path, {"AP": float("nan"), "list": [1.5, float("inf"), {"x": (float("-inf"),)}], "n": 3})
    assert json.loads(path.read_text()) == {"AP": None, "list": [1.5, None, {"x": [None]}], "n": 3}
    assert only(path)


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a.txt", tmp_path / "link.txt"
    target.write_text("earlier")
    link.symlink_to(target)
    files.write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert only(target)
    with files.atomic_path(link, follow_link=False) as beside:
        beside.write_text("own")
    assert not link.is_symlink()
    assert (link.read_text(), target.read_text()) == ("own", "new")


def test_a_link_that_leads_nowhere_makes_its_file(tmp_path: Path):
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "new" / "a.txt")
    files.write_text(link, "new")
    assert (tmp_path / "new" / "a.txt").read_text() == "new"
    assert link.is_symlink()


def test_the_mode_is_kept(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    path.chmod(0o600)
    files.write_text(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    files.write_text(tmp_path / "b.txt", "new")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "b.txt").stat().st_mode) == 0o666 & ~mask


def test_a_pipe_gets_the_content_and_stays_a_pipe(tmp_path: Path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    files.write_text(pipe, "through")
    reader.join(10)
    assert read == ["through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    files.check_outputs([pipe, "/dev/null"], [])
    files.write_text("/dev/null", "away")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("name", ["n" * 251 + ".txt", "狗" * 83 + ".json", "a." + "b" * 250])
def test_names_up_to_the_systems_limit(tmp_path: Path, name: str):
    files.write_text(tmp_path / name, "x")
    assert only(tmp_path / name)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EFBIG, "is larger than a file may be here"),
        (errno.EIO, "the device of .* fails"),
        (errno.ESTALE, "the network folder of .* is gone"),
        (errno.EROFS, "cannot write .*; choose another place"),
    ],
)
def test_what_a_system_can_say_is_one_line(tmp_path: Path, number: int, message: str):
    with pytest.raises(UserError, match=message), files.atomic_path(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_vanishes(tmp_path: Path):
    folder = tmp_path / "run"
    with (
        pytest.raises(UserError, match=r"the folder of .*a\.txt is gone"),
        files.atomic_path(folder / "a.txt") as beside,
    ):
        folder.rmdir()
        beside.write_text("x")


def test_errors_of_the_block_itself_come_through(tmp_path: Path):
    with pytest.raises(FileNotFoundError), files.atomic_path(tmp_path / "a.txt"):
        (tmp_path / "missing").read_text()


def spellings(path: Path) -> list[Path]:
    """The same file by another spelling, a symbolic link, a hard link, and through a linked folder."""
    soft, hard, folder = path.parent / "soft", path.parent / "hard", path.parent.parent / "linked"
    soft.symlink_to(path)
    os.link(path, hard)
    folder.symlink_to(path.parent)
    return [path, path.parent / ".." / path.parent.name / path.name, soft, hard, folder / path.name]


def test_no_input_is_ever_an_output(tmp_path: Path):
    (tmp_path / "in").mkdir()
    weights = tmp_path / "in" / "w.safetensors"
    weights.write_text("weights")
    for spelling in spellings(weights):
        for overwrite in (False, True):
            with pytest.raises(UserError, match="is read by this command and would be replaced"):
                files.check_outputs([None, spelling], [weights], overwrite=overwrite)
    data = tmp_path / "in"
    with pytest.raises(UserError, match=r"is a file of .*in and would be replaced"):
        files.check_outputs([weights], [data], overwrite=True)
    files.check_outputs([data / "new.json"], [data, None])


def test_no_output_is_written_twice(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "a.json")
    for other in (tmp_path / "a.json", tmp_path / "x" / ".." / "a.json", tmp_path / "link"):
        with pytest.raises(UserError, match="would be written twice"):
            files.check_outputs([tmp_path / "a.json", other], overwrite=True)


def test_what_exists_is_replaced_only_where_the_user_says_so(tmp_path: Path):
    (tmp_path / "a.json").touch()
    with pytest.raises(UserError, match=r"a\.json already there: --overwrite replaces"):
        files.check_outputs([tmp_path / "a.json"])
    files.check_outputs([tmp_path / "a.json"], overwrite=True)


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
