"""Every recipe of configs/ builds its network, takes one training step and tests one picture.

By default narrow and on small drawn pictures; with --slow as wide and large as the recipe says. Initial weights are
random, for the recipes' own are to be downloaded or made.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_docs import CONFIGS, config_class, name_of

import detres
from detres.classification.classifier import Architecture as ClassifierArchitecture
from detres.classification.classifier import build_classifier
from detres.classification.config import ClassificationConfig
from detres.config import load_config
from detres.data.decoding import read_image
from detres.data.detection_samples import DetectionDataset
from detres.data.proposals import Proposals, write_proposals
from detres.data.shapes import shapes_annotations
from detres.detection import alternating
from detres.detection.config import DetectionConfig, DetectorTrainConfig
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.train import build_task
from detres.detection.training_data import TrainingData
from detres.networks.config import NetworkConfig
from detres.training.optimiser import build_optimiser
from detres.weights.foreign import TORCHVISION_PREFIX

CPU = torch.device("cpu")
SMALL_SIDE, NARROW = 96, 0.125
DETECTION = [path for path in CONFIGS if config_class(path) is DetectionConfig]
CLASSIFICATION = [path for path in CONFIGS if config_class(path) is ClassificationConfig]


def network_of(
    config: DetectionConfig | ClassificationConfig, path: Path, width: float | None
) -> NetworkConfig:
    """The network that the recipe's initial weights would settle, `width` beats its own."""
    init, network = config.model.init or "", config.model.network
    if init.startswith(TORCHVISION_PREFIX):
        network = network.model_copy(update={"name": init.removeprefix(TORCHVISION_PREFIX)})
    elif "r18" in path.stem:
        network = network.model_copy(update={"name": "resnet18"})
    return network.model_copy(update={"width": width}) if width else network


def shrunk(config: DetectionConfig) -> DetectionConfig:
    """The recipe for pictures of about 100 px: all lengths in pixels shrink alike, counts of references fall."""
    factor = SMALL_SIDE / config.data.short_side
    data = {"short_side": SMALL_SIDE, "long_side": round(config.data.long_side * factor)}
    rpn = {
        "channels": 16,
        "sizes": tuple(size * factor for size in config.rpn.sizes),
        "samples": 32,
        "proposals_before_nms": 200,
        "proposals": 20,
        "min_side": config.rpn.min_side * factor,
    }
    test = {"proposals": 10, "proposals_before_nms": 100}
    scales = getattr(config.test, "scales", None)
    if scales:
        test["scales"] = tuple(max(32, round(side * factor)) for side in scales)  # type: ignore[assignment]
    return changed(config, data=data, rpn=rpn, rcnn={"samples": 8}, test=test)


def changed(config: DetectionConfig, **sections: Mapping[str, object]) -> DetectionConfig:
    update = {name: getattr(config, name).model_copy(update=keys) for name, keys in sections.items()}
    return config.model_copy(update=update)


def train_and_test(config: DetectionConfig, folder: Path) -> None:
    scenes = shapes_annotations("train", 2)
    task = build_task(config, TrainingData(scenes, None), CPU, quiet=True)
    network = task.network.train()
    assert isinstance(network, FasterRCNN)
    if config.train.mode == "joint":
        samples = [task.dataset[(0, index)] for index in range(min(config.train.batch, 2))]
        assert len(take_step(network, config.train, partial(task.losses, samples))) == 4
    else:
        take_alternating_steps(config, task, network, folder)
    task.export(network.eval(), folder / "model.safetensors")
    found = detres.load(folder / "model.safetensors", device="cpu")(read_image(scenes.paths[0]))
    assert found.boxes.shape == (len(found.scores), 4)
    assert found.boxes.isfinite().all()


def take_step(network: FasterRCNN, train: DetectorTrainConfig, losses_of) -> dict[str, torch.Tensor]:
    """One step of the optimiser: most of what is trained moves, the rest keeps every bit."""
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimiser = build_optimiser(
        network, rate=train.lr, momentum=train.momentum, weight_decay=train.weight_decay, kind=train.optimiser
    )
    losses = losses_of(torch.Generator().manual_seed(0))
    assert all(loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    moved = {
        name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert moved <= trained
    assert len(moved) > len(trained) / 2
    return losses


def take_alternating_steps(config: DetectionConfig, task, network: FasterRCNN, folder: Path) -> None:
    """One iteration of each of the four steps, with its own keys and parts, on proposals around the objects."""
    scenes = task.dataset.annotations
    noise = np.random.default_rng(0)
    boxes = [scenes.boxes[scenes.objects(index)].repeat(5, axis=0) for index in range(len(scenes))]
    moved = [of_picture + noise.normal(0, 4, of_picture.shape) for of_picture in boxes]
    path = folder / "proposals.safetensors"
    write_proposals(path, scenes, moved)
    sides = config.data.short_side, config.data.long_side
    dataset = DetectionDataset(scenes, *sides, proposals=Proposals(path, scenes))
    options = config.step_options(len(scenes.class_names))
    alternating.check_steps(config, 10_000)
    for step in alternating.STEPS:
        own = config.train.of_step(step.trains)
        samples = [dataset[index] for index in range(min(own.batch, 2))]
        alternating.train_only(network, alternating._trained_parts(network, step), config.model.freeze_at)
        names = ["rpn_objectness", "rpn_box"] if step.trains == "rpn" else ["region_class", "region_box"]
        of_step = alternating.rpn_step_losses if step.trains == "rpn" else alternating.region_step_losses
        losses = take_step(network, own, partial(of_step, network, options, CPU, samples))
        assert list(losses) == names


@pytest.mark.parametrize("path", DETECTION, ids=name_of)
def test_a_detector_trains_and_tests(path: Path, tmp_path: Path):
    config = load_config(DetectionConfig, path)
    model = {"init": None, "init_classes": {}, "network": network_of(config, path, NARROW)}
    train_and_test(changed(shrunk(config), model=model), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("path", DETECTION, ids=name_of)
def test_a_detector_trains_and_tests_at_full_size(path: Path, tmp_path: Path):
    config = load_config(DetectionConfig, path)
    model = {"init": None, "init_classes": {}, "network": network_of(config, path, None)}
    train_and_test(changed(config, model=model), tmp_path)


@pytest.mark.parametrize("path", CLASSIFICATION, ids=name_of)
def test_a_classifier_trains_and_tests(path: Path):
    classify(path, NARROW, side=64)


@pytest.mark.slow
@pytest.mark.parametrize("path", CLASSIFICATION, ids=name_of)
def test_a_classifier_trains_and_tests_at_full_size(path: Path):
    classify(path, None, side=None)


def classify(path: Path, width: float | None, side: int | None) -> None:
    config = load_config(ClassificationConfig, path)
    side = side or config.data.crop.size
    network = network_of(config, path, width)
    architecture = ClassifierArchitecture(network=network, frozen_stages=0)
    classifier = build_classifier(architecture, 5).train()
    optimiser = build_optimiser(
        classifier, rate=1e-3, momentum=0.9, weight_decay=1e-4, kind=config.train.optimiser
    )
    images = torch.randn(2, 3, side, side)
    loss = torch.nn.functional.cross_entropy(classifier(images), torch.tensor([1, 4]))
    loss.backward()
    optimiser.step()
    with torch.no_grad():  # with the batch's statistics: those of one step let 110 plain layers overflow
        scores = classifier(images).softmax(dim=1)
    assert scores.shape == (2, 5)
    assert scores.isfinite().all()
