"""Archives read in place: every truncation of a tar or zip is one clear line; whole ones give their members back."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile

import pytest

from detres.data import archives
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


def test_names_are_plain_whatever_the_program_wrote(tmp_path):
    write_tar(tmp_path / "a.tar", {f"./{name}": text for name, text in CONTENT.items()})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, text in CONTENT.items():
            archive.writestr(f"./{name}".replace("/a/", "//a/"), text)
    for path in (tmp_path / "a.tar", tmp_path / "a.zip"):
        assert member_names(path) == list(CONTENT)
        assert {name: read_member(path, name) for name in CONTENT} == CONTENT


def test_links_in_a_tar_give_what_they_lead_to(tmp_path):
    """As `tar` packs two names of one file: the second is a link by name, with no content of its own."""

    def write(links):
        path = tmp_path / f"{len(links)}.tar"
        write_tar(path, {"./train/a/1.jpg": b"first" * 200})
        with tarfile.open(path, "a") as archive:
            for name, kind, target in links:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, target
                archive.addfile(member)
        return path

    hard = ("./val/a/1.jpg", tarfile.LNKTYPE, "./train/a/1.jpg")
    symbolic = ("./test/a/1.jpg", tarfile.SYMTYPE, "../../val/a/1.jpg")
    path = write([hard, symbolic])
    assert member_names(path) == ["train/a/1.jpg", "val/a/1.jpg", "test/a/1.jpg"]
    assert [read_member(path, name) for name in member_names(path)] == [b"first" * 200] * 3
    for target in ("/etc/hosts", "../train", "2.jpg"):
        path = write([hard, symbolic, ("val/a/2.jpg", tarfile.SYMTYPE, target)])
        with pytest.raises(DataError, match=r"val/a/2\.jpg is a link to .*, which is no file of the archive"):
            member_names(path)


def test_a_zip_by_another_name_is_refused(tmp_path):
    write_zip(tmp_path / "images.dat")
    with pytest.raises(DataError, match=r"images\.dat is a zip by its content.*name it \.zip"):
        member_names(tmp_path / "images.dat")
    write_zip(tmp_path / "images.tar")
    with pytest.raises(DataError, match=r"images\.tar is a zip by its content, not a tar: name it \.zip"):
        member_names(tmp_path / "images.tar")


def test_any_damaged_byte_of_a_zip_is_one_error(tmp_path):
    """Versions, flags and compressions that do not exist among them."""
    whole = write_zip(tmp_path / "a.zip", zipfile.ZIP_DEFLATED).read_bytes()
    refused = 0
    for place in range(len(whole)):
        path = tmp_path / f"{place}.zip"
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            assert [len(read_member(path, name)) for name in member_names(path)]
        except DataError:
            refused += 1
    assert refused > 50


def test_many_archives_stay_open(tmp_path):
    """A folder of archives, one a class, read in turns: each is listed once."""
    paths = [write_tar(tmp_path / f"{number}.tar") for number in range(20)]
    for path in paths:
        read_member(path, "train/a/1.jpg")
    before = archives._reader.cache_info().misses
    for path in paths:
        read_member(path, "train/b/2.jpg")
    assert archives._reader.cache_info().misses == before
