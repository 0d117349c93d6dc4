"""The state of a run between two steps, and how it is saved in a checkpoint and restored from it.

It has no random states, because every step seeds its own generators (see `step`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from detres.errors import UserError, listed
from detres.training.checkpoints import load_checkpoint, save_checkpoint
from detres.training.config import Plan, TrainConfig
from detres.training.optimizer import WeightAverage, build_optimizer
from detres.training.schedules import Plateau
from detres.training.task import Network

log = logging.getLogger("detres")


@dataclass
class Window:
    """Sums over the steps since the last logged line. They are saved too, so that a resumed run logs the same means.

    Attributes:
        steps: Their number.
        losses: Sum of each term, averaged over micro-batches (a batch without the term counts as 0).
        gradient_norm: Sum of the gradient's norm, before clipping.
        busy: Seconds spent in steps.
        waited: Seconds spent waiting for data.
    """

    steps: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    gradient_norm: float = 0.0
    busy: float = 0.0
    waited: float = 0.0

    def add(self, losses: Sequence[dict[str, float]], gradient_norm: float, seconds: float) -> None:
        """Count a step: the loss terms of its micro-batches, its gradient's norm and its duration."""
        self.steps += 1
        for terms in losses:
            for name, value in terms.items():
                self.losses[name] = self.losses.get(name, 0.0) + value / len(losses)
        self.gradient_norm += gradient_norm
        self.busy += seconds

    def mean_losses(self) -> dict[str, float]:
        return {name: value / self.steps for name, value in self.losses.items()}


@dataclass
class Best:
    """The best evaluation: its step, the figure that chose it, and all its figures."""

    step: int
    figure: float
    figures: dict[str, float | None]


@dataclass
class State(Generic[Network]):
    """A run after `step` iterations.

    Attributes:
        network: The trained network.
        optimizer: Its optimizer, with the momentum.
        scaler: Of the losses in float16; otherwise it does nothing.
        average: The running average of weights, if any.
        step: Iterations done.
        evaluated_at: Step of the last evaluation, 0 before the first.
        seconds: Time spent so far, over all resumptions.
        losses: Means of the last logged line.
        window: Sums since that line.
        best: The best evaluation so far.
        plateau: State of the plateau schedule.
        held: Whether the warm-up still waits for the training error.
        milestones: Of the step schedule, in iterations; none under another.
    """

    network: Network
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    average: WeightAverage[Network] | None
    step: int = 0
    evaluated_at: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    window: Window = field(default_factory=Window)
    best: Best | None = None
    plateau: Plateau = field(default_factory=Plateau)
    held: bool = False
    milestones: tuple[int, ...] = ()

    @property
    def evaluated(self) -> Network:
        """The network that is evaluated and exported: the average, where there is one."""
        return self.average.network if self.average else self.network

    def result(self) -> dict[str, float | None]:
        """Figures of the best evaluation; the last losses if there was no evaluation."""
        return dict(self.best.figures) if self.best else dict(self.losses)


def initial_state(network: Network, config: TrainConfig, plan: Plan, device: torch.device) -> State[Network]:
    """The state before the first step.

    Raises:
        UserError: Nothing is left to train.
    """
    optimizer = build_optimizer(
        network,
        rate=plan.rate,
        momentum=config.momentum,
        kind=config.optimizer,
        weight_decay=config.weight_decay,
        bias_lr_factor=config.bias_lr_factor,
        bias_weight_decay=config.bias_weight_decay,
    )
    return State(
        network=network,
        optimizer=optimizer,
        scaler=GradScaler(device.type, enabled=config.precision == "float16"),
        average=WeightAverage(network, config.ema) if config.ema is not None else None,
        held=config.warmup_until_error is not None,
        milestones=plan.milestones if config.schedule == "step" else (),
    )


@contextmanager
def statistics_kept(network: nn.Module, *, unless_done: bool = False) -> Iterator[None]:
    """A block after which the running statistics of BN are as before; with `unless_done` only where it raises."""
    moving = [
        buffer
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        for buffer in module.buffers()
    ]
    before = [buffer.clone() for buffer in moving]
    done = False
    try:
        yield
        done = unless_done
    finally:
        if not done:
            for buffer, value in zip(moving, before, strict=True):
                buffer.copy_(value)


def save(state: State[Any], folder: Path, config: TrainConfig, identity: dict[str, Any]) -> None:
    """Write the checkpoint of `state.step` into the run folder; `identity` is compared at resume."""
    content = {
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "average": state.average.network.state_dict() if state.average else None,
        "evaluated_at": state.evaluated_at,
        "seconds": state.seconds,
        "losses": state.losses,
        "window": dataclasses.asdict(state.window),
        "best": dataclasses.asdict(state.best) if state.best else None,
        "plateau": dataclasses.asdict(state.plateau),
        "held": state.held,
        "milestones": state.milestones,
        "identity": identity,
    }
    best_step = state.best.step if state.best else None
    save_checkpoint(folder, state.step, content, best_step=best_step, keep=config.keep)


def restore(state: State[Any], folder: Path, identity: dict[str, Any]) -> None:
    """Set `state` to the last whole checkpoint of the run folder; it stays unchanged where there is none.

    Raises:
        UserError: No checkpoint can be read, or it belongs to another data set or network.
    """
    content = load_checkpoint(folder)
    if content is None:
        return
    saved = content["identity"]
    for key in dict.fromkeys([*saved, *identity]):
        if saved.get(key) != identity.get(key):
            raise UserError(
                f"cannot resume {folder}: {key} was {saved.get(key)}, is {identity.get(key)}; "
                "give the data it was started with, or choose another --out"
            )
    try:
        state.network.load_state_dict(content["network"])
        if state.average:
            state.average.network.load_state_dict(content["average"])
        state.optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot resume {folder}: its network is another one ({' '.join(str(error).split())[:300]})"
        ) from error
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(content["scaler"])
    state.step = content["step"]
    state.evaluated_at = content["evaluated_at"]
    state.seconds = content["seconds"]
    state.losses = content["losses"]
    state.window = Window(**content["window"])
    state.best = Best(**content["best"]) if content["best"] else None
    state.plateau = Plateau(**content["plateau"])
    state.held = content["held"]
    _warn_of_moved_milestones(state, content["milestones"])
    log.info("going on after step %d", state.step)


def _warn_of_moved_milestones(state: State[Any], before: Sequence[int]) -> None:
    """Warn where milestones in %, which move with the length, fall on other steps than those already done."""
    was, now = (
        [milestone for milestone in milestones if milestone <= state.step]
        for milestones in (before, state.milestones)
    )
    if was != now:
        log.warning(
            "milestones up to step %d were at %s and are now at %s: later steps get the rate that the new milestones "
            "give, past steps are not repeated; milestones in iterations or epochs do not move",
            state.step,
            listed(was) or "none",
            listed(now) or "none",
        )
