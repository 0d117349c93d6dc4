"""Downloads: archives made by the test, fetched through file:// addresses; truth is what was packed."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile

import make_data
import pytest

from detres.cli.prepare import main
from detres.data.prepare.download import Archive, Part, fetch, prepare, unpack
from detres.errors import DataError, UserError


@pytest.fixture
def devkit(tmp_path):
    text = make_data.xml([("dog", (1, 1, 9, 9))])
    make_data.voc(tmp_path / "made" / "VOCdevkit" / "VOC2007", {"trainval": {"a": text, "b": text}})
    path = tmp_path / "made" / "voc.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "made" / "VOCdevkit", "VOCdevkit")
    return path


def test_download_check_unpack_verify(devkit, tmp_path):
    md5 = hashlib.md5(devkit.read_bytes()).hexdigest()
    part = Part((Archive(devkit.as_uri(), md5),), "VOCdevkit/VOC2007", {"trainval": 2})
    assert prepare(part, tmp_path / "data") == {"trainval": 2}
    devkit.unlink()
    assert prepare(part, tmp_path / "data") == {"trainval": 2}
    with pytest.raises(DataError, match="'trainval' has 2 pictures, it should have 3"):
        prepare(Part((), "VOCdevkit/VOC2007", {"trainval": 3}), tmp_path / "data")


def test_wrong_checksum_leaves_no_file(devkit, tmp_path):
    with pytest.raises(DataError, match=r"has MD5 .* expected 00"):
        fetch(Archive(devkit.as_uri(), "00"), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_no_connection(tmp_path):
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetch(Archive((tmp_path / "nowhere.tar").as_uri()), tmp_path / "data")


def test_only_a_folder_of_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("top/inner/Annotations/a.xml", "x")
        archive.writestr("top/other.txt", "y")
    (tmp_path / "data" / "Annotations").mkdir(parents=True)
    unpack(tmp_path / "a.zip", tmp_path / "data", inside="top/inner")
    assert [path.name for path in (tmp_path / "data").rglob("*")] == ["Annotations", "a.xml"]


def test_member_that_leaves_the_folder(tmp_path):
    (tmp_path / "evil.txt").write_text("x")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "evil.txt", "../../evil.txt")
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(tmp_path / "a.tar", tmp_path / "deep" / "data")


def test_truncated_archive(devkit, tmp_path):
    devkit.write_bytes(devkit.read_bytes()[:1500])
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(devkit, tmp_path / "data")


def test_data_that_is_there_is_only_verified(tmp_path):
    make_data.voc(tmp_path / "VOC2007", {"trainval": {"a": make_data.xml([])}})
    with pytest.raises(DataError, match="'trainval' has 1 pictures, it should have 5011"):
        main(["voc", "--years", "2007", "--data", str(tmp_path)])
    with pytest.raises(UserError, match="is not there; without --data it is downloaded"):
        main(["voc", "--years", "2012", "--data", str(tmp_path)])
    with pytest.raises(UserError, match="--years 1999"):
        main(["voc", "--years", "1999"])


def test_bccd_is_complete(real_data, capsys):
    main(["bccd", "--data", str(real_data / "bccd")])
    assert "train: 205 pictures, 2804 objects: complete" in capsys.readouterr().out
