"""The proposals for the images of a split, in a file that one training stage writes and the next reads.

Ren et al. 2015, §3.2: Fast R-CNN is trained on the proposals of an RPN that is trained already. A proposal takes 16
bytes: 2,000 for each of the 82,783 images of COCO's train2014 take 2.6 GB.

N images, P proposals of one image. Boxes are xyxy in continuous pixel coordinates of the stored image.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from detres.data.records import Annotations
from detres.errors import DataError
from detres.files import atomic_path


class Proposals:
    """The proposals of every image of a split, read from their file one image at a time.

    A large data set has gigabytes of them, so only the offsets are held in memory.

    Args:
        path: A file that `write_proposals` made.
        annotations: The split; its images must be those of the file.

    Raises:
        DataError: The file is damaged, or its images (ids, sizes or order) differ.
    """

    def __init__(self, path: Path, annotations: Annotations):
        self.path = path
        self._file: Any = None
        try:
            ids = bytes(self._open().get_tensor("image_ids")).decode("utf-8").split("\n")
            sizes, self._offsets = self._open().get_tensor("sizes"), self._open().get_tensor("offsets")
        except (SafetensorError, OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}: cannot be read ({error}): remove the file, and the proposals are made again"
            ) from error
        wanted = _ids(annotations)
        if ids != wanted or not np.array_equal(sizes, annotations.sizes):
            other = next((pair for pair in zip(ids, wanted, strict=False) if pair[0] != pair[1]), None)
            what = f"'{other[0]}' stands where '{other[1]}' is" if other else "their number or sizes differ"
            raise DataError(
                f"{path}: proposals for other pictures than those of {annotations.source} ({what}): train on the data"
                " that they were made for, or remove the file"
            )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """(P, 4) float32 of image `index`, best first."""
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        if start == end:
            return np.zeros((0, 4), np.float32)
        return self._open().get_slice("boxes")[start:end]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}  # a worker process opens the file itself

    def _open(self) -> Any:
        if self._file is None:
            self._file = safe_open(self.path, framework="np")
        return self._file


def write_proposals(path: Path, annotations: Annotations, boxes: Iterable[np.ndarray]) -> None:
    """Write the proposals of a split as safetensors, whole or not at all, without holding them in memory.

    Args:
        path: The `.safetensors` file.
        annotations: The split.
        boxes: For each of its images, in order, (P, 4).

    Raises:
        UserError: No space left, or the place cannot be written.
    """
    offsets = [0]
    with atomic_path(path) as beside:
        rows_path = beside.with_suffix(".rows")
        try:
            with open(rows_path, "wb") as rows:
                for image_boxes in boxes:
                    rows.write(np.ascontiguousarray(image_boxes, dtype="<f4").tobytes())
                    offsets.append(offsets[-1] + len(image_boxes))
            assert len(offsets) == len(annotations) + 1
            ends, sizes = np.array(offsets, dtype="<i8"), annotations.sizes.astype("<i8")
            ids = "\n".join(_ids(annotations)).encode("utf-8")
            with open(rows_path, "rb") as rows, open(beside, "wb") as file:
                file.write(_header(len(annotations), offsets[-1], len(ids)))
                file.write(ends.tobytes() + sizes.tobytes())
                shutil.copyfileobj(rows, file, 1 << 20)
                file.write(ids)
        finally:
            rows_path.unlink(missing_ok=True)


def _header(images: int, proposals: int, id_bytes: int) -> bytes:
    """The header of a safetensors file: its length in 8 bytes, then JSON that describes the tensors in order."""
    entries: dict[str, Any] = {}
    start = 0
    for name, kind, width, shape in (
        ("offsets", "I64", 8, [images + 1]),
        ("sizes", "I64", 8, [images, 2]),
        ("boxes", "F32", 4, [proposals, 4]),
        ("image_ids", "U8", 1, [id_bytes]),
    ):
        end = start + width * math.prod(shape)
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _ids(annotations: Annotations) -> list[str]:
    return [annotations.image_ids[index] for index in range(len(annotations))]
