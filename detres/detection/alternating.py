"""The four alternating steps by which RPN and Fast R-CNN come to share one trunk (Ren et al. 2015, §3.2).

Step 1 trains an RPN, trunk and all, from the initial weights; step 2 a Fast R-CNN, from the initial weights again, on
step 1's proposals; step 3 trains the RPN's own layers alone on step 2's trunk; step 4 Fast R-CNN's own layers alone, on
step 3's proposals. The trunk of step 2 is the trunk of the detector.

Each step is a run folder of its own in `steps/`, so that it can be resumed by itself; proposals lie beside its weights.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from detres.detection.config import DetectionConfig, DetectorTrainConfig
from detres.detection.data import TrainingData
from detres.detection.detect import fuse_for_inference
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.losses import StepOptions, draw_anchors, draw_regions, region_losses, rpn_losses
from detres.detection.rpn import ProposalOptions, propose
from detres.detection.task import build_task, plan_line
from detres.errors import ConfigError
from detres.files import atomic_path
from detres.networks.resnet import Trunk, freeze_stages
from detres.networks.vgg import VGGTrunk
from detres.strict_yaml import read_document
from detres.training.config import make_plan
from detres.training.feed import plain_errors
from detres.training.loop import Figures, train
from detres.training.run_folder import RunFolder
from detres.training.task import Task
from detres.weights.checkpoint import read_weights
from detres.weights.loading import load_tensors

log = logging.getLogger("detres")


@dataclass(frozen=True)
class Step:
    """One of the four steps.

    Attributes:
        name: Its folder.
        title: What it does, for people.
        trains: The RPN, or Fast R-CNN on regions.
        trunk: Whether the trunk is trained with it.
        start: The step whose weights it starts from; None: the initial weights.
        proposals: The step whose proposals it is trained on.
    """

    name: str
    title: str
    trains: Literal["rpn", "regions"]
    trunk: bool
    start: str | None
    proposals: str | None


STEPS = (
    Step("1_rpn", "RPN from the initial weights", "rpn", True, None, None),
    Step("2_fast_rcnn", "Fast R-CNN from the initial weights", "regions", True, None, "1_rpn"),
    Step("3_rpn", "the RPN's own layers", "rpn", False, "2_fast_rcnn", None),
    Step("4_fast_rcnn", "Fast R-CNN's own layers", "regions", False, "3_rpn", "3_rpn"),
)


def train_alternating(
    config: DetectionConfig, run: RunFolder, device: torch.device, *, data: TrainingData, quiet: bool = False
) -> Figures:
    """Train a detector in four steps, going on in the one that was under way, and leave its weights in `run`.

    The last step alone is evaluated, for it alone has the whole detector.

    Args:
        config: The whole configuration; where `train.rpn_stage` or `train.rcnn_stage` say something it beats `train`.
        run: The open run folder of the whole.
        device: Where to train.
        data: What `config` names.
        quiet: No progress.

    Returns:
        The figures of the last step's best evaluation (see `training.loop.train`).
    """
    check_steps(config, len(data.train), run.path)
    task = build_task(config, data, device, images=run.images, quiet=quiet)
    network = task.network
    assert isinstance(network, FasterRCNN)
    initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    figures: Figures = {}
    for number, step in enumerate(STEPS, start=1):
        folder, title = run.path / "steps" / step.name, f"step {number} of {len(STEPS)}, {step.title}"
        if step is not STEPS[-1] and _weights(folder).exists():  # written once, at a step's end
            log.info("%s: done before", title)
        else:
            proposals = _read_proposals(run.path, step, data)
            load_tensors(network, _start_of(run.path, step, initial), where=title)
            train_only(network, _trained_parts(network, step), config.model.freeze_at)
            of_step = config.model_copy(update={"train": _train_config(config, step)})
            log.info("%s: %s", title, plan_line(of_step.train, make_plan(of_step.train, len(data.train))))
            with RunFolder.open(folder, of_step, resume=True) as own:
                own_task = _task_of_step(task, network, step, of_step, data, proposals, device)
                more = step is not STEPS[-1]
                figures = train(
                    own_task, of_step.train, own, device, resume=True, quiet=quiet, more_follows=more
                )
            log.info("%s: done, %s", title, _listed(figures))
        if step.trains == "rpn" and not _proposals(folder).exists():
            load_tensors(network, read_weights(_weights(folder))[0], where=title)
            options = config.step_options(len(data.train.class_names)).proposals
            reached = make_proposals(network, config, data, options, _proposals(folder), quiet=quiet)
            log.info("%s: %s", title, reached)
    with atomic_path(run.weights) as beside:
        shutil.copyfile(_weights(run.path / "steps" / STEPS[-1].name), beside)
    return figures


def check_steps(config: DetectionConfig, images: int, run: Path | None = None) -> None:
    """Plan all four steps before the first one trains; a step that is done keeps its length.

    Args:
        config: The whole configuration.
        images: Number of training pictures.
        run: The run folder, where there is one to go on in.

    Raises:
        ConfigError: Lengths that do not fit together, or another length than a step had that is done.
        DataError: There are no training pictures.
    """
    for number, step in enumerate(STEPS, start=1):
        of_step = _train_config(config, step)
        make_plan(of_step, images)
        folder = None if run is None else run / "steps" / step.name
        if folder is None or step is STEPS[-1] or not _weights(folder).exists():
            continue
        saved = read_document(folder / "config.yaml").values["train"]["length"]
        if saved != str(of_step.length):
            raise ConfigError(
                f"train.length: step {number} of {len(STEPS)}, {step.title}, is done after {saved}, now it is to be"
                f" {of_step.length}: go on with that length, or choose another --out"
            )


def rpn_step_losses(
    network: FasterRCNN,
    options: StepOptions,
    device: torch.device,
    samples: Sequence[DetectionSample],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """`rpn_objectness` and `rpn_box` of a batch (steps 1 and 3)."""
    outputs = network([sample.image.to(device, non_blocking=True) for sample in samples])
    boxes = [sample.boxes.to(device) for sample in samples]
    targets = draw_anchors(outputs, boxes, options, generator, [sample.exhaustive for sample in samples])
    return rpn_losses(outputs, targets, options.anchor_beta)


def region_step_losses(
    network: FasterRCNN,
    options: StepOptions,
    device: torch.device,
    samples: Sequence[DetectionSample],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """`region_class` and `region_box` of a batch whose samples bring their proposals (steps 2 and 4)."""
    images = [sample.image.to(device, non_blocking=True) for sample in samples]
    maps = network.maps(images)
    targets = draw_regions(
        [sample.proposals.to(device) for sample in samples if sample.proposals is not None],
        [sample.boxes.to(device) for sample in samples],
        [sample.labels.to(device) for sample in samples],
        options,
        generator,
        [sample.exhaustive for sample in samples],
    )
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    logits, deltas = network.region_head(maps, [target.boxes for target in targets], sizes)
    return region_losses(logits, deltas, targets, options.region_beta)


def train_only(network: FasterRCNN, parts: Sequence[nn.Module], freeze_at: int) -> None:
    """Let gradients flow to `parts` of the network alone, and of the trunk not to its first `freeze_at` stages.

    What gets no gradient is left out of the optimizer and keeps every bit; BN is constant anyway.
    """
    network.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    assert isinstance(network.trunk, (Trunk, VGGTrunk))
    freeze_stages(network.trunk, freeze_at)


def make_proposals(
    network: FasterRCNN,
    config: DetectionConfig,
    data: TrainingData,
    options: ProposalOptions,
    path: Path,
    *,
    quiet: bool = False,
) -> str:
    """Write the proposals of all training pictures, unchanged by augmentation, in pixels of the stored pictures.

    A pass that is interrupted begins anew, the step's training before it does not; while it runs it needs the file's
    space twice.

    Args:
        network: With a trained RPN; its mode is left alone.
        config: The whole configuration.
        data: The training pictures.
        options: Proposals an image in training.
        path: The file to make.
        quiet: No progress.

    Returns:
        One line on how many there are and what they reach.
    """
    dataset = DetectionDataset(data.train, config.data.short_side, config.data.long_side)
    batches = [[index] for index in range(len(dataset))]
    loader = make_loader(dataset, batches, collate_detection, workers=config.train.workers)
    for_test, best, total = fuse_for_inference(network), [], 0

    def proposed() -> Iterator[np.ndarray]:
        nonlocal total
        for (sample,) in progress(loader, "proposals", total=len(dataset), quiet=quiet):
            boxes = _proposed(for_test, sample, options).cpu()
            if len(sample.boxes):
                overlaps = box_iou(sample.boxes, boxes) if len(boxes) else torch.zeros(len(sample.boxes), 1)
                best.append(overlaps.max(dim=1).values)
            total += len(boxes)
            yield scale_boxes(boxes, (1 / sample.scale[0], 1 / sample.scale[1])).numpy()

    with plain_errors():
        write_proposals(path, data.train, proposed())
    overlaps = torch.cat(best) if best else torch.zeros(0)
    reach = ", ".join(
        f"IoU {least:g} with {(overlaps >= least).float().mean().item():.1%}" for least in (0.5, 0.7)
    )
    return f"{total / len(dataset):.0f} proposals a training picture reach {reach} of {len(overlaps)} objects"


@torch.inference_mode()
def _proposed(network: FasterRCNN, sample: DetectionSample, options: ProposalOptions) -> Tensor:
    (output,) = network([sample.image.to(network.cell_anchors.device)])
    return propose(output.objectness, output.deltas, output.anchors, output.size, sample.scale, options)


def _task_of_step(
    task: Task,
    network: FasterRCNN,
    step: Step,
    config: DetectionConfig,
    data: TrainingData,
    proposals: Proposals | None,
    device: torch.device,
) -> Task:
    """The joint task with the losses and the data of one step."""
    losses = rpn_step_losses if step.trains == "rpn" else region_step_losses
    options = config.step_options(len(data.train.class_names))
    dataset = DetectionDataset(
        data.train,
        config.data.short_side,
        config.data.long_side,
        config.data.augmentation,
        config.train.seed,
        config.data.reduced_decoding,
        proposals,
    )
    task = replace(task, losses=partial(losses, network, options, device), dataset=dataset)
    return task if step is STEPS[-1] else replace(task, evaluate=None, validation_losses=None)


def _train_config(config: DetectionConfig, step: Step) -> DetectorTrainConfig:
    """The keys of `train` for one step; only the last is evaluated."""
    own = config.train.of_step(step.trains)
    return own if step is STEPS[-1] else own.model_copy(update={"evaluate_every": None})


def _trained_parts(network: FasterRCNN, step: Step) -> list[nn.Module]:
    own = network.rpn if step.trains == "rpn" else network.region_head
    return [network.trunk, own] if step.trunk else [own]


def _start_of(run: Path, step: Step, initial: dict[str, Tensor]) -> dict[str, Tensor]:
    return initial if step.start is None else read_weights(_weights(run / "steps" / step.start))[0]


def _read_proposals(run: Path, step: Step, data: TrainingData) -> Proposals | None:
    return (
        None if step.proposals is None else Proposals(_proposals(run / "steps" / step.proposals), data.train)
    )


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def _proposals(folder: Path) -> Path:
    return folder / "proposals.safetensors"


def _listed(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if value is not None)
