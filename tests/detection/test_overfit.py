"""It learns: eight pictures by heart (real ones, else drawn), by the loop and the figures that a user's run has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from detres.config import load_config
from detres.data.detection_samples import DetectionDataset
from detres.data.formats import read_annotations
from detres.data.preprocessing import TORCHVISION, normalize
from detres.data.records import Annotations
from detres.data.shapes import shapes_annotations
from detres.detection.config import DetectionConfig
from detres.detection.data import TrainingData
from detres.detection.task import build_detector_task
from detres.networks.config import NetworkConfig
from detres.networks.norm import update_batch_norm_statistics
from detres.networks.resnet import build_network
from detres.tasks.start import read_start
from detres.training.loop import train
from detres.training.run_folder import RunFolder
from detres.weights.checkpoint import Metadata, save_weights

IMAGES = 8
SIDES = (128, 200)
COMMON = [
    f"data.short_side={SIDES[0]}",
    f"data.long_side={SIDES[1]}",
    "data.augmentation.flip=0",
    "model.pooler=roi_align",
    "rpn.channels=128",
    "rpn.anchor_sizes=[16, 32, 64, 128]",
    "rpn.cross_boundary=true",
    "rpn.min_size=4",
    "rpn.pre_nms_top_n=600",
    "rpn.proposals=100",
    "rpn.batch_size_per_image=64",
    "rcnn.positive_fraction=0.5",
    "train.workers=0",
    "train.clip=5",
    "train.warmup_iterations=50",
    "train.evaluate_every=null",
    "test.proposals=60",
    "test.nms_thresh=0.5",
]


def plain_images(annotations: Annotations) -> Annotations:
    """The first pictures with one to three objects, none of them difficult."""
    rows = [annotations.objects(index) for index in range(len(annotations))]
    plain = [i for i, of_image in enumerate(rows) if 1 <= len(annotations.labels[of_image]) <= 3]
    return annotations.select([i for i in plain if not annotations.difficult[rows[i]].any()][:IMAGES])


def real_images(folder: Path) -> Annotations:
    voc, _ = read_annotations(folder / "voc2007_mini", "train")
    return plain_images(voc)


def fresh_backbone(images: Annotations, path: Path) -> Path:
    """A narrow ResNet-18 with random weights, its BN statistics those of the pictures (identity BN learns poorly)."""
    config = NetworkConfig(name="resnet18", width=0.25, stride_in="3x3")
    network = build_network(config, num_classes=2)
    dataset = DetectionDataset(images, *SIDES)
    update_batch_norm_statistics(
        network, [normalize(dataset[index].image[None], TORCHVISION) for index in range(len(dataset))]
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


def learnt_by_heart(images: Annotations, overrides: list[str], run: Path) -> dict[str, float | None]:
    """The figures on the training pictures after a whole run on them."""
    config = load_config(DetectionConfig, None, [*COMMON, *overrides])
    device = torch.device("cpu")
    start = read_start(config.model.network, config.model.init)
    task = build_detector_task(config, TrainingData(images, images), start, device, quiet=True)
    with RunFolder.open(run, config) as folder:
        train(task, config.train, folder, device, quiet=True)
    with torch.no_grad():
        return dict(task.evaluate(task.network.eval()))


@pytest.fixture
def one_thread():
    """On maps this small a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_overfits_eight_images(tmp_path):
    folder = os.environ.get("DETRES_DATA")
    images = real_images(Path(folder)) if folder else plain_images(shapes_annotations("train", 40, seed=1))
    backbone = fresh_backbone(images, tmp_path / "backbone.safetensors")
    figures = learnt_by_heart(
        images,
        [
            f"model.init={backbone}",
            "model.freeze_at=0",
            "rcnn.batch_size_per_image=32",
            "train.batch=4",
            "train.lr=0.02",
            "train.length=400 iterations",
            "train.milestones=[330 iterations]",
        ],
        tmp_path / "run",
    )
    assert (figures["AP50"] or 0) >= 0.99, figures
