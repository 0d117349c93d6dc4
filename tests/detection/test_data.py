"""Which splits are trained and validated on; what a folder's names mean; the hold-out."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from detres.config import load_config
from detres.data.config import Source
from detres.data.shapes import shapes_annotations
from detres.data.writers import write_coco, write_voc, write_yolo
from detres.detection.config import DetectionConfig
from detres.detection.data import (
    TrainingData,
    choose_splits,
    log_training_data,
    read_training_data,
    with_data,
    with_init,
)
from detres.detection.train import read_training
from detres.errors import ConfigError, DataError, UserError


def folder_with(root: Path, *splits: str) -> str:
    for split in splits:
        write_voc(shapes_annotations("train", 1), root, split, images="none")
    return str(root)


def configured(*overrides: str) -> DetectionConfig:
    return load_config(DetectionConfig, None, overrides)


def read(config: DetectionConfig, seed: int = 0) -> TrainingData:
    return read_training_data(config.data, seed)


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "val", "test"), ("train", "val")),
        (("train", "trainval", "val", "test"), ("train", "val")),
        (("train", "valid", "test"), ("train", "valid")),
        (("train2017", "val2017", "val"), ("train2017", "val2017")),
        (("train", "test"), ("train", None)),  # test is left for the figures that are reported
        (("trainval", "val", "test"), ("trainval", None)),  # val is a part of trainval
        (("everything",), ("everything", None)),
    ],
)
def test_splits_are_chosen_by_name(tmp_path, splits, expected):
    assert choose_splits(folder_with(tmp_path, *splits)) == expected


def test_splits_that_say_too_little_or_too_much(tmp_path):
    for number, splits in enumerate((("first", "second"), ("train2014", "train2017", "val2017"))):
        folder = folder_with(tmp_path / str(number), *splits)
        with pytest.raises(ConfigError, match=rf"has the splits {splits[0]}, {splits[1]}.*--split NAME"):
            choose_splits(folder)
        assert choose_splits(folder, splits[1])[0] == splits[1]
    assert choose_splits(str(tmp_path / "1"), "train2017") == ("train2017", "val2017")
    with pytest.raises(ConfigError, match="split 'train' is not there; it has first, second"):
        choose_splits(str(tmp_path / "0"), "train")


def test_two_formats_in_one_folder(tmp_path):
    scenes = shapes_annotations("train", 1)
    write_voc(scenes, tmp_path, "train", images="none")
    write_yolo(scenes, tmp_path, "train", images="copy")
    with pytest.raises(UserError, match="--format voc or --format yolo"):
        choose_splits(str(tmp_path))
    config = with_data(configured(), str(tmp_path), format="voc")
    assert config.data.train == (Source(dir=str(tmp_path), split="train", format="voc"),)


def test_data_beats_the_configuration(tmp_path):
    folder = folder_with(tmp_path, "train", "val", "test", "trainval")
    recipe = configured("data.train=[{dir: bccd, split: trainval}]", "data.val=[{dir: bccd, split: test}]")
    changed = with_data(recipe, folder).data
    assert (changed.train, changed.val) == (
        (Source(dir=folder, split="trainval"),),
        (Source(dir=folder, split="test"),),
    )
    chosen = with_data(recipe, folder, split="train").data
    assert chosen.train == (Source(dir=folder, split="train"),)
    assert with_data(recipe, None) is recipe
    several = configured("data.train=[{dir: voc07, split: trainval}, {dir: voc12, split: trainval}]")
    with pytest.raises(ConfigError, match="unites voc07, voc12"):
        with_data(several, folder)


def test_drawn_shapes():
    data = with_data(configured(), "shapes:5").data
    assert data.train == (Source(dir="shapes:5", split="train"),)
    assert data.val == (Source(dir="shapes:5", split="val"),)


def test_init_beats_the_configuration():
    recipe = configured("model.init=a.pth")
    assert with_init(recipe, "b.pth").model.init == "b.pth"
    assert with_init(recipe, None) is recipe


def test_no_data_at_all():
    with pytest.raises(ConfigError, match="give --data DIR"):
        read(configured())


def test_images_are_held_out_where_no_validation_data_is_named(caplog):
    """The same seed gives the same parts; the objects stay with their images."""
    config = configured("data.train=[{dir: 'shapes:20', split: train}]")
    scenes = shapes_annotations("train", 20)
    boxes = {scenes.image_ids[i]: scenes.boxes[scenes.objects(i)] for i in range(20)}
    held = []
    for seed in (0, 0, 1):
        data = read(config, seed)
        assert data.val is not None
        ids = [[part.image_ids[i] for i in range(len(part))] for part in (data.train, data.val)]
        assert (len(ids[0]), len(ids[1])) == (17, 3)
        assert sorted(ids[0] + ids[1]) == sorted(boxes)
        for index, name in enumerate(ids[1]):
            assert np.array_equal(data.val.boxes[data.val.objects(index)], boxes[name])
        held.append(ids[1])
    assert held[0] == held[1] != held[2]
    with caplog.at_level(logging.INFO, "detres"):
        log_training_data(data)
    assert "no validation data is named: 3 of 20 images are held out for it" in caplog.messages


@pytest.mark.parametrize(
    ("images", "keys", "held"),
    [
        (20, ["data.val_fraction=0"], 0),
        (2, [], 0),
        (1, ["data.val_fraction=0.9"], 0),
        (3, ["data.val_fraction=0.99"], 2),
        (20, ["data.val_count=4"], 4),
        (20, ["data.val_count=4", "data.val=[{dir: shapes, split: val}]"], 4),
    ],
)
def test_how_many_are_held_out(images, keys, held):
    data = read(configured(f"data.train=[{{dir: 'shapes:{images}', split: train}}]", *keys))
    assert len(data.train) == images - held
    assert (len(data.val) if data.val else 0) == held
    assert data.held_out


def test_what_readers_dropped_is_logged(tmp_path, caplog):
    scenes = shapes_annotations("train", 2)
    scenes.boxes[0, 2] = scenes.boxes[0, 0]
    write_coco(scenes, tmp_path, "train")
    with caplog.at_level(logging.INFO, "detres"):
        data = read(with_data(configured(), str(tmp_path)))
        assert not caplog.messages
        log_training_data(data)
    assert any("none is held out" in message for message in caplog.messages)
    assert any("1 x zero-size box" in message and "annotation 1" in message for message in caplog.messages)
    assert len(data.train.boxes) == len(scenes.boxes) - 1
    assert data.val is None


def test_validation_images_that_are_trained_on(caplog):
    config = configured(
        "data.train=[{dir: 'shapes:3', split: train}]", "data.val=[{dir: 'shapes:2', split: train}]"
    )
    with caplog.at_level(logging.WARNING, "detres"):
        log_training_data(read(config))
    assert "2 of 2 validation images are training images too" in caplog.text


def test_class_names_that_differ_between_splits(tmp_path):
    write_coco(shapes_annotations("train", 1), tmp_path, "train")
    write_coco(shapes_annotations("val", 1), tmp_path, "val")
    path = tmp_path / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace('"star"', '"stars"'))
    with pytest.raises(DataError, match=r"missing there: star; unknown: stars \(did you mean 'star'\?\)"):
        read(with_data(configured(), str(tmp_path)))


def test_an_engine_that_is_not_there_is_told_before_training(monkeypatch):
    monkeypatch.setattr("detres.evaluation.engines._hotcoco_version", lambda: None)
    asked = configured("evaluation.engine=hotcoco", "data.train=[{dir: 'shapes:4', split: train}]")
    with pytest.raises(UserError, match="hotcoco is not installed"):
        read_training(asked, torch.device("cpu"))
