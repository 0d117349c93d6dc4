"""Proposals kept in a file: what was written comes back, for the same pictures only, and moves with its picture."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from detres.data.config import AugmentationConfig
from detres.data.detection_samples import DetectionDataset
from detres.data.proposals import Proposals, write_proposals
from detres.data.shapes import shapes_annotations
from detres.errors import DataError

SCENES = shapes_annotations("train", 3)


def some_boxes(count: int, index: int, seed: int = 0) -> np.ndarray:
    height, width = SCENES.sizes[index]
    shift = np.array([0, 0, 0.5, 0.5])
    corners = np.random.default_rng(seed).uniform(0, 0.4, (count, 4)) + shift
    return (corners * [width, height, width, height]).astype(np.float32)


@pytest.fixture
def written(tmp_path) -> tuple[Path, list[np.ndarray]]:
    boxes = [some_boxes(7, 0), some_boxes(0, 1), some_boxes(4, 2)]
    write_proposals(tmp_path / "proposals.safetensors", SCENES, iter(boxes))
    return tmp_path / "proposals.safetensors", boxes


def test_round_trip(written):
    path, boxes = written
    proposals = Proposals(path, SCENES)
    assert len(proposals) == 3
    for copy in (proposals, pickle.loads(pickle.dumps(proposals))):  # as a spawned worker gets it
        for index, expected in enumerate(boxes):
            np.testing.assert_array_equal(copy[index], expected)
    assert load_file(path)["boxes"].shape == (11, 4)  # the library's own reader
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_other_images_are_refused(written):
    path, _ = written
    with pytest.raises(DataError, match="proposals for other pictures"):
        Proposals(path, SCENES.select([0, 2, 1]))
    with pytest.raises(DataError, match="their number or sizes differ"):
        Proposals(path, SCENES.select([0, 1]))


def test_a_damaged_file_is_named(written):
    path, _ = written
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"proposals\.safetensors: cannot be read"):
        Proposals(path, SCENES)


@pytest.mark.parametrize("offsets", [[0, 7, 7, 12], [0, 7, 6, 11], [1, 7, 7, 11], [0, 9, 7, 11], [7]])
def test_damaged_offsets_are_named(written, offsets):
    path, _ = written
    save_file({**load_file(path), "offsets": np.array(offsets)}, path)
    with pytest.raises(DataError, match=r"cannot be read \(boxes that belong to no image\): remove the file"):
        Proposals(path, SCENES)


def test_names_that_are_not_unicode(tmp_path):
    scenes = replace(SCENES, image_ids=("a", "b\udcff", "c"))
    write_proposals(tmp_path / "p.safetensors", scenes, [some_boxes(2, index) for index in range(3)])
    assert len(Proposals(tmp_path / "p.safetensors", scenes)) == 3


def test_half_written_is_not_there(tmp_path):
    def boxes():
        yield some_boxes(3, 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_proposals(tmp_path / "proposals.safetensors", SCENES, boxes())
    assert list(tmp_path.iterdir()) == []


def test_they_are_resized_and_flipped_with_their_image(written):
    """Truth: the picture's factor; (w - x2, y1, w - x1, y2), in the same order."""
    path, boxes = written
    flip = AugmentationConfig(flip=1)
    for index in range(3):
        plain = DetectionDataset(SCENES, 96, 160, proposals=Proposals(path, SCENES))[index]
        scale_y, scale_x = plain.scale
        assert plain.proposals is not None
        np.testing.assert_allclose(
            plain.proposals, boxes[index] * [scale_x, scale_y, scale_x, scale_y], rtol=1e-6
        )
        flipped = DetectionDataset(SCENES, 96, 160, flip, proposals=Proposals(path, SCENES))[index]
        assert flipped.proposals is not None
        width = plain.image.shape[2]
        x1, y1, x2, y2 = plain.proposals.numpy().T
        expected = np.stack((width - x2, y1, width - x1, y2), axis=1)
        np.testing.assert_allclose(flipped.proposals, expected, atol=1e-3)
        np.testing.assert_array_equal(flipped.image, plain.image.flip(2))
        assert len(flipped.boxes) == len(plain.boxes)
        assert DetectionDataset(SCENES, 96, 160)[index].proposals is None
