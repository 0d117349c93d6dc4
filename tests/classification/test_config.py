"""The shipped recipes of classification are valid, train a step each, and say what the paper's numbers are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detres.classification.classifier import start_classifier
from detres.classification.config import ClassificationConfig
from detres.classification.data import read_image_labels
from detres.classification.task import ClassificationData, ClassifierSetup, build_classifier_task
from detres.config import load_config
from detres.data.config import Source
from detres.errors import ConfigError
from detres.tasks.start import read_start
from detres.training.config import make_plan

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(
    path for room in ("classification", "cifar10", "imagenet") for path in (CONFIGS / room).glob("*.yaml")
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_recipe_trains_a_step(path):
    """At tiny size: its own network at an eighth of its width, its own mean, colors, losses and crops of 32 px."""
    config = load_config(ClassificationConfig, path)
    assert config.data.train
    assert config.data.val
    crop = {"size": 32}
    if config.data.crop.train_sides:
        crop |= {"train_sides": [32, 40], "test_side": 32}
    small = load_config(
        ClassificationConfig,
        path,
        [
            f"data.crop={crop}".replace("'", ""),
            "model.network.width=0.125",
            "model.init=null",
            "model.freeze_at=0",
            "data.mean_images=4",
            "train.workers=0",
        ],
    )
    images = read_image_labels([Source(dir="shapes:8")], side=32)
    start = start_classifier(small.model, read_start(small.model.network, None), images.class_names, seed=0)
    setup = ClassifierSetup(small, ClassificationData(images, images), start)
    task = build_classifier_task(setup, torch.device("cpu"), quiet=True)
    samples = [task.dataset[0, index] for index in range(2)]
    losses = task.losses(task.collate(samples), torch.Generator().manual_seed(0))
    losses["class"].backward()
    assert torch.isfinite(losses["class"])
    gradients = [p.grad for p in task.network.parameters() if p.requires_grad]
    assert gradients
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("path", sorted((CONFIGS / "cifar10").glob("[rp]*.yaml")), ids=lambda path: path.stem)
def test_cifar_recipes_are_the_papers(path):
    """§4.2: 64k iterations of 128, divided at 32k and 48k; the file's name is the network's."""
    config = load_config(ClassificationConfig, path)
    plan = make_plan(config.train, 50_000)
    assert (plan.iterations, plan.milestones, plan.images_per_step, plan.rate) == (
        64_000,
        (32_000, 48_000),
        128,
        0.1,
    )
    assert config.train.weight_decay == 1e-4
    family, depth = path.stem.rstrip("0123456789"), path.stem.lstrip("abcdefghijklmnopqrstuvwxyz")
    assert config.model.network.name == {"r": "cifar_resnet", "plain": "cifar_plain"}[family] + depth
    assert config.data.crop.pad == 4
    short = load_config(ClassificationConfig, path, ["train.length=8 epochs"])
    assert make_plan(short.train, 50_000).milestones == (1563, 2344)  # of 3125


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "imagenet").glob("[rp]*.yaml")), ids=lambda path: path.stem
)
def test_imagenet_recipes_are_the_papers(path):
    """§3.4: batch 256, the rate from 0.1 by plateaus, 60e4 iterations; shorter sides of 256 to 480; Caffe's form."""
    config = load_config(ClassificationConfig, path, ["train.batch=32", "train.accumulate=8"])
    plan = make_plan(config.train, 1_281_167)
    assert (plan.iterations, plan.images_per_step, plan.rate) == (600_000, 256, 0.1)
    assert (config.train.schedule, config.train.weight_decay, config.train.momentum) == ("plateau", 1e-4, 0.9)
    crop = config.data.crop
    assert (crop.size, crop.train_sides, crop.test_side, crop.pca_color) == (224, (256, 480), 256, 0.1)
    assert config.data.mean == "pixel"
    network, (kind, _, option) = config.model.network, path.stem.partition("_")
    assert network.name == (kind if kind.startswith("plain") else f"resnet{kind[1:]}")
    assert (network.stride_in, network.pool) == ("1x1", "caffe")
    if kind.startswith("r"):
        assert network.shortcut == (option or {"r18": "A"}.get(kind, "B"))


def test_cifar_network_cannot_freeze_stages(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {network: {name: cifar_resnet20}, freeze_at: 2}\n")
    with pytest.raises(ConfigError, match=r"model\.freeze_at: a CIFAR network has no conv1"):
        load_config(ClassificationConfig, tmp_path / "c.yaml")


def test_mean_of_other_weights_is_refused():
    with pytest.raises(ConfigError, match=r"data\.mean: the preprocessing comes with the weights"):
        load_config(ClassificationConfig, None, ["model.init=w.safetensors", "data.mean=pixel"])
