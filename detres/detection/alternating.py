"""The four alternating steps by which RPN and Fast R-CNN come to share one trunk (Ren et al. 2015, §3.2).

Step 1 trains an RPN, trunk included, from the initial weights. Step 2 trains a Fast R-CNN, from the initial weights
again, on step 1's proposals. Step 3 trains the RPN's own layers alone on step 2's trunk. Step 4 trains Fast R-CNN's own
layers alone, on step 3's proposals. The trunk of step 2 is the trunk of the detector.

Each step is a run folder of its own in `steps/`, so that it can be resumed by itself; its proposals lie beside its
weights.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from detres.boxes.geometry import box_iou, scale_boxes
from detres.console import progress
from detres.data.batching import make_loader
from detres.data.detection_samples import DetectionDataset, DetectionSample, collate_detection
from detres.data.proposals import Proposals, write_proposals
from detres.data.records import Annotations
from detres.detection.config import DetectionTrainConfig, RPNConfig
from detres.detection.detect import fuse_for_inference
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.joint import plan_line
from detres.detection.rpn import propose
from detres.detection.task import DetectorTask
from detres.errors import ConfigError
from detres.files import atomic_path
from detres.networks.resnet import freeze_stages
from detres.strict_yaml import read_document
from detres.training.config import make_plan
from detres.training.feed import plain_errors
from detres.training.loop import Figures, train
from detres.training.run_folder import RunFolder
from detres.weights.checkpoint import read_weights
from detres.weights.loading import load_tensors

log = logging.getLogger("detres")


@dataclass(frozen=True)
class Step:
    """One of the four steps.

    Attributes:
        name: Its folder.
        title: What it does, for people.
        trains: The RPN, or Fast R-CNN.
        trunk: Whether the trunk is trained with it.
        start: The step whose weights it starts from; None: the initial weights.
        proposals: The step whose proposals it is trained on.
    """

    name: str
    title: str
    trains: Literal["rpn", "rcnn"]
    trunk: bool
    start: str | None
    proposals: str | None


STEPS = (
    Step("1_rpn", "RPN from the initial weights", "rpn", True, None, None),
    Step("2_fast_rcnn", "Fast R-CNN from the initial weights", "rcnn", True, None, "1_rpn"),
    Step("3_rpn", "the RPN's own layers", "rpn", False, "2_fast_rcnn", None),
    Step("4_fast_rcnn", "Fast R-CNN's own layers", "rcnn", False, "3_rpn", "3_rpn"),
)


def train_alternating(
    task: DetectorTask,
    config: DetectionTrainConfig,
    freeze_at: int,
    run: RunFolder,
    device: torch.device,
    *,
    quiet: bool = False,
) -> Figures:
    """Train a detector in four steps, going on in the one that was under way, and leave its weights in `run`.

    Only the last step is evaluated, because only it has the whole detector.

    Args:
        task: The detector with its initial weights.
        config: The section `train`; keys of `rpn_stage` and `rcnn_stage` beat the others.
        freeze_at: Stages of the trunk that are not trained.
        run: The open run folder of the whole.
        device: Where to train.
        quiet: Show no progress.

    Returns:
        The figures of the last step's best evaluation (see `training.loop.train`).
    """
    images = len(task.data.train)
    initial = {name: tensor.clone() for name, tensor in task.network.state_dict().items()}
    figures: Figures = {}
    for number, step in enumerate(STEPS, start=1):
        folder, title = run.path / "steps" / step.name, f"step {number} of {len(STEPS)}, {step.title}"
        is_last = step is STEPS[-1]
        if not is_last and _weights(folder).exists():  # written once, at a step's end
            log.info("%s: done before", title)
        else:
            load_tensors(task.network, _start_of(run.path, step, initial), where=title)
            train_only(task.network, _trained_parts(task.network, step), freeze_at)
            step_config, step_task = _config_of(config, step), _task_of(task, step, run.path)
            plan = make_plan(step_config, images)
            log.info("%s: %s", title, plan_line(step_config, plan, step_task.evaluates))
            with RunFolder.open(folder, step_config, resume=True) as own:
                figures = train(
                    step_task, step_config, own, device, resume=True, quiet=quiet, more_follows=not is_last
                )
            log.info("%s: done, %s", title, _figures_line(figures))
        if step.trains == "rpn" and not _proposals(folder).exists():
            load_tensors(task.network, read_weights(_weights(folder))[0], where=title)
            log.info("%s: %s", title, make_proposals(task, _proposals(folder), config.workers, quiet=quiet))
    with atomic_path(run.weights) as beside:
        shutil.copyfile(_weights(run.path / "steps" / STEPS[-1].name), beside)
    return figures


def check_steps(config: DetectionTrainConfig, images: int, run: Path | None = None) -> None:
    """Plan all four steps before the first one trains; a step that is done keeps its length.

    Args:
        config: The section `train`.
        images: Number of training images.
        run: The run folder, where there is one to go on in.

    Raises:
        ConfigError: Lengths that do not fit together, or another length than a step had that is done.
        DataError: There are no training images.
    """
    for number, step in enumerate(STEPS, start=1):
        step_config = _config_of(config, step)
        make_plan(step_config, images)
        folder = None if run is None else run / "steps" / step.name
        if folder is None or step is STEPS[-1] or not _weights(folder).exists():
            continue
        saved = read_document(folder / "config.yaml").values["length"]
        if saved != str(step_config.length):
            raise ConfigError(
                f"train.length: step {number} of {len(STEPS)}, {step.title}, is done after {saved}, now it is to be"
                f" {step_config.length}: go on with that length, or choose another --out"
            )


def train_only(network: FasterRCNN, parts: Sequence[nn.Module], freeze_at: int) -> None:
    """Let gradients flow to `parts` of the network alone, and of the trunk not to its first `freeze_at` stages.

    What gets no gradient is left out of the optimizer and keeps every bit; BN is constant anyway.
    """
    network.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    freeze_stages(network.trunk, freeze_at)


def make_proposals(task: DetectorTask, path: Path, workers: int, *, quiet: bool = False) -> str:
    """Write the proposals of all training images, unchanged by augmentation, in pixels of the original images.

    If it is interrupted, the pass starts again, but the step's training does not. While it runs it needs the file's
    space twice.

    Args:
        task: With a trained RPN; the network's mode is left alone.
        path: The file to make.
        workers: Processes that decode images.
        quiet: Show no progress.

    Returns:
        One line on how many there are and how many objects they reach.
    """
    config, train = task.data_config, task.data.train
    dataset = DetectionDataset(train, config.short_side, config.long_side)
    batches = [[index] for index in range(len(dataset))]
    loader = make_loader(dataset, batches, collate_detection, workers=workers)
    network, rpn = fuse_for_inference(task.network), task.architecture.rpn
    best, total = [], 0

    def proposals() -> Iterator[np.ndarray]:
        nonlocal total
        for (sample,) in progress(loader, "proposals", total=len(dataset), quiet=quiet):
            boxes = _propose(network, sample, rpn).cpu()
            if len(sample.boxes):
                overlaps = box_iou(sample.boxes, boxes) if len(boxes) else torch.zeros(len(sample.boxes), 1)
                best.append(overlaps.max(dim=1).values)
            total += len(boxes)
            yield scale_boxes(boxes, (1 / sample.scale[0], 1 / sample.scale[1])).numpy()

    with plain_errors():
        write_proposals(path, train, proposals())
    return _reach_line(train, torch.cat(best) if best else torch.zeros(0), total)


def _reach_line(train: Annotations, overlaps: Tensor, total: int) -> str:
    reach = ", ".join(
        f"IoU {least:g} with {(overlaps >= least).float().mean().item():.1%}" for least in (0.5, 0.7)
    )
    return f"{total / len(train):.0f} proposals per training image reach {reach} of {len(overlaps)} objects"


@torch.inference_mode()
def _propose(network: FasterRCNN, sample: DetectionSample, rpn: RPNConfig) -> Tensor:
    (outputs,) = network([sample.image.to(network.cell_anchors.device)])
    return propose(outputs, sample.scale, rpn, rpn)


def _task_of(task: DetectorTask, step: Step, run: Path) -> DetectorTask:
    """The joint task with the losses and the proposals of one step."""
    proposals = None
    if step.proposals is not None:
        proposals = Proposals(_proposals(run / "steps" / step.proposals), task.data.train)
    evaluates = task.evaluates and step is STEPS[-1]
    return replace(task, stage=step.trains, proposals=proposals, evaluates=evaluates)


def _config_of(config: DetectionTrainConfig, step: Step) -> DetectionTrainConfig:
    """The keys of `train` for one step; only the last is evaluated."""
    own = config.for_stage(step.trains)
    return own if step is STEPS[-1] else own.model_copy(update={"evaluate_every": None})


def _trained_parts(network: FasterRCNN, step: Step) -> list[nn.Module]:
    own = network.rpn if step.trains == "rpn" else network.roi_head
    return [network.trunk, own] if step.trunk else [own]


def _start_of(run: Path, step: Step, initial: dict[str, Tensor]) -> dict[str, Tensor]:
    return initial if step.start is None else read_weights(_weights(run / "steps" / step.start))[0]


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def _proposals(folder: Path) -> Path:
    return folder / "proposals.safetensors"


def _figures_line(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if value is not None)
