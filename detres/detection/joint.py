"""Approximate joint training: RPN and Fast R-CNN learn in the same steps (Ren et al. 2015, §3.2, footnote)."""

from __future__ import annotations

import logging

import torch

from detres.detection.config import DetectionTrainConfig
from detres.detection.task import DetectorTask
from detres.errors import listed
from detres.training.config import Plan, TrainConfig, make_plan
from detres.training.loop import Figures, train
from detres.training.run_folder import RunFolder

log = logging.getLogger("detres")


def train_joint(
    task: DetectorTask,
    config: DetectionTrainConfig,
    run: RunFolder,
    device: torch.device,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Figures:
    """Train all layers in one run; arguments and result as in `training.loop.train`."""
    log.info(plan_line(config, make_plan(config, len(task.data.train)), task.evaluates))
    return train(task, config, run, device, resume=resume, quiet=quiet)


def plan_line(config: TrainConfig, plan: Plan, evaluates: bool) -> str:
    """One line on what lengths and learning rate amount to for this data, for the start of a run."""
    falls = f", times {config.gamma:g} at {listed(plan.milestones)}" if plan.milestones else ""
    falls = ", falling along a cosine" if config.schedule == "cosine" else falls
    evaluated = f"every {plan.evaluate_every}" if plan.evaluate_every and evaluates else "never"
    return (
        f"{plan.iterations} steps of {plan.images_per_step} images ({plan.epoch(plan.iterations):g} epochs), rate"
        f" {plan.rate:g} after {config.warmup_iterations} steps of warm-up{falls}; evaluated {evaluated}"
    )
