"""Training a detector: data, network and measures tied to the loop (Ren et al. 2015, approximate joint training;
the four alternating steps: `alternating`).

All that `tools/train_det.py` does, for Python users.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detres.console import progress
from detres.data.batching import make_loader
from detres.data.detection_samples import DetectionDataset, DetectionSample, collate_detection
from detres.data.records import Annotations
from detres.detection.config import Architecture, DetectionConfig
from detres.detection.coverage import best_anchor_overlaps, coverage_line
from detres.detection.data import TrainingData, log_training_data, read_training_data
from detres.detection.detect import detect_split
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.features import Member
from detres.detection.losses import StepOptions, training_losses
from detres.detection.start import check_start, start_detector
from detres.detection.visualize import draw_batch, draw_split
from detres.errors import listed
from detres.evaluation.coco import evaluate_coco
from detres.evaluation.voc import evaluate_voc
from detres.training.config import Plan, TrainConfig, make_plan
from detres.training.feed import plain_errors
from detres.training.loop import Figures, train
from detres.training.run_folder import RunFolder
from detres.training.task import Task
from detres.weights.checkpoint import Metadata, save_weights

log = logging.getLogger("detres")

DRAWN_DETECTIONS = 12


def train_detector(
    config: DetectionConfig,
    run: RunFolder,
    device: torch.device,
    *,
    data: TrainingData | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Figures:
    """Train a detector as configured (`train.mode`) and leave weights, checkpoints, metrics and pictures in `run`.

    Args:
        config: The whole configuration.
        run: The open run folder.
        device: Where to train.
        data: What `config` names, where it has been read before.
        resume: Go on from the newest checkpoint.
        quiet: No progress.

    Returns:
        The figures of the best evaluation (see `training.loop.train`).

    Raises:
        UserError: Data, weights or configuration at fault.
        DivergedError: A loss is not finite.
    """
    data = data or read_training_data(config)
    if config.train.mode == "alternating":
        from detres.detection.alternating import train_alternating  # made of this module's parts

        return train_alternating(config, run, device, data=data, quiet=quiet)
    task = build_task(config, data, device, images=run.images, quiet=quiet)
    log.info(plan_line(config.train, make_plan(config.train, len(data.train))))
    return train(task, config.train, run, device, resume=resume, quiet=quiet)


def check_before_training(config: DetectionConfig, data: TrainingData, resumed: Path | None = None) -> None:
    """Refuse lengths and initial weights that do not fit, before anything trains or a run folder is touched.

    Args:
        config: The whole configuration.
        data: From `read_training_data`.
        resumed: The run folder to go on in.

    Raises:
        UserError: As `train_detector` would later.
    """
    if config.train.mode == "alternating":
        from detres.detection.alternating import check_steps

        check_steps(config, len(data.train), resumed)
    else:
        make_plan(config.train, len(data.train))
    check_start(config, data.train.class_names)


def build_task(
    config: DetectionConfig,
    data: TrainingData,
    device: torch.device,
    *,
    images: Path | None = None,
    quiet: bool = False,
) -> Task:
    """The detector as the loop sees it.

    Args:
        config: The whole configuration.
        data: From `read_training_data`.
        device: Where the network goes.
        images: Where validation detections are drawn; None draws none.
        quiet: No progress while evaluating.
    """
    class_names = data.train.class_names
    network, architecture = start_detector(config, class_names)
    network.to(device)
    _log_data(config, data, network)
    sizes = config.data.short_side, config.data.long_side
    options = config.step_options(len(class_names))
    validation = data.val
    return Task(
        network=network,
        losses=partial(_losses, network, options, device),
        dataset=DetectionDataset(
            data.train, *sizes, config.data.augmentation, config.train.seed, config.data.reduced_decoding
        ),
        collate=collate_detection,
        describe=_names,
        best="AP",
        export=partial(_export, config=config, architecture=architecture, data=data),
        evaluate=None
        if validation is None
        else partial(
            _evaluate,
            config=config,
            architecture=architecture,
            validation=validation,
            images=images,
            quiet=quiet,
        ),
        validation_losses=None
        if validation is None
        else partial(_validation_losses, config=config, options=options, validation=validation, quiet=quiet),
        first_batch=partial(_draw_first_batch, class_names),
        identity={"class names": list(class_names)},
    )


def plan_line(config: TrainConfig, plan: Plan) -> str:
    """One line on what the lengths and the rate come to for this data, for the start of a run."""
    falls = f", times {config.gamma:g} at {listed(plan.milestones)}" if plan.milestones else ""
    falls = ", falling along a cosine" if config.schedule == "cosine" else falls
    evaluated = f"every {plan.evaluate_every}" if plan.evaluate_every else "never"
    return (
        f"{plan.iterations} steps of {plan.images_per_step} images ({plan.epoch(plan.iterations):g} epochs), rate"
        f" {plan.rate:g} after {config.warmup_iterations} steps of warm-up{falls}; evaluated {evaluated}"
    )


def _losses(
    network: nn.Module,
    options: StepOptions,
    device: torch.device,
    samples: Sequence[DetectionSample],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    assert isinstance(network, FasterRCNN)
    return training_losses(
        network,
        [sample.image.to(device, non_blocking=True) for sample in samples],
        [sample.boxes.to(device, non_blocking=True) for sample in samples],
        [sample.labels.to(device, non_blocking=True) for sample in samples],
        [sample.scale for sample in samples],
        options,
        generator,
        [sample.exhaustive for sample in samples],
    )


def _evaluate(
    network: nn.Module,
    *,
    config: DetectionConfig,
    architecture: Architecture,
    validation: Annotations,
    images: Path | None,
    quiet: bool,
) -> dict[str, float | None]:
    """COCO's figures and VOC's mAP on the validation pictures; the first of them are drawn with what was found."""
    assert isinstance(network, FasterRCNN)
    with plain_errors():
        member = Member(
            network,
            config.data.short_side,
            config.data.long_side,
            architecture.proposal_options(config.test),
            architecture.target_stds,
        )
        table, _ = detect_split(
            [member],
            validation,
            test=config.test,
            workers=min(config.train.workers, 1),
            quiet=quiet,
        )
    if images is not None:
        draw_split(images / "validation.jpg", validation, table, limit=DRAWN_DETECTIONS)
    voc = evaluate_voc(validation, table).figures
    return {**evaluate_coco(validation, table, engine=config.evaluation.engine).figures, "mAP": voc["mAP"]}


def _validation_losses(
    network: nn.Module, *, config: DetectionConfig, options: StepOptions, validation: Annotations, quiet: bool
) -> dict[str, float]:
    """Mean of each loss over the validation pictures, samples drawn from the same seed each time."""
    assert isinstance(network, FasterRCNN)
    device = network.cell_anchors.device
    dataset = DetectionDataset(validation, config.data.short_side, config.data.long_side)
    loader = make_loader(
        dataset,
        [[index] for index in range(len(dataset))],
        collate_detection,
        workers=min(config.train.workers, 1),
    )
    generator = torch.Generator().manual_seed(config.train.seed)
    terms: dict[str, list[float]] = {}
    with plain_errors():
        for samples in progress(loader, "validation losses", total=len(dataset), quiet=quiet):
            for name, loss in _losses(network, options, device, samples, generator).items():
                terms.setdefault(name, []).append(loss.item())
    return {name: float(np.mean(values)) for name, values in terms.items()}


def _export(
    network: nn.Module, path: Path, *, config: DetectionConfig, architecture: Architecture, data: TrainingData
) -> None:
    assert isinstance(network, FasterRCNN)
    metadata = Metadata(
        task="detection",
        architecture=architecture.model_dump(mode="json"),
        class_names=data.train.class_names,
        category_ids=data.train.category_ids,
        preprocessing=network.preprocessing,
        sizes={"short_side": config.data.short_side, "long_side": config.data.long_side},
        test=config.test.model_dump(mode="json", exclude_defaults=True),
        source=f"trained on {data.train.source} from {config.model.init or 'random weights'}",
    )
    save_weights(path, network.state_dict(), metadata)


def _names(samples: Sequence[DetectionSample]) -> list[str]:
    return [sample.name for sample in samples]


def _draw_first_batch(class_names: Sequence[str], samples: Sequence[DetectionSample], folder: Path) -> None:
    draw_batch(folder / "first_batch.jpg", samples, class_names)


def _log_data(config: DetectionConfig, data: TrainingData, network: FasterRCNN) -> None:
    """What follows from the data and was not asked for: what is dropped, classes, counts, how far anchors reach."""
    log_training_data(config, data)
    for name, part in (("train", data.train), ("val", data.val)):
        if part is not None:
            empty = int((np.diff(part.offsets) == 0).sum())
            log.info(
                "%s: %d pictures (%d without objects), %d objects of %d classes (%s): %s",
                name,
                len(part),
                empty,
                len(part.labels),
                len(part.class_names),
                listed((f"{name} {count}" for name, count in part.objects_per_class().items()), 20),
                part.source,
            )
    overlaps = best_anchor_overlaps(
        data.train, config.data.short_side, config.data.long_side, network.cell_anchors.cpu(), network.stride
    )
    log.info(coverage_line(overlaps, config.rpn.fg_iou_thresh))
