"""Images and archives that ask for gigabytes are refused by what they declare, before anything is decoded."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detres.data import archives
from detres.data.decoding import decode_image, read_header, read_image, read_reduced
from detres.data.image_limits import SIZE_VARIABLE
from detres.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def png(width: int, height: int) -> bytes:
    """A whole PNG of one bit a pixel, all black."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    rows = zlib.compress(bytes(height * (1 + -(-width // 8))), 1)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def encoded(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def large(form: str) -> bytes:
    if form == "png":
        return png(16000, 16000)
    if form == "tiff":
        return encoded(Image.new("1", (16000, 16000)), "TIFF", compression="group4")
    content = encoded(Image.new("L", (64, 32)), "JPEG")
    place = content.index(b"\xff\xc0")
    return content[: place + 5] + struct.pack(">HH", 16000, 16000) + content[place + 9 :]


@pytest.mark.parametrize("form", ["png", "tiff", "jpeg"])
def test_large_images_are_refused_before_decoding(tmp_path, monkeypatch, form):
    path = tmp_path / f"large.{form}"
    path.write_bytes(large(form))
    monkeypatch.setattr(cv2, "imdecode", None)
    for read in (
        read_image,
        read_header,
        lambda path: read_image(path, upright=False),
        lambda path: read_reduced(path, (10, 10)),
    ):
        with pytest.raises(DataError, match="is too large") as raised:
            read(path)
        assert str(path) in str(raised.value)


def test_the_variable_sets_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    path = tmp_path / "wide.png"
    path.write_bytes(png(20000, 10000))
    with pytest.raises(DataError, match=rf"{SIZE_VARIABLE} raises it"):
        read_header(path)
    monkeypatch.setenv(SIZE_VARIABLE, "200000000")
    assert read_image(path).shape == (10000, 20000, 3)
    monkeypatch.setenv(SIZE_VARIABLE, "100")
    with pytest.raises(DataError, match=r"is too large: 20 x 10; at most 100 pixels"):
        decode_image(png(20, 10), "x.png")
    monkeypatch.setenv(SIZE_VARIABLE, "many")
    with pytest.raises(DataError, match=r"=many is no number of pixels"):
        decode_image(png(20, 10), "x.png")


@pytest.mark.parametrize("dtype", ["f4", "i4", "u4", "f8"])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_of_samples_without_a_range(dtype, channels, capfd):
    _, content = cv2.imencode(".tiff", np.ones((20, 30, channels), dtype).squeeze())
    bits = 8 * np.dtype(dtype).itemsize
    with pytest.raises(DataError, match=f"samples of {bits} bits have no fixed range"):
        decode_image(content.tobytes(), "x.tiff")
    assert capfd.readouterr().err == ""


def test_tiff_of_16_bits_is_read():
    _, content = cv2.imencode(".tiff", np.full((20, 30, 3), 65535, np.uint16))
    assert decode_image(content.tobytes(), "x.tiff").min() == 255


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_unpack_to_gigabytes(tmp_path, kind):
    path = tmp_path / f"bomb.{kind}"
    if kind == "zip":
        piece = bytes(2**24)
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("a/1.png", "w") as member,
        ):
            for _ in range(2**29 // len(piece) + 1):
                member.write(piece)
    else:
        entry = tarfile.TarInfo("a/1.png")
        entry.size = 2**32
        path.write_bytes(entry.tobuf())
        os.truncate(path, 512 + 2**32 + 1024)  # a hole
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30));"
    code = f"{limited} from detres.data.archives import read_member; read_member({str(path)!r}, 'a/1.png')"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert "where at most 536,870,912 are read: it is too large" in run.stderr


def test_members_that_are_larger_than_declared(tmp_path, monkeypatch):
    """The central directory says 10 bytes, the stream has 64 MiB: no more than what is declared is unpacked."""
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", bytes(2**26))
    content = path.read_bytes().replace(struct.pack("<I", 2**26), struct.pack("<I", 10))
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        archives.read_member(path, "1.png")
