"""Held-out validation images: parts that complete each other, the draws of before, one meaning of each key."""

from __future__ import annotations

import numpy as np
import pytest

from detres.classification.config import ClassificationDataConfig
from detres.config import load_config
from detres.data.config import DataConfig, DetectionDataConfig, Source
from detres.data.records import ImageLabels
from detres.data.shapes import read_shapes, shapes_labels
from detres.errors import ConfigError, DataError
from detres.tasks.hold_out import hold_out, hold_out_count

TASKS = [DetectionDataConfig, ClassificationDataConfig]


def paths(part) -> list[str]:
    return [part.paths[index] for index in range(len(part))]


@pytest.mark.parametrize("images", [shapes_labels("train", 50), read_shapes("shapes:50", "train")])
def test_the_parts_complete_each_other_and_are_always_the_same(images):
    train, held = hold_out(images, 20, seed=0)
    assert held is not None
    assert (len(train), len(held)) == (30, 20)
    assert sorted(paths(train) + paths(held)) == sorted(paths(images))
    order = np.random.default_rng(0).permutation(50)
    assert paths(held) == [images.paths[index] for index in sorted(order[:20])]
    assert paths(hold_out(images, 20, seed=1)[1]) != paths(held)
    assert train.source == images.source
    assert held.source == f"20 held out of {images.source}"


def test_labels_go_with_their_images():
    images = shapes_labels("train", 50)
    label_of = dict(zip(paths(images), images.labels.tolist(), strict=True))
    for part in hold_out(images, 20, seed=0):
        assert isinstance(part, ImageLabels)
        assert part.labels.tolist() == [label_of[path] for path in paths(part)]


def test_none_are_held_out():
    images = shapes_labels("train", 3)
    assert hold_out(images, 0, seed=0) == (images, None)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("keys", "total", "count"),
    [
        ({"val_fraction": 0.25}, 10, 2),  # round half to even
        ({"val_fraction": 0.9}, 2, 1),  # one stays to train on
        ({"val_fraction": 0.9}, 1, 0),
        ({"val_fraction": 0.9}, 0, 0),
        ({"val_fraction": 0.5, "val": ({"dir": "shapes"},)}, 10, 0),
        ({"val_count": 7}, 10, 7),
        ({"val_count": 7, "val": ({"dir": "shapes"},)}, 10, 7),
    ],
)
def test_what_the_keys_come_to(task: type[DataConfig], keys: dict, total: int, count: int):
    assert hold_out_count(task.model_validate(keys), total) == count


def test_defaults():
    assert hold_out_count(DetectionDataConfig(), 100) == 15
    assert hold_out_count(ClassificationDataConfig(), 100) == 0
    assert hold_out_count(DetectionDataConfig(val=(Source(dir="shapes"),)), 100) == 0


@pytest.mark.parametrize("count", [10, 11])
def test_nothing_left_to_train_on(count: int):
    with pytest.raises(DataError, match=rf"data\.val_count: {count} of 10 images leave none to train on"):
        hold_out_count(DataConfig(val_count=count), 10)


@pytest.mark.parametrize("task", TASKS)
def test_both_keys_are_refused_and_a_saved_configuration_can_be_read_again(task: type[DataConfig]):
    with pytest.raises(ConfigError, match="val_fraction and val_count both say how many images"):
        load_config(task, None, ["val_fraction=0.1", "val_count=3"])
    config = load_config(task, None, ["val_count=3"])
    assert task.model_validate(config.model_dump(mode="json")) == config
