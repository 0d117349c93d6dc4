"""Corrupt pictures in the middle of an epoch, and pictures held out: truth is what the test broke and counted."""

from __future__ import annotations

import json

import pytest
import torch

from detres.classification.config import ClassificationConfig
from detres.classification.data import read_image_labels
from detres.classification.evaluate import evaluate_classifier
from detres.classification.task import (
    build_classifier_task,
    prepare_classifier,
    read_classification_data,
    train_classifier,
)
from detres.config import load_config
from detres.data.classification_samples import ClassificationDataset
from detres.data.config import Source
from detres.data.decoding import read_image
from detres.data.drawing import write_image
from detres.data.preprocessing import TORCHVISION
from detres.data.shapes import shapes_labels
from detres.errors import ConfigError, DataError
from detres.training.run_folder import RunFolder

CPU = torch.device("cpu")
SMALL = (
    "data.crop={size: 32, train_sides: [32, 32], test_side: 32}",
    "model.network={name: resnet18, width: 0.125}",
    "train.batch=4",
    "train.warmup_iterations=0",
    "train.length=3 epochs",
)


@pytest.fixture
def tree(tmp_path):
    """Ten pictures of five classes; the sixth (of all, sorted) is cut off."""
    images = shapes_labels("train", 10, side=40)
    for index in range(10):
        name = images.class_names[images.labels[index]]
        write_image(tmp_path / "forms" / "train" / name / f"{index}.jpg", read_image(images.paths[index]))
    broken = sorted((tmp_path / "forms").rglob("*.jpg"))[5]
    broken.write_bytes(broken.read_bytes()[:-100])
    return tmp_path / "forms", broken


def run(tree, folder, *settings):
    sources = f"[{{dir: {tree}, split: train}}]"
    data = f"data.train={sources}", f"data.val={sources}"
    config = load_config(ClassificationConfig, None, [*SMALL, *data, *settings])
    setup = prepare_classifier(config, CPU)
    with RunFolder.open(folder, setup.config) as opened:
        return train_classifier(setup, opened, CPU, quiet=True)


def task_of(tree, *settings):
    data = f"data.train=[{{dir: {tree[0]}, split: train}}]"
    config = load_config(ClassificationConfig, None, [*SMALL, data, *settings])
    return build_classifier_task(prepare_classifier(config, CPU), CPU)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_stops_the_run_and_is_named(tree, tmp_path, workers):
    with pytest.raises(
        DataError, match=rf"^picture {tree[1]} is truncated \(a JPEG without its end, \d+ bytes\)"
    ):
        run(tree[0], tmp_path / "run", f"train.workers={workers}")


def test_corrupt_images_are_skipped_named_once_and_counted(tree, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="detres"):
        run(tree[0], tmp_path / "run", "data.unreadable=skip", "data.mean=pixel", "train.workers=1")
    told = [record.getMessage() for record in caplog.records if str(tree[1]) in record.getMessage()]
    assert len(told) == 1  # for the mean, in training and in each evaluation once
    assert told[0].endswith("left out (1 so far)")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["data/left_out"] for line in lines if "lr" in line} == {1}
    assert [line["step"] for line in lines if "val/top1_error" in line] == [3, 6, 8]  # 30 keys, 4 a step


def test_crops_of_a_batch_without_the_corrupt_one(tree):
    images = read_image_labels([Source(dir=str(tree[0]))])
    task = task_of(tree, "data.unreadable=skip")
    batch = task.collate([task.dataset[0, index] for index in (4, 5, 6)])
    assert batch.names == [images.paths[4], images.paths[6]]
    assert batch.labels.tolist() == images.labels[[4, 6]].tolist()
    assert batch.images.shape == (2, 3, 32, 32)
    alone = task.collate([task.dataset[0, 5]])
    assert len(alone) == 0
    task.draw_first_batch(alone, tree[0])  # nothing to draw, and what is wrong is said by the step itself
    assert not list(tree[0].glob("*.jpg"))
    with pytest.raises(DataError, match="no image of a batch can be read: picture"):
        task.losses(alone, torch.Generator())


@pytest.mark.parametrize("batch", [1, 4])
def test_evaluation_counts_what_it_left_out(tree, batch):
    images = read_image_labels([Source(dir=str(tree[0]))])
    config = load_config(ClassificationConfig, None, [*SMALL])
    task = task_of(tree)
    crops = ClassificationDataset(images, config.data.crop, train=False, skip_unreadable=True)
    network = task.network.eval()
    found = evaluate_classifier(network, TORCHVISION, crops, batch=batch, quiet=True)
    whole = images.select([index for index in range(10) if index != 5])
    rest = ClassificationDataset(whole, config.data.crop, train=False)
    expected = evaluate_classifier(network, TORCHVISION, rest, quiet=True)
    assert (found.images, found.left_out) == (9, 1)
    assert found.errors() == expected.errors()


def test_held_out_images_stand_in_for_validation():
    settings = ["data.train=[{dir: 'shapes:30'}]", "data.val=[{dir: 'shapes:8', split: val}]"]
    config = load_config(ClassificationConfig, None, [*settings, "data.val_count=10"])
    data = read_classification_data(config)
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (20, 10)
    assert "/train/" in data.val.paths[0]
    config = load_config(ClassificationConfig, None, settings)
    data = read_classification_data(config)
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (30, 8)


def test_a_batch_of_one_value_for_bn_is_left_out(tree, tmp_path):
    """Of two images one can be read, and crops of 32 pixels end in maps of 1 x 1."""
    run(tree[0], tmp_path / "run", "data.unreadable=skip", "train.batch=2", "train.length=9 iterations")
    lines = (tmp_path / "run/log.txt").read_text()
    assert "alone of its batch can be read, and BN needs two; left out" in lines


def test_one_image_for_bn_is_refused(tree, tmp_path):
    tree[1].unlink()
    with pytest.raises(ConfigError, match=r"train\.batch: 1 image of 32 pixels is one value"):
        run(tree[0], tmp_path / "run", "train.batch=1")
    assert not (tmp_path / "run").exists()
    run(
        tree[0],
        tmp_path / "run",
        "train.batch=1",
        "train.length=2 iterations",
        "model.freeze_batch_norm=true",
    )
