"""Decodes images, upright by EXIF, from files, archive members and drawn images: the package's only decoder.

Whatever the storage, the result is (H, W, 3) uint8 RGB (He et al. 2015, §3.4).
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from detres.data import archives, cifar_batches
from detres.data.image_limits import MAX_SAMPLE_BITS, SIZE_VARIABLE, check_size, max_pixels, sample_bits
from detres.errors import DataError
from detres.unpickling import DAMAGE

EXIF_ORIENTATION = 0x0112
DRAWN = "shapes://"
JPEG_START = b"\xff\xd8"
SCAN, APPLICATION_1 = 0xDA, 0xE1
# Segments that state a JPEG's size (ITU T.81, table B.1).
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def read_image(path: str | Path, *, upright: bool = True) -> np.ndarray:
    """The pixels of an image.

    Gray and palette images become RGB, CMYK is converted, an alpha channel is dropped (the colors beneath are kept),
    16-bit values lose their low byte.

    Args:
        path: A file; a member of a .zip or .tar, `archive.zip!folder/member.jpg`; an image in a file of CIFAR-10,
            `data_batch_1!17`; or a drawn image, `shapes://...` (see `detres.data.shapes`).
        upright: Turn the image by its EXIF orientation; False: leave it as it is stored (a TIFF is always upright).

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DataError: The image is missing, truncated, too large or not an image; the message names it.
    """
    if str(path).startswith(DRAWN):
        from detres.data.shapes import draw

        return draw(str(path))
    image = cifar_batches.IMAGE_NAME.fullmatch(str(path))
    if image:
        return cifar_batches.read_batch_image(image["file"], int(image["index"]))
    return decode_image(read_bytes(path), str(path), upright=upright)


def read_reduced(
    path: str | Path, smallest: tuple[int, int], *, upright: bool = True
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode an image that will be shrunk; a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where possible.

    libjpeg's inverse DCT then computes only the pixels that are kept, each the mean of 2 x 2, 4 x 4 or 8 x 8 pixels.
    Measured on images of COCO, VOC 2007 and BCCD: less than 1 of 255 levels from that mean on average, single pixels
    at color edges up to 32. A bilinear resize reads four pixels whatever the scale; after decoding in full and a
    resize to 1/2 the pixels are the same to 1 level on average, but to 1/4 they differ by up to 8, to 1/8 by up to 13,
    because that resize leaves most pixels out (aliasing) and the mean does not. Only fractions that divide both sides
    are used, so that no pixel moves. Other formats than JPEG are decoded in full.

    Args:
        path: See `read_image`.
        smallest: Least height and width that the returned image must have.
        upright: See `read_image`.

    Returns:
        (h, w, 3) uint8 RGB, with h, w at least `smallest` if the image is that large; (H, W) of the whole image.

    Raises:
        DataError: See `read_image`.
    """
    if str(path).startswith(DRAWN):
        image = read_image(path)
        return image, (image.shape[0], image.shape[1])
    encoded, name = read_bytes(path), str(path)
    height, width, orientation = _read_header(io.BytesIO(encoded), name)
    if upright and orientation >= 5:
        smallest = smallest[1], smallest[0]
    fraction = _fraction((height, width), smallest) if encoded[:2] == JPEG_START else 1
    image = decode_image(encoded, name, upright=upright, fraction=fraction)
    return image, (image.shape[0] * fraction, image.shape[1] * fraction)


def decode_image(encoded: bytes, name: str, *, upright: bool = True, fraction: int = 1) -> np.ndarray:
    """The pixels of an encoded image (see `read_image`).

    Args:
        encoded: The file's content.
        name: For messages.
        upright: Turn it by its EXIF orientation.
        fraction: 2, 4 or 8 decodes a JPEG at 1/2, 1/4 or 1/8 of its size (see `read_reduced`).
    """
    import cv2

    if _is_truncated_jpeg(encoded):
        raise DataError(
            f"picture {name} is truncated (a JPEG without its end, {len(encoded)} bytes): copy it again"
        )
    header = _check_before_decoding(encoded, name)
    try:
        reduced = {
            1: 0,
            2: cv2.IMREAD_REDUCED_GRAYSCALE_2,  # sets the size only; IMREAD_COLOR_RGB sets the colors
            4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
            8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
        }
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | reduced[fraction]
        image = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise _undecodable(encoded, name)
    if not upright or not _may_be_turned(encoded):
        return image
    return turn_upright(image, (header or _read_header(io.BytesIO(encoded), name))[2])


def _check_before_decoding(encoded: bytes, name: str) -> tuple[int, int, int] | None:
    """Refuse what declares more pixels than are decoded, or samples of no fixed range; the header but of a JPEG."""
    if encoded[:2] == JPEG_START:
        for marker, place in _jpeg_segments(encoded):
            if marker in FRAMES and place + 9 <= len(encoded):
                height, width = struct.unpack_from(">HH", encoded, place + 5)
                check_size(height, width, name)
        return None
    bits = sample_bits(encoded)
    if bits > MAX_SAMPLE_BITS:
        raise DataError(f"picture {name}: samples of {bits} bits have no fixed range: save 8 or 16 bits")
    header = _parse_header(io.BytesIO(encoded), name)
    if header is None:
        raise _undecodable(encoded, name)
    return header


def _undecodable(encoded: bytes, name: str) -> DataError:
    return DataError(f"picture {name} cannot be decoded ({len(encoded)} bytes): truncated, or not a picture")


def read_header(path: str | Path) -> tuple[int, int, int]:
    """Stored height, stored width and EXIF orientation, without decoding.

    The orientation is 1..8; it is 1 (upright as stored) where there is none or its value means nothing. A TIFF counts
    as stored upright: its decoders turn it unasked.

    Raises:
        DataError: The image is missing, or its header cannot be read.
    """
    if str(path).startswith(DRAWN):
        from detres.data.shapes import drawn_size

        return *drawn_size(str(path)), 1
    if archives.MEMBER.fullmatch(str(path)):
        return _read_header(io.BytesIO(read_bytes(path)), str(path))
    try:
        with open(path, "rb") as file:
            return _read_header(file, str(path))
    except OSError as error:
        raise _unreadable(path, error) from error


def turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a stored image by its EXIF orientation (1..8; EXIF 2.3, table 6): (H, W, 3) or (W, H, 3)."""
    import cv2

    if orientation in (5, 7):
        image = cv2.transpose(image)
    turns = {
        3: cv2.ROTATE_180,
        6: cv2.ROTATE_90_CLOCKWISE,
        7: cv2.ROTATE_180,
        8: cv2.ROTATE_90_COUNTERCLOCKWISE,
    }
    if orientation in turns:
        image = cv2.rotate(image, turns[orientation])
    mirrors = {2: 1, 4: 0}
    return cv2.flip(image, mirrors[orientation]) if orientation in mirrors else image


def read_bytes(path: str | Path) -> bytes:
    """The encoded bytes of a file or of an archive's member (see `read_image`)."""
    member = archives.MEMBER.fullmatch(str(path))
    if member:
        return archives.read_member(member["archive"], member["member"])
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _read_header(file: io.IOBase, name: str) -> tuple[int, int, int]:
    header = _parse_header(file, name)
    if header is None:
        raise DataError(f"picture {name}: its header cannot be read: truncated, or not a picture")
    return header


def _parse_header(file: io.IOBase, name: str) -> tuple[int, int, int] | None:
    """See `read_header`; None: it cannot be read."""
    from PIL import Image

    if os.environ.get(SIZE_VARIABLE):
        Image.MAX_IMAGE_PIXELS = max_pixels()
    try:
        image = Image.open(file)  # type: ignore[arg-type]
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Image.DecompressionBombError as error:
        raise DataError(f"picture {name} is too large: {error} ({SIZE_VARIABLE} raises it)") from error
    except DAMAGE:
        return None
    check_size(image.height, image.width, name)
    valid = isinstance(orientation, int) and 1 <= orientation <= 8
    # Decoders always turn a TIFF: Pillow's size and OpenCV's pixels are upright.
    return image.height, image.width, orientation if valid and image.format != "TIFF" else 1


def _fraction(size: tuple[int, int], smallest: tuple[int, int]) -> int:
    """The largest of 8, 4, 2 that divides both sides and leaves them at least `smallest`; else 1."""
    for fraction in (8, 4, 2):
        fits = (
            side % fraction == 0 and side // fraction >= least
            for side, least in zip(size, smallest, strict=True)
        )
        if all(fits):
            return fraction
    return 1


def _is_truncated_jpeg(encoded: bytes) -> bool:
    """Whether a JPEG has no end marker after the start of its first scan (ITU T.81, B.1.1.2).

    In a scan FF D9 can be nothing else. Thumbnails, which have end markers, lie in the segments before the scan.
    """
    if encoded[:2] != JPEG_START:
        return False
    for marker, place in _jpeg_segments(encoded):
        if marker == SCAN:
            return encoded.find(b"\xff\xd9", place) < 0
    return True


def _may_be_turned(encoded: bytes) -> bool:
    """Whether an image may have an orientation: a JPEG keeps it in an application segment 1 (EXIF or XMP).

    Most JPEGs of data sets have none. They need no second parser, which takes as long as decoding a small image.
    """
    if encoded[:2] != JPEG_START:
        return True
    return any(marker == APPLICATION_1 for marker, _ in _jpeg_segments(encoded))


def _jpeg_segments(encoded: bytes) -> Iterator[tuple[int, int]]:
    """Marker and offset of each segment up to and including the first scan (ITU T.81, B.1.1.2)."""
    place = 2
    while place + 4 <= len(encoded) and encoded[place] == 0xFF:
        marker = encoded[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        yield marker, place
        if marker == SCAN:
            return
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")


def _unreadable(path: str | Path, error: Exception) -> DataError:
    reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
    return DataError(f"picture {path} {reason}")
