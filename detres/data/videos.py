"""Reads and writes videos frame by frame with OpenCV: (H, W, 3) uint8 RGB, turned by the file's orientation."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detres.errors import DataError, UserError
from detres.files import atomic_path

if TYPE_CHECKING:
    import cv2

log = logging.getLogger("detres")

DEFAULT_RATE = 25.0
SHORTEST_SIDE, LONGEST_SIDE = 2, 8191  # of MPEG-4 frames, in pixels (ffmpeg's mpeg4 encoder)
FFMPEG_SILENT = "-8"  # its messages would mix with those of detres


@dataclass(frozen=True)
class Video:
    """An open video, which can be read once.

    Attributes:
        path: Its file.
        rate: Frames a second.
        count: Number of frames as the file states it, None where it does not.
        size: The frames' height and width as the file states them, which may be turned; 0: not stated.
    """

    path: Path
    rate: float
    count: int | None
    _capture: cv2.VideoCapture
    size: tuple[int, int] = (0, 0)

    def frames(self) -> Iterator[np.ndarray]:
        """Every frame, (H, W, 3) uint8 RGB.

        Raises:
            DataError: No frame can be decoded. If only the last cannot, a warning is logged.
        """
        import cv2

        read = 0
        while True:
            success, frame = self._capture.read()
            if not success:
                break
            read += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        if read == 0:
            raise DataError(f"video {self.path}: no frame can be decoded: truncated, or of an unknown codec")
        if self.count is not None and read < self.count:
            log.warning("video %s: %d of %d frames could be decoded", self.path, read, self.count)


@contextmanager
def open_video(path: str | Path) -> Iterator[Video]:
    """A video to read from, closed when the block ends.

    Raises:
        DataError: The file is missing or not a video.
    """
    import cv2

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", FFMPEG_SILENT)
    path = Path(path)
    if not path.is_file():
        raise DataError(f"video {path} does not exist")
    capture = cv2.VideoCapture(os.path.abspath(path))  # ffmpeg takes `12:30.mp4` for a protocol `12`
    try:
        if not capture.isOpened():
            raise DataError(f"video {path} cannot be opened: truncated, or not a video")
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        rate = capture.get(cv2.CAP_PROP_FPS)
        size = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        yield Video(path, rate if rate > 0 else DEFAULT_RATE, count if count > 0 else None, capture, size)
    finally:
        capture.release()


def check_frame_size(path: str | Path, height: int, width: int) -> None:
    """Refuse frames that an .mp4 cannot hold.

    Raises:
        UserError: A side is too long or too short; names `path`, the size and the limits.
    """
    if not SHORTEST_SIDE <= min(height, width) <= max(height, width) <= LONGEST_SIDE:
        raise UserError(
            f"cannot write {path}: its frames are {width} x {height}, and an .mp4 has {SHORTEST_SIDE} to"
            f" {LONGEST_SIDE} pixels a side"
        )


def write_video(path: str | Path, frames: Iterator[np.ndarray], rate: float) -> None:
    """Write frames of one size as an .mp4, whole or not at all.

    Args:
        path: The file to make or replace; its name ends in .mp4.
        frames: (H, W, 3) uint8 RGB; at least one. Of an odd side the last pixel is left out, for the format halves the
            colors' resolution.
        rate: Frames a second.

    Raises:
        UserError: Frames of such a size cannot be encoded (see `check_frame_size`), or none by this OpenCV, or the file
            did not become whole (a full device).
    """
    import cv2

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", FFMPEG_SILENT)
    with atomic_path(path) as beside:
        writer: cv2.VideoWriter | None = None
        written = 0
        try:
            for frame in frames:
                if writer is None:
                    check_frame_size(path, *frame.shape[:2])
                    size = frame.shape[1], frame.shape[0]
                    writer = cv2.VideoWriter(
                        os.path.abspath(beside), cv2.VideoWriter.fourcc(*"mp4v"), rate, size
                    )
                    if not writer.isOpened():
                        raise UserError(
                            f"cannot write {path}: this OpenCV encodes no mp4, or nothing may be written there"
                        )
                writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
                written += 1
        finally:
            if writer is not None:
                writer.release()
        if _frames_in(beside) != written:  # the encoder does not report frames that it could not write
            raise UserError(f"{path} could not be written whole: is there space left on the device?")


def _frames_in(path: Path) -> int:
    import cv2

    capture = cv2.VideoCapture(os.path.abspath(path))
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    finally:
        capture.release()
