"""Training a classifier: it learns, frozen stages stay bit-equal, its file is what was evaluated."""

from __future__ import annotations

import json

import pytest
import torch

from detres.classification.classifier import crop_of, read_classifier
from detres.classification.config import ClassificationConfig
from detres.classification.data import read_image_labels
from detres.classification.evaluate import evaluate_classifier
from detres.classification.task import build_classifier_task, prepare_classifier, train_classifier
from detres.config import load_config
from detres.data.classification_samples import ClassificationDataset
from detres.data.config import Source
from detres.data.preprocessing import TORCHVISION
from detres.training.run_folder import RunFolder

CPU = torch.device("cpu")
BASE = (
    "data.crop={size: 48, train_sides: [48, 48], test_side: 48, flip: 0}",
    "model.network={name: resnet18, width: 0.25}",
    "train.workers=0",
    "train.warmup_iterations=0",
    "train.weight_decay=0",
)


def run(config: ClassificationConfig, folder) -> dict:
    setup = prepare_classifier(config, CPU)
    with RunFolder.open(folder, setup.config) as opened:
        return train_classifier(setup, opened, CPU, quiet=True)


def test_overfits_32_drawn_images(tmp_path):
    source = "[{dir: 'shapes:32', split: train}]"
    data = f"data.train={source}", f"data.val={source}"
    length = "train.length=60 iterations", "train.evaluate_every=60 iterations"
    rate = "train.batch=16", "train.lr=0.02", "train.schedule=cosine"
    config = load_config(ClassificationConfig, None, [*BASE, *data, *length, *rate])
    figures = run(config, tmp_path / "run")
    assert figures["top1_error"] == 0
    assert figures["loss/class"] is not None
    assert figures["loss/class"] < 0.1
    # The weights file is the network that was evaluated.
    network, _, metadata = read_classifier(tmp_path / "run" / "model.safetensors")
    images = ClassificationDataset(
        read_image_labels([Source(dir="shapes:32")], side=48), crop_of(metadata), train=False
    )
    found = evaluate_classifier(network, metadata.preprocessing, images, quiet=True)
    assert found.errors() == {name: figures[name] for name in ("top1_error", "top5_error")}
    assert found.loss == pytest.approx(figures["loss/class"], rel=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["val/top1_error"] == 0
    assert (tmp_path / "run" / "images" / "first_batch.jpg").is_file()


def test_frozen_trunk_stays_bit_equal_and_the_rest_is_trained(tmp_path):
    base = load_config(ClassificationConfig, None, [*BASE, "data.train=[{dir: 'shapes:16'}]"])
    names = read_image_labels(base.data.train).class_names
    start = build_classifier_task(prepare_classifier(base, CPU), CPU)
    start.export(start.network, tmp_path / "start.safetensors")
    settings = (
        f"model.init={tmp_path / 'start.safetensors'}",
        "model.freeze_at=4",
        "train.batch=8",
        "train.lr=0.1",
    )
    config = load_config(
        ClassificationConfig,
        None,
        [*BASE, *settings, "data.train=[{dir: 'shapes:16'}]", "train.length=3 iterations"],
    )
    run(config, tmp_path / "run")
    before = read_classifier(tmp_path / "start.safetensors")[0].state_dict()
    network, architecture, metadata = read_classifier(tmp_path / "run" / "model.safetensors")
    assert (architecture.frozen_stages, metadata.class_names) == (4, names)
    for name, tensor in network.state_dict().items():
        frozen = not name.startswith(("layer4", "fc"))
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, before[name]) == frozen, name


def test_evaluation_does_not_depend_on_the_batch():
    config = load_config(ClassificationConfig, None, [*BASE, "data.train=[{dir: 'shapes:10'}]"])
    images = read_image_labels(config.data.train, side=48)
    task = build_classifier_task(prepare_classifier(config, CPU), CPU)
    network = task.network.eval()
    crops = ClassificationDataset(images, config.data.crop, train=False)
    whole, single = (
        evaluate_classifier(network, TORCHVISION, crops, batch=batch, quiet=True) for batch in (10, 1)
    )
    assert whole.errors() == single.errors()
    assert whole.loss == pytest.approx(single.loss, rel=1e-5)
    assert whole.images == 10
