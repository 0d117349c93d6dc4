"""Videos: frames out are the frames in, to what the codec loses; what is no video is one clear error."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from detres.data.videos import Video, open_video, write_video
from detres.errors import DataError, UserError


def frames(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Plain frames of different reds."""
    colors = [(40 + 30 * number, 10, 90) for number in range(count)]
    return [np.full((height, width, 3), color, np.uint8) for color in colors]


@pytest.fixture
def video(tmp_path) -> Path:
    try:
        write_video(tmp_path / "v.mp4", iter(frames(5)), 10.0)
    except UserError as error:
        if "encodes no mp4" not in str(error):
            raise
        pytest.skip(f"{error}")
    return tmp_path / "v.mp4"


def test_frames_out_are_frames_in(video):
    with open_video(video) as opened:
        assert opened.rate == 10
        assert opened.count == 5
        found = list(opened.frames())
    for frame, expected in zip(found, frames(5), strict=True):
        assert frame.dtype == np.uint8
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).max() < 12


def test_no_half_written_video(video):
    before = video.read_bytes()

    def broken():
        yield from frames(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(video, broken(), 10.0)
    assert video.read_bytes() == before
    assert [path.name for path in video.parent.iterdir()] == ["v.mp4"]


def test_a_video_that_does_not_become_whole(video, monkeypatch):
    """The encoder does not say that it could not write: the file is counted."""
    monkeypatch.setattr("detres.data.videos._frames_in", lambda path: 3)
    with pytest.raises(UserError, match="could not be written whole"):
        write_video(video.with_name("w.mp4"), iter(frames(5)), 10.0)
    assert not video.with_name("w.mp4").exists()


def test_what_is_no_video(tmp_path, capfd):
    (tmp_path / "a.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(DataError, match=r"a\.mp4 cannot be opened"), open_video(tmp_path / "a.mp4"):
        pass
    with pytest.raises(DataError, match=r"b\.mp4 does not exist"), open_video(tmp_path / "b.mp4"):
        pass
    assert capfd.readouterr().err == ""


class Cut:
    """A capture that gives so many frames."""

    def __init__(self, count: int):
        self.left = frames(count)

    def read(self):
        return (True, self.left.pop()) if self.left else (False, None)


def test_a_video_that_ends_early(caplog):
    with caplog.at_level(logging.WARNING, "detres"):
        assert len(list(Video(Path("v.mp4"), 10.0, 5, Cut(3)).frames())) == 3  # type: ignore[arg-type]
    assert caplog.messages == ["video v.mp4: 3 of 5 frames could be decoded"]
    with pytest.raises(DataError, match=r"v\.mp4: no frame can be decoded"):
        list(Video(Path("v.mp4"), 10.0, 5, Cut(0)).frames())  # type: ignore[arg-type]


def test_a_place_that_is_no_folder(video):
    with pytest.raises(UserError, match="cannot write"):
        write_video(video / "v.mp4", iter(frames(1)), 10.0)


@pytest.mark.parametrize(("height", "width"), [(64, 8192), (8192, 64), (1, 64), (64, 1)])
def test_frames_that_an_mp4_cannot_hold(tmp_path, height, width, capfd):
    with pytest.raises(UserError, match=rf"frames are {width} x {height}, and an \.mp4 has 2 to 8191 pixels"):
        write_video(tmp_path / "v.mp4", iter(frames(1, height, width)), 10.0)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("height", "width"), [(41, 61), (64, 8191), (2, 3)])
def test_odd_sides_lose_a_pixel(tmp_path, height, width):
    write_video(tmp_path / "v.mp4", iter(frames(2, height, width)), 10.0)
    with open_video(tmp_path / "v.mp4") as opened:
        even = height - height % 2, width - width % 2
        assert opened.size == even
        assert [frame.shape[:2] for frame in opened.frames()] == [even, even]


def test_names_that_look_like_protocols(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("12:30:00.mp4", iter(frames(3)), 10.0)
    with open_video("12:30:00.mp4") as opened:
        assert len(list(opened.frames())) == 3
