"""The pictures that Python users give: files, PIL images, arrays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np

from detres.data.decoding import read_image
from detres.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

ImageLike: TypeAlias = Union[str, Path, np.ndarray, "Image"]

PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}  # PIL converts them to their plain forms only


def as_image(image: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a path, a PIL image or such an array.

    Gray and palette images become RGB; an alpha channel is dropped, the colors beneath are kept, as in `read_image`.

    Raises:
        UserError: None of these, a file that cannot be read, or pixels of another shape or type.
    """
    from PIL import Image

    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UserError(
                f"a picture as an array must be (H, W, 3) uint8 RGB, this is {image.shape} {image.dtype}"
            )
        return np.ascontiguousarray(
            image
        )  # views that run backward, such as image[..., ::-1], suit no tensor
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise UserError(
                f"a PIL image of mode {image.mode} has no fixed range: convert it to 8 bits (L or RGB)"
            )
        if 0 in image.size:
            raise UserError(f"a PIL image of {image.size[0]} x {image.size[1]} pixels has nothing to look at")
        try:
            straight = image.convert(PREMULTIPLIED[image.mode]) if image.mode in PREMULTIPLIED else image
            return np.array(straight.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            # Opened lazily: what is wrong with its file turns out only now.
            raise UserError(
                f"a PIL image of mode {image.mode} cannot be read as RGB: {error}; its file is damaged or too large"
            ) from error
    raise UserError(
        f"a picture must be a path, a PIL image or an (H, W, 3) uint8 array, not {type(image).__name__}"
    )
