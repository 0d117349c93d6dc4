"""Archives read in place: every truncation of a tar or zip is one clear line; whole ones give their members back."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile

import pytest

from detres.data.archives import is_archive, member_names, read_member
from detres.errors import DataError

CONTENT = {"train/a/1.jpg": b"first" * 100, "train/b/2.jpg": b"second" * 150, "words.txt": b""}


def write_tar(path, content=CONTENT):
    with tarfile.open(path, "w") as archive:
        for name, text in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return path


def write_zip(path, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, text in CONTENT.items():
            archive.writestr(name, text)
    return path


@pytest.fixture(params=["tar", "stored.zip", "deflated.zip"])
def archive(request, tmp_path):
    path = tmp_path / f"a.{request.param}"
    if request.param == "tar":
        return write_tar(path)
    return write_zip(path, zipfile.ZIP_DEFLATED if "deflated" in request.param else zipfile.ZIP_STORED)


def test_members(archive):
    assert is_archive(archive)
    assert member_names(archive) == list(CONTENT)
    assert {name: read_member(archive, name) for name in CONTENT} == CONTENT
    with pytest.raises(DataError, match=r"!train/c\.jpg: the archive has no such member"):
        read_member(archive, "train/c.jpg")


def test_every_truncation_is_told_when_members_are_listed(archive, tmp_path):
    whole = archive.read_bytes()
    # A tar's padding at the end, zeros up to a multiple of 10240, may be cut but for one block.
    needed = 3 * 512 + 512 + 1024 + 512 if archive.suffix == ".tar" else len(whole)
    for size in {*range(5, needed, 97), needed - 1}:
        cut = tmp_path / f"{size}{archive.suffix}"
        cut.write_bytes(whole[:size])
        assert is_archive(cut)
        with pytest.raises(
            DataError, match=rf"{size}\.\w+ is truncated or damaged \(.*; {size} bytes\): copy it again"
        ):
            member_names(cut)


def test_broken_header_in_the_middle_of_a_tar(tmp_path):
    whole = bytearray(write_tar(tmp_path / "a.tar").read_bytes())
    whole[1024:1100] = b"x" * 76  # the second member's
    (tmp_path / "b.tar").write_bytes(whole)
    with pytest.raises(DataError, match=r"b\.tar is truncated or damaged \(a broken header"):
        member_names(tmp_path / "b.tar")


def test_compressed_tar_says_what_to_do(tmp_path):
    (tmp_path / "a.tar").write_bytes(gzip.compress(write_tar(tmp_path / "b.tar").read_bytes()))
    with pytest.raises(DataError, match=r"compressed as a whole.*`gunzip` it"):
        member_names(tmp_path / "a.tar")


def test_damaged_content_names_the_member(tmp_path):
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = tmp_path / f"{compression}.zip"
        whole = bytearray(write_zip(path, compression).read_bytes())
        place = 30 + len("train/a/1.jpg")
        whole[place + 2 : place + 8] = b"\xff" * 6
        path.write_bytes(whole)
        assert member_names(path) == list(CONTENT)
        with pytest.raises(DataError, match=r"picture .*zip!train/a/1\.jpg cannot be read"):
            read_member(path, "train/a/1.jpg")
    shrinking = write_tar(tmp_path / "shrinking.tar", {**CONTENT, "big": b"b" * 30000})
    assert read_member(shrinking, "train/b/2.jpg") == CONTENT["train/b/2.jpg"]
    shrinking.write_bytes(shrinking.read_bytes()[:20000])
    with pytest.raises(
        DataError, match="big cannot be read: 30000 bytes expected, the archive ends after 16"
    ):
        read_member(shrinking, "big")
