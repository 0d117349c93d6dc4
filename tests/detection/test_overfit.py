"""It learns: eight pictures by heart (real ones, else drawn), by the loop and the figures that a user's run has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from detres.config import load_config
from detres.data.detection_samples import DetectionDataset
from detres.data.discover import read_annotations
from detres.data.preprocessing import TORCHVISION, normalise
from detres.data.records import Annotations
from detres.data.shapes import shapes_annotations
from detres.detection.config import DetectionConfig
from detres.detection.train import build_task
from detres.detection.training_data import TrainingData
from detres.networks.config import NetworkConfig
from detres.networks.norm import pooled_statistics
from detres.networks.resnet import build_network
from detres.training.loop import train
from detres.training.run_folder import RunFolder
from detres.weights.ours import Metadata, save_weights

PICTURES = 8
SIDES = (128, 200)
COMMON = [
    f"data.short_side={SIDES[0]}",
    f"data.long_side={SIDES[1]}",
    "data.augmentation.flip=0",
    "model.region_pooling=align",
    "rpn.channels=128",
    "rpn.sizes=[16, 32, 64, 128]",
    "rpn.cross_border=true",
    "rpn.min_side=4",
    "rpn.proposals_before_nms=600",
    "rpn.proposals=100",
    "rpn.samples=64",
    "rcnn.positive_share=0.5",
    "train.workers=0",
    "train.clip=5",
    "train.warmup_iterations=50",
    "train.evaluate_every=null",
    "test.proposals=60",
    "test.nms=0.5",
]


def plain_pictures(annotations: Annotations) -> Annotations:
    """The first pictures with one to three objects, none of them difficult."""
    rows = [annotations.objects(index) for index in range(len(annotations))]
    plain = [i for i, of_picture in enumerate(rows) if 1 <= len(annotations.labels[of_picture]) <= 3]
    return annotations.select([i for i in plain if not annotations.difficult[rows[i]].any()][:PICTURES])


def real_pictures(folder: Path) -> Annotations:
    voc, _ = read_annotations(folder / "voc2007_mini", "train")
    return plain_pictures(voc)


def fresh_backbone(pictures: Annotations, path: Path) -> Path:
    """A narrow ResNet-18 with random weights, its BN statistics those of the pictures (identity BN learns poorly)."""
    config = NetworkConfig(name="resnet18", width=0.25, stride_in="3x3")
    network = build_network(config, num_classes=2)
    dataset = DetectionDataset(pictures, *SIDES)
    pooled_statistics(
        network, [normalise(dataset[index].image[None], TORCHVISION) for index in range(len(dataset))]
    )
    metadata = Metadata(
        task="classification",
        architecture={"network": config.model_dump(mode="json")},
        class_names=("one", "other"),
        preprocessing=TORCHVISION,
        sizes={"crop": SIDES[0]},
    )
    save_weights(path, network.state_dict(), metadata)
    return path


def learnt_by_heart(pictures: Annotations, overrides: list[str], run: Path) -> dict[str, float | None]:
    """The figures on the training pictures after a whole run on them."""
    config = load_config(DetectionConfig, None, [*COMMON, *overrides])
    device = torch.device("cpu")
    task = build_task(config, TrainingData(pictures, pictures), device, quiet=True)
    with RunFolder.open(run, config) as folder:
        train(task, config.train, folder, device, quiet=True)
    assert task.evaluate is not None
    with torch.no_grad():
        return dict(task.evaluate(task.network.eval()))


@pytest.fixture
def one_thread():
    """On maps this small a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_overfits_eight_pictures(tmp_path):
    folder = os.environ.get("DETRES_DATA")
    pictures = (
        real_pictures(Path(folder)) if folder else plain_pictures(shapes_annotations("train", 40, seed=1))
    )
    backbone = fresh_backbone(pictures, tmp_path / "backbone.safetensors")
    figures = learnt_by_heart(
        pictures,
        [
            f"model.init={backbone}",
            "model.freeze_at=0",
            "rcnn.samples=32",
            "train.batch=4",
            "train.lr=0.02",
            "train.length=400 iterations",
            "train.milestones=[330 iterations]",
        ],
        tmp_path / "run",
    )
    assert (figures["AP50"] or 0) >= 0.99, figures
