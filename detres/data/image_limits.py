"""What is never decoded: images of too many pixels, and samples that have no fixed range; known from headers alone.

A file of some kilobytes can declare, and hold, gigabytes of pixels.
"""

from __future__ import annotations

import os
import struct

from detres.errors import DataError

SIZE_VARIABLE = "DETRES_MAX_PIXELS"
MAX_PIXELS = 178_956_970  # of an image that is decoded: 0.5 GiB of RGB, as Pillow; the variable raises it
OPENCV_MAX_PIXELS, OPENCV_MAX_SIDE = 2**30, 2**20
MAX_SAMPLE_BITS = 16
TIFF_BITS_PER_SAMPLE = 258


def check_size(height: int, width: int, name: str) -> None:
    """Refuse an image by the size that its header declares.

    Raises:
        DataError: It has more pixels than are decoded; names the image, its size and the limit.
    """
    pixels, side = max_pixels(), max(height, width)
    if height * width > pixels or side > OPENCV_MAX_SIDE:
        raise DataError(
            f"picture {name} is too large: {width} x {height}; at most {pixels:,} pixels are read, {OPENCV_MAX_SIDE:,}"
            f" a side ({SIZE_VARIABLE} sets the first)"
        )


def max_pixels() -> int:
    """The number of pixels up to which an image is decoded: `MAX_PIXELS`, or what the variable says."""
    text = os.environ.get(SIZE_VARIABLE) or str(MAX_PIXELS)
    if not text.isdecimal():
        raise DataError(f"{SIZE_VARIABLE}={text} is no number of pixels, such as {MAX_PIXELS}")
    return min(int(text), OPENCV_MAX_PIXELS)


def sample_bits(encoded: bytes) -> int:
    """Bits of a TIFF's first sample (TIFF 6.0, section 2); 0: no TIFF, or not stated."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(encoded[:4])
    if order is None:
        return 0
    try:
        (directory,) = struct.unpack_from(f"{order}I", encoded, 4)
        (entries,) = struct.unpack_from(f"{order}H", encoded, directory)
        for place in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, _, count = struct.unpack_from(f"{order}HHI", encoded, place)
            if tag == TIFF_BITS_PER_SAMPLE:
                inline = place + 8
                (elsewhere,) = struct.unpack_from(f"{order}I", encoded, inline)
                return struct.unpack_from(f"{order}H", encoded, inline if count <= 2 else elsewhere)[0]
    except struct.error:  # it ends within its directory
        pass
    return 0
