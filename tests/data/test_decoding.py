"""Decoding against Pillow (an independent decoder), against generated files of every kind, and on broken ones."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from detres.data.decoding import (
    decode_image,
    read_header,
    read_image,
    read_reduced,
)
from detres.data.shapes import shapes_annotations
from detres.errors import UserError


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """A smooth picture, which JPEG keeps almost as it is: (40, 60, 3) uint8."""
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([x * 4, y * 6, 255 - x * 2 - y * 3], axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(pixels: np.ndarray, orientation: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(pixels).convert(mode), kind, quality=95, exif=exif.tobytes())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_as_pillow_turns_it(pixels, orientation, tmp_path):
    path = tmp_path / "turned.jpg"
    path.write_bytes(with_orientation(pixels, orientation))
    stored = Image.open(path)
    expected = np.asarray(ImageOps.exif_transpose(stored))
    assert np.abs(read_image(path).astype(int) - expected).max() <= 3
    assert np.abs(read_image(path, upright=False).astype(int) - np.asarray(stored)).max() <= 3
    assert read_header(path) == (40, 60, orientation)
    assert read_image(path).shape == ((60, 40, 3) if orientation >= 5 else (40, 60, 3))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_upright_as_its_decoders_give_it(pixels, orientation, mode, tmp_path):
    """Both decoders turn a TIFF by its tag whatever they are asked; once more would be once too much."""
    path = tmp_path / "turned.tif"
    path.write_bytes(with_orientation(pixels, orientation, "TIFF", mode))
    stored = Image.fromarray(pixels).convert(mode)
    stored.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert expected.shape == ((60, 40, 3) if orientation >= 5 else (40, 60, 3))
    for upright in (True, False):
        assert np.array_equal(read_image(path, upright=upright), expected)
    assert read_header(path) == (*expected.shape[:2], 1)
    image, size = read_reduced(path, (15, 10))
    assert (image.shape, size) == (expected.shape, expected.shape[:2])


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_means_nothing_is_upright(pixels, orientation, tmp_path):
    path = tmp_path / "odd.jpg"
    path.write_bytes(with_orientation(pixels, orientation))
    assert read_header(path)[2] == 1
    assert np.array_equal(read_image(path), read_image(path, upright=False))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_png_of_every_mode_becomes_rgb_as_in_pillow(pixels, mode):
    picture = Image.fromarray(pixels).convert(mode)
    expected = np.asarray(picture.convert("RGB"))
    image = decode_image(encoded(picture, "PNG"), "a.png")
    assert image.dtype == np.uint8
    assert np.array_equal(image, expected)


def test_transparent_pixels_keep_the_color_beneath(pixels):
    transparent = np.dstack([pixels, np.zeros((40, 60), np.uint8)])
    assert np.array_equal(decode_image(encoded(Image.fromarray(transparent), "PNG"), "a.png"), pixels)


def test_gray_jpeg_has_three_equal_channels(pixels):
    image = decode_image(encoded(Image.fromarray(pixels).convert("L"), "JPEG"), "gray.jpg")
    assert image.shape == (40, 60, 3)
    assert (image == image[..., :1]).all()


def test_cmyk_jpeg_gives_the_colors_it_was_made_from(pixels):
    image = decode_image(encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=100), "cmyk.jpg")
    assert np.abs(image.astype(int) - pixels).max() <= 6


def test_16_bit_png_keeps_the_high_byte():
    deep = (np.arange(40 * 60).reshape(40, 60) * 27).astype(np.uint16)
    image = decode_image(encoded(Image.fromarray(deep), "PNG"), "deep.png")
    assert np.array_equal(image[..., 0], deep >> 8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_are_exact_whatever_the_name(pixels, kind, tmp_path):
    path = tmp_path / "named_as.jpg"
    path.write_bytes(encoded(Image.fromarray(pixels), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.array_equal(read_image(path), pixels)
    assert read_header(path) == (40, 60, 1)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [1, 20, 0.5, 0.9])
def test_a_truncated_jpeg_is_refused_by_name(pixels, progressive, missing, tmp_path):
    whole = encoded(Image.fromarray(pixels), "JPEG", progressive=progressive)
    cut = missing if missing >= 1 else int(len(whole) * missing)
    path = tmp_path / "half.jpg"
    path.write_bytes(whole[: len(whole) - cut])
    with pytest.raises(UserError, match=r"half\.jpg.*truncated"):
        read_image(path)


def test_a_truncated_jpeg_with_a_whole_thumbnail_is_refused(pixels):
    thumbnail = encoded(Image.fromarray(pixels[:8, :8]), "JPEG")
    whole = encoded(Image.fromarray(pixels), "JPEG")
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    assert np.array_equal(decode_image(whole[:2] + segment + whole[2:], "a"), decode_image(whole, "a"))
    with pytest.raises(UserError, match="truncated"):
        decode_image(whole[:2] + segment + whole[2:-2], "a")


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(pixels):
    whole = encoded(Image.fromarray(pixels), "JPEG")
    assert np.array_equal(decode_image(whole + b"\xff\xda" + bytes(100), "a"), decode_image(whole, "a"))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"not a picture at all", b"\x89PNG\r\n\x1a\n1234"])
def test_what_is_no_image_is_refused_by_name(content, tmp_path):
    path = tmp_path / "nothing.jpg"
    path.write_bytes(content)
    for read in (read_image, read_header):
        with pytest.raises(UserError, match=r"nothing\.jpg"):
            read(path)


def test_a_missing_image_is_named(tmp_path):
    for read in (read_image, read_header):
        with pytest.raises(UserError, match=r"absent\.jpg does not exist"):
            read(tmp_path / "absent.jpg")
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path)


def test_members_of_zip_and_tar_are_read_in_place(pixels, tmp_path):
    content = encoded(Image.fromarray(pixels), "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("train/cat/1.png", content)
    (tmp_path / "1.png").write_bytes(content)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "1.png", "train/cat/1.png")
    for name in ("a.zip", "a.tar"):
        assert np.array_equal(read_image(f"{tmp_path / name}!train/cat/1.png"), pixels)
        assert read_header(f"{tmp_path / name}!train/cat/1.png") == (40, 60, 1)
        with pytest.raises(UserError, match="no such member"):
            read_image(f"{tmp_path / name}!train/cat/2.png")
    (tmp_path / "b.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"b\.zip!1\.png cannot be read"):
        read_image(f"{tmp_path / 'b.zip'}!1.png")


def test_real_oddities(real_data: Path):
    """The facts stand in the data's own README: 00090 lacks its last 20 bytes, 00103 has orientation 65537."""
    kangaroos = real_data / "kangaroo_oddities" / "images"
    with pytest.raises(UserError, match=r"00090\.jpg.*truncated"):
        read_image(kangaroos / "00090.jpg")
    height, width = read_image(kangaroos / "00103.jpg").shape[:2]
    assert read_header(kangaroos / "00103.jpg") == (height, width, 1)


def test_real_images_named_jpg_that_are_png(real_data: Path):
    paths = sorted((real_data / "fruit" / "train").glob("*.jpg"))[:40]
    kinds = set()
    for path in paths:
        image = Image.open(path)
        kinds.add(image.format)
        expected = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(read_image(path).astype(int) - expected).mean() < 1
    assert {"JPEG", "PNG"} <= kinds


def block_means(image: np.ndarray, fraction: int) -> np.ndarray:
    height, width = image.shape[0] // fraction, image.shape[1] // fraction
    return image.reshape(height, fraction, width, fraction, 3).mean(axis=(1, 3))


@pytest.fixture(scope="module")
def textured() -> np.ndarray:
    """Coarse blobs of all colors with fine noise: (120, 160, 3) uint8."""
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((160, 120))
    return np.clip(np.asarray(blobs) + rng.normal(0, 6, (120, 160, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("smallest", "fraction"), [((60, 80), 2), ((16, 16), 4), ((31, 40), 2), ((15, 20), 8)]
)
def test_a_reduced_jpeg_is_the_mean_of_blocks_of_the_full_one(
    textured, orientation, smallest, fraction, tmp_path
):
    """Turned as the full picture is, never below `smallest`, to 1.5 levels on average, whatever the colors."""
    path = tmp_path / "turned.jpg"
    path.write_bytes(with_orientation(textured, orientation))
    for upright in (True, False):
        full = read_image(path, upright=upright)
        swapped = full.shape[0] > full.shape[1]
        image, size = read_reduced(path, smallest[::-1] if swapped else smallest, upright=upright)
        assert size == full.shape[:2]
        assert image.shape == (full.shape[0] // fraction, full.shape[1] // fraction, 3)
        difference = np.abs(image - block_means(full, fraction))
        assert difference.mean() < 1.5
        assert difference.max() <= 32


@pytest.mark.parametrize(
    ("rows", "columns", "kind", "smallest"),
    [
        (120, 160, "PNG", (15, 20)),  # not a JPEG
        (119, 160, "JPEG", (15, 20)),  # no fraction divides 119
        (120, 160, "JPEG", (61, 80)),  # a half would be too small
        (120, 160, "JPEG", (600, 800)),  # to be enlarged
    ],
)
def test_what_cannot_be_reduced_is_decoded_in_full(textured, rows, columns, kind, smallest, tmp_path):
    path = tmp_path / "full"
    path.write_bytes(encoded(Image.fromarray(textured[:rows, :columns]), kind))
    image, size = read_reduced(path, smallest)
    assert size == (rows, columns)
    assert np.array_equal(image, read_image(path))


def test_gray_and_cmyk_jpegs_are_reduced_to_rgb(textured, tmp_path):
    for mode in ("L", "CMYK"):
        path = tmp_path / f"{mode}.jpg"
        path.write_bytes(encoded(Image.fromarray(textured).convert(mode), "JPEG", quality=95))
        image, size = read_reduced(path, (30, 40))
        assert size == (120, 160)
        assert np.abs(image - block_means(read_image(path), 4)).mean() < 1


def test_reduced_decoding_refuses_what_full_decoding_refuses(textured, tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(Image.fromarray(textured), "JPEG")[:-500])
    with pytest.raises(UserError, match=r"cut\.jpg is truncated"):
        read_reduced(path, (15, 20))
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cut\.jpg"):
        read_reduced(path, (15, 20))
    with pytest.raises(UserError, match="does not exist"):
        read_reduced(tmp_path / "none.jpg", (15, 20))


def test_drawn_images_and_archive_members_are_read(textured, tmp_path):
    content = encoded(Image.fromarray(textured), "JPEG", quality=95)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.jpg", content)
    image, size = read_reduced(f"{tmp_path / 'a.zip'}!1.jpg", (60, 80))
    assert (image.shape, size) == ((60, 80, 3), (120, 160))
    drawn = shapes_annotations("train", 1)
    image, size = read_reduced(drawn.paths[0], (1, 1))
    assert size == image.shape[:2] == tuple(drawn.sizes[0])


def test_real_jpegs_are_reduced_to_block_means(real_data: Path):
    """BCCD's 640 x 480, subsampled in color."""
    for path in sorted((real_data / "bccd" / "JPEGImages").glob("*.jpg"))[:3]:
        full = read_image(path)
        for fraction in (2, 4, 8):
            image, _ = read_reduced(path, (480 // fraction, 640 // fraction))
            assert np.abs(image - block_means(full, fraction)).mean() < 1
