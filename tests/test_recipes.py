"""Every recipe of configs/ builds its network, takes one training step and tests one picture.

By default narrow and on small drawn pictures; with --slow as wide and large as the recipe says. Initial weights are
random, for the recipes' own are to be downloaded or made. Recipes of the paper's tables say what the paper says, and so
do the commands of docs/paper.md for rows that are another test of a recipe's weights.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from test_docs import CONFIGS, ROOT, config_class, name_of, text_of

import detres
from detres.classification.classifier import build_classifier
from detres.classification.config import ClassificationConfig, ClassifierArchitecture
from detres.config import load_config
from detres.data.decoding import read_image
from detres.data.proposals import Proposals, write_proposals
from detres.data.shapes import shapes_annotations
from detres.detection import alternating
from detres.detection.config import DetectionConfig, DetectionTrainConfig
from detres.detection.data import TrainingData
from detres.detection.task import DetectorTask, build_detector_task
from detres.networks.config import NetworkConfig
from detres.tasks.start import read_start
from detres.training.config import make_plan
from detres.training.optimizer import build_optimizer
from detres.training.state import initial_state
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
        "anchor_sizes": tuple(size * factor for size in config.rpn.anchor_sizes),
        "batch_size_per_image": 32,
        "pre_nms_top_n": 200,
        "proposals": 20,
        "min_size": config.rpn.min_size * factor,
    }
    test = {"proposals": 10, "pre_nms_top_n": 100}
    scales = getattr(config.test, "scales", None)
    if scales:
        test["scales"] = tuple(max(32, round(side * factor)) for side in scales)  # type: ignore[assignment]
    return changed(config, data=data, rpn=rpn, rcnn={"batch_size_per_image": 8}, test=test)


def changed(config: DetectionConfig, **sections: Mapping[str, object]) -> DetectionConfig:
    update = {name: getattr(config, name).model_copy(update=keys) for name, keys in sections.items()}
    return config.model_copy(update=update)


def train_and_test(config: DetectionConfig, folder: Path) -> None:
    scenes = shapes_annotations("train", 2)
    start = read_start(config.model.network, config.model.init)
    task = build_detector_task(config, TrainingData(scenes, None), start, CPU, quiet=True)
    task.network.train()
    if config.train.mode == "joint":
        assert len(take_step(task, config.train)) == 4
    else:
        take_alternating_steps(config, task, folder)
    task.export(task.network.eval(), folder / "model.safetensors")
    found = detres.load(folder / "model.safetensors", device="cpu")(read_image(scenes.paths[0]))
    assert found.boxes.shape == (len(found.scores), 4)
    assert found.boxes.isfinite().all()


def take_step(task: DetectorTask, train: DetectionTrainConfig) -> dict[str, torch.Tensor]:
    """One step of the optimizer: most of what is trained moves, the rest keeps every bit."""
    network = task.network
    samples = [task.dataset[(0, index)] for index in range(min(train.batch, 2))]
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = initial_state(network, train, make_plan(train, 10_000), CPU).optimizer
    losses = task.losses(samples, torch.Generator().manual_seed(0))
    assert all(loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    moved = {
        name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert moved <= trained
    assert len(moved) > len(trained) / 2
    return losses


def take_alternating_steps(config: DetectionConfig, task: DetectorTask, folder: Path) -> None:
    """One iteration of each of the four steps, with its own keys and parts, on proposals around the objects."""
    scenes, network = task.data.train, task.network
    noise = np.random.default_rng(0)
    boxes = [scenes.boxes[scenes.objects(index)].repeat(5, axis=0) for index in range(len(scenes))]
    moved = [of_image + noise.normal(0, 4, of_image.shape) for of_image in boxes]
    path = folder / "proposals.safetensors"
    write_proposals(path, scenes, moved)
    alternating.check_steps(config.train, 10_000)
    for step in alternating.STEPS:
        alternating.train_only(network, alternating._trained_parts(network, step), config.model.freeze_at)
        names = ["objectness", "rpn_box_reg"] if step.trains == "rpn" else ["classifier", "box_reg"]
        proposals = Proposals(path, scenes) if step.proposals else None
        own = replace(task, stage=step.trains, proposals=proposals)
        assert list(take_step(own, config.train.for_stage(step.trains))) == names


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
    optimizer = build_optimizer(
        classifier, rate=1e-3, momentum=0.9, weight_decay=1e-4, kind=config.train.optimizer
    )
    images = torch.randn(2, 3, side, side)
    loss = torch.nn.functional.cross_entropy(classifier(images), torch.tensor([1, 4]))
    loss.backward()
    optimizer.step()
    with torch.no_grad():  # with the batch's statistics: those of one step let 110 plain layers overflow
        scores = classifier(images).softmax(dim=1)
    assert scores.shape == (2, 5)
    assert scores.isfinite().all()


@dataclass(frozen=True)
class PaperRow:
    """What a detector's recipe must say to be a row of the paper's tables.

    Attributes:
        head: Words of the comment at its head: table and row, figure.
        network: The name of its ImageNet weights, or the weights file.
        train: Splits trained on.
        test: The split tested on while training; None: the server's.
        steps: For each kind of step its pictures, iterations, and those after which the rate falls.
        regions: Regions of one picture.
        anchors: Sides of the anchors.
        bg_iou_thresh_lo: Overlap from which a region is background.
        context: Whether there is global context.
        test_options: Of refinement, voting and scales.
    """

    head: tuple[str, str]
    network: str
    train: tuple[str, ...]
    test: str | None
    steps: dict[str, tuple[int, int, int]]
    regions: int
    anchors: tuple[int, ...]
    bg_iou_thresh_lo: float
    context: bool
    test_options: dict[str, object]


VOC_ANCHORS, COCO_ANCHORS = (128, 256, 512), (64, 128, 256, 512)
VOC_JOINT = {"joint": (1, 110_000, 80_000)}
VOC_STEPS = {"rpn": (1, 80_000, 60_000), "rcnn": (2, 40_000, 30_000)}
COCO_JOINT = {"joint": (8, 320_000, 240_000)}
COCO_STEPS = {"rpn": (8, 320_000, 240_000), "rcnn": (16, 320_000, 240_000)}
VOC_0712 = ("VOCdevkit/VOC2007 trainval", "VOCdevkit/VOC2012 trainval")
VOC_07PP12 = ("VOCdevkit/VOC2007 trainval", "VOCdevkit/VOC2007 test", "VOCdevkit/VOC2012 trainval")
VOC_TEST, COCO_TEST = "VOCdevkit/VOC2007 test", "coco val2014"
COCO_TRAIN, COCO_TRAINVAL = ("coco train2014",), ("coco train2014", "coco val2014")
DET_TRAIN = ("ILSVRC train", "ILSVRC val1")
R101, VGG16 = "torchvision:resnet101", "torchvision:vgg16"
TRAINVAL_MODEL = "runs/coco/r101_c4_trainval/model.safetensors"
OFF = {"refine": False, "box_voting": False, "scales": None}
REFINED = {**OFF, "refine": True, "box_voting": True}
PYRAMID = {**REFINED, "scales": (200, 400, 600, 800, 1000)}


def voc(head, network, test, steps, *, regions=64, anchors=VOC_ANCHORS, context=False, options=OFF):
    train = VOC_0712 if test else VOC_07PP12
    return PaperRow(head, network, train, test, steps, regions, anchors, 0.1, context, options)


def coco(head, network, steps=COCO_STEPS, *, server=False, regions=64, context=False, options=OFF):
    train, test = (COCO_TRAINVAL, None) if server else (COCO_TRAIN, COCO_TEST)
    return PaperRow(head, network, train, test, steps, regions, COCO_ANCHORS, 0, context, options)


# He et al. 2015, Appendix A and B; what they take over: Ren et al. 2015, §3 and §4, Girshick 2015.
PAPER_ROWS = {
    "voc/vgg16": voc(("Tables 7 and 10, row 1", "73.2 mAP"), VGG16, VOC_TEST, VOC_STEPS),
    "voc/r101_c4": voc(("Table 7, row 2", "76.4 mAP"), R101, VOC_TEST, VOC_JOINT, regions=128),
    "voc/r101_c4_alternating": voc(("Tables 7 and 10, row 2", "76.4 mAP"), R101, VOC_TEST, VOC_STEPS),
    "voc/vgg16_07pp12": voc(("Tables 7 and 11, row 1", "70.4 mAP"), VGG16, None, VOC_STEPS),
    "voc/r101_c4_07pp12": voc(("Tables 7 and 11, row 2", "73.8 mAP"), R101, None, VOC_STEPS),
    "voc/r101_c4_plus": voc(
        ('Table 10, "baseline+++"', "85.6 mAP"),
        TRAINVAL_MODEL,
        VOC_TEST,
        VOC_STEPS,
        anchors=COCO_ANCHORS,
        context=True,
        options=PYRAMID,
    ),
    "voc/r101_c4_plus_07pp12": voc(
        ('Table 11, "baseline+++"', "83.8 mAP"),
        TRAINVAL_MODEL,
        None,
        VOC_STEPS,
        anchors=COCO_ANCHORS,
        context=True,
        options=PYRAMID,
    ),
    "coco/vgg16": coco(("Tables 8 and 9, row 1", "21.2 AP, 41.5 AP50"), VGG16),
    "coco/r101_c4": coco(("Table 8, row 2", "27.2 AP, 48.4 AP50"), R101, COCO_JOINT, regions=128),
    "coco/r101_c4_alternating": coco(("Tables 8 and 9, row 2", "27.2 AP, 48.4 AP50"), R101),
    "coco/r101_c4_context": coco(
        ("Table 9, row 4", "30.0 AP, 51.1 AP50"), R101, context=True, options=REFINED
    ),
    "coco/r101_c4_trainval": coco(
        ("Table 9, trainval", "32.2 AP, 53.3 AP50"), R101, server=True, context=True, options=REFINED
    ),
    "imagenet_det/r101_c4": PaperRow(
        ("Table 12, single model", "60.5 mAP"),
        R101,
        DET_TRAIN,
        "ILSVRC val2",
        COCO_STEPS,
        64,
        COCO_ANCHORS,
        0,
        True,
        PYRAMID,
    ),
}
# Rows that test weights of another row: the comment over the command in docs/paper.md -> the recipe of the weights, how
# many networks, the split tested on, and the test options.
PAPER_COMMANDS = {
    "Table 9, row 3: + box refinement: 29.9 AP, 49.9 AP50": (
        ("coco/r101_c4_alternating", 1, COCO_TEST, REFINED)
    ),
    "Table 9, row 5: + multi-scale testing: 32.5 AP, 53.8 AP50": (
        ("coco/r101_c4_context", 1, COCO_TEST, PYRAMID)
    ),
    "Table 9, trainval, + multi-scale testing: 34.9 AP, 55.7 AP50": (
        ("coco/r101_c4_trainval", 1, "coco test-dev2015", PYRAMID)
    ),
    "Table 9, last row: an ensemble of three: 37.4 AP, 59.0 AP50": (
        ("coco/r101_c4_trainval", 3, "coco test-dev2015", PYRAMID)
    ),
    "Table 12: an ensemble of three, tested on val2: 63.6 mAP": (
        ("imagenet_det/r101_c4", 3, "ILSVRC val2", PYRAMID)
    ),
}


@pytest.mark.parametrize("name", PAPER_ROWS)
def test_a_row_of_the_paper_says_its_row_and_has_its_values(name: str):
    row, text = PAPER_ROWS[name], text_of(ROOT / "configs" / f"{name}.yaml")
    config = load_config(DetectionConfig, name)
    head = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    assert head.startswith(row.head[0])
    assert row.head[1] in head
    assert config.model.init == row.network
    assert tuple(f"{source.dir} {source.split}" for source in config.data.train) == row.train
    assert [f"{source.dir} {source.split}" for source in config.data.val] == ([row.test] if row.test else [])
    assert row.test or config.data.val_fraction == 0
    assert (config.data.short_side, config.data.long_side) == (600, 1000)
    assert config.train.mode == ("joint" if "joint" in row.steps else "alternating")
    for kind, (images, iterations, fall) in row.steps.items():
        own = config.train if kind == "joint" else config.train.for_stage(kind)  # type: ignore[arg-type]
        plan = make_plan(own, 10_000)
        found = plan.images_per_step, plan.iterations, plan.milestones, plan.rate
        assert found == (images, iterations, (fall,), 0.001), kind
        assert plan.evaluate_every == iterations, "nothing is chosen on the split that is reported on"
    train = config.train
    assert (train.optimizer, train.momentum, train.weight_decay) == ("sgd", 0.9, 5e-4)
    assert (train.bias_lr_factor, train.bias_weight_decay, train.gamma, train.clip) == (2, 0, 0.1, None)
    assert (train.precision, train.ema, train.schedule) == ("float32", None, "step")
    assert (config.rpn.anchor_sizes, config.rpn.aspect_ratios) == (row.anchors, (0.5, 1, 2))
    assert (config.rpn.batch_size_per_image, config.rpn.cross_boundary, config.rpn.min_size) == (
        256,
        False,
        16,
    )
    assert (config.rpn.pre_nms_top_n, config.rpn.proposals, config.rpn.nms_thresh) == (12_000, 2000, 0.7)
    assert (config.rcnn.batch_size_per_image, config.rcnn.bg_iou_thresh_lo) == (
        row.regions,
        row.bg_iou_thresh_lo,
    )
    assert (config.rcnn.positive_fraction, config.rcnn.target_stds) == (0.25, (0.1, 0.1, 0.2, 0.2))
    assert (config.model.pooler, config.model.global_context) == ("roi_pool", row.context)
    assert (config.test.nms_thresh, config.test.proposals, config.test.pre_nms_top_n) == (0.3, 300, 6000)
    assert {key: getattr(config.test, key) for key in row.test_options} == row.test_options


def test_a_row_of_the_paper_that_is_a_command_has_its_values():
    """Weights of the recipe's default run folder, other members of an ensemble beside it by their seed."""
    commands = dict(
        re.findall(r"^# (Table .*)\n((?:.*\\\n)*.*)$", text_of(ROOT / "docs" / "paper.md"), re.MULTILINE)
    )
    assert set(commands) == set(PAPER_COMMANDS)
    for head, (recipe, networks, split, options) in PAPER_COMMANDS.items():
        assert recipe in PAPER_ROWS
        words = shlex.split(commands[head].replace("\\\n", " "))
        following = dict(pairwise(words))
        begin = words.index("--weights") + 1
        seeds = ["", *(f"_seed{seed}" for seed in range(1, networks))]
        assert words[begin : words.index("--data")] == [f"runs/{recipe}{s}/model.safetensors" for s in seeds]
        assert f"{following['--data']} {following['--split']}" == split
        said = [value for word, value in pairwise(words) if word == "--set"]
        test = load_config(DetectionConfig, None, said).test
        assert {key: getattr(test, key) for key in options} == options
        assert ("--submission" in words) == ("test-dev" in split)


def test_every_recipe_that_names_a_table_is_checked():
    named = [path for path in DETECTION if path.read_text(encoding="utf-8").startswith("# Table")]
    assert {path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in named} == set(
        PAPER_ROWS
    )
