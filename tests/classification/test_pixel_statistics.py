"""Mean and covariance against numpy over all pictures at once; a mean picture's file; what a weights file keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detres.classification.classifier import read_classifier
from detres.classification.config import ClassificationConfig
from detres.classification.data import read_image_labels
from detres.classification.pixel_statistics import (
    pixel_statistics,
    read_mean_image,
    read_pixel_statistics,
    save_pixel_statistics,
)
from detres.classification.task import build_classifier_task, prepare_classifier, train_classifier
from detres.config import load_config
from detres.data.classification_samples import ClassificationDataset
from detres.data.config import CropConfig, Source
from detres.errors import DataError
from detres.training.run_folder import RunFolder

CROP = CropConfig(size=24, train_sides=(24, 24), test_side=24)
CPU = torch.device("cpu")
SMALL = (
    "data={train: [{dir: 'shapes:20'}], mean: pixel, crop: {size: 24, train_sides: [24, 24], test_side: 24}}",
    "model.network={name: resnet18, width: 0.125}",
    "train={workers: 0, batch: 4, length: 2 iterations}",
)


def pixels(images, crop=CROP):
    dataset = ClassificationDataset(images, crop, train=False)
    return np.stack([dataset[index].image.numpy() for index in range(len(images))]).astype(np.float64)


def test_statistics_are_those_of_all_images_at_once(tmp_path):
    images = read_image_labels([Source(dir="shapes:20")], side=24)
    found = pixel_statistics(images, CROP, quiet=True)
    values = pixels(images)
    np.testing.assert_allclose(found.mean, values.mean(axis=0), rtol=1e-6)
    colors = values.transpose(1, 0, 2, 3).reshape(3, -1) / 255
    np.testing.assert_allclose(found.covariance, np.cov(colors, bias=True), atol=1e-12)
    some = pixel_statistics(images, CROP, limit=7, quiet=True)
    assert not np.array_equal(some.mean, found.mean)
    save_pixel_statistics(tmp_path / "pixels.npz", found)
    again = read_pixel_statistics(tmp_path / "pixels.npz", 24)
    assert again is not None
    assert np.array_equal(again.mean, found.mean)
    assert np.array_equal(again.covariance, found.covariance)
    assert read_pixel_statistics(tmp_path / "pixels.npz", 32) is None
    assert read_pixel_statistics(tmp_path / "none.npz", 24) is None
    whole = (tmp_path / "pixels.npz").read_bytes()
    for size in range(0, len(whole), 997):
        (tmp_path / "cut.npz").write_bytes(whole[:size])
        assert read_pixel_statistics(tmp_path / "cut.npz", 24) is None


def test_mean_travels_with_the_weights_and_is_what_the_network_saw(tmp_path):
    config = load_config(ClassificationConfig, None, SMALL)
    setup = prepare_classifier(config, CPU)
    with RunFolder.open(tmp_path / "run", setup.config) as run:
        train_classifier(setup, run, CPU, quiet=True)
    _, _, metadata = read_classifier(tmp_path / "run" / "model.safetensors")
    mean = pixels(read_image_labels([Source(dir="shapes:20")], side=24)).mean(axis=0)
    recipe = metadata.preprocessing
    assert recipe.mean_image is not None
    np.testing.assert_allclose(recipe.mean_image.values.numpy(), mean, rtol=1e-6)
    np.testing.assert_allclose(recipe.mean, mean.mean(axis=(1, 2)), rtol=1e-6)
    assert (recipe.channel_order, recipe.value_range, recipe.std) == ("RGB", 255, (1.0, 1.0, 1.0))


def test_colors_shift_training_crops_alone():
    config = load_config(ClassificationConfig, None, [*SMALL, "data.crop.pca_color=0.1"])
    images = read_image_labels(config.data.train, side=24)
    task = build_classifier_task(prepare_classifier(config, CPU), CPU, quiet=True)
    batch = task.collate([task.dataset[0, index] for index in range(4)])
    again = task.collate([task.dataset[0, 1]])
    assert batch.shifts is not None
    assert again.shifts is not None
    assert batch.shifts.shape == (4, 3)
    assert (batch.shifts[0] != batch.shifts[1]).all()
    assert torch.equal(again.shifts[0], batch.shifts[1])
    assert ClassificationDataset(images, config.data.crop, train=False)[0].shift is None


def test_mean_image_from_a_file(tmp_path):
    mean = np.random.default_rng(0).uniform(80, 140, (3, 24, 24)).astype(np.float32)
    np.save(tmp_path / "mean.npy", mean)
    recipe = read_mean_image(str(tmp_path / "mean.npy"), 24)
    assert recipe.channel_order == "BGR"
    assert recipe.mean_image is not None
    assert np.array_equal(recipe.mean_image.values.numpy(), mean)
    with pytest.raises(DataError, match=r"holds \(3, 24, 24\) float32; \(3, 32, 32\) numbers, BGR"):
        read_mean_image(str(tmp_path / "mean.npy"), 32)
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(DataError, match=r"text\.npy is not a \.npy file"):
        read_mean_image(str(tmp_path / "text.npy"), 24)


def test_msra_mean_image(real_data):
    recipe = read_mean_image(str(real_data / "weights" / "imagenet_mean_bgr_224.npy"), 224)
    np.testing.assert_allclose(recipe.mean, (102.9801, 115.9465, 122.7717), atol=1.5)
