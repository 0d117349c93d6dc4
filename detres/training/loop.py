"""The training loop of all tasks: it knows batches, losses and steps, and nothing of what is learned.

He et al. 2015, §3.4; Ren et al. 2015, §3.1.3. A step depends on (seed, step) and on the state before it alone, so that
a run that was killed and resumed ends bit-equal to an unbroken one (same machine, same number of threads).
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic

import torch

from detres.errors import ConfigError, UserError
from detres.training.checkpoints import read_checkpoint
from detres.training.config import Plan, TrainConfig, make_plan, schedule_warnings
from detres.training.divergence import check_update
from detres.training.feed import WorkerDied, feed
from detres.training.interruption import Stopped, StopRequest
from detres.training.progress import StepProgress, duration, memory_mib
from detres.training.run_folder import Metrics, RunFolder
from detres.training.state import Best, State, Window, initial_state, restore, save
from detres.training.step import train_step
from detres.training.task import Batch, Network, Task
from detres.training.watch import Watch

log = logging.getLogger("detres")

Figures = dict[str, float | None]


def train(
    task: Task[Network, Batch],
    config: TrainConfig,
    run: RunFolder,
    device: torch.device,
    *,
    resume: bool = False,
    quiet: bool = False,
    more_follows: bool = False,
) -> Figures:
    """Train `task.network` in place and leave checkpoints, metrics and the best weights in `run`.

    Args:
        task: What to train.
        config: The keys of `train`.
        run: The open run folder.
        device: Where the network is.
        resume: Go on from the newest checkpoint of `run`, if it has one.
        quiet: No progress on standard error.
        more_follows: Whether other trainings follow; a signal in the last step then stops the program after saving.

    Returns:
        The figures of the best evaluation; where there was none, the mean losses of the last logged steps.

    Raises:
        DivergedError: A loss, a gradient or a weight is not finite.
        KeyboardInterrupt: Stopped by SIGINT or SIGTERM, after saving.
        UserError: float16 without CUDA; a checkpoint of another run or none that is whole; no space left; a schedule
            that looks at evaluations or a training error which the task does not have.
    """
    samples = len(task.dataset)  # type: ignore[arg-type]
    plan = check_training(
        config, samples, device, evaluates=task.evaluates, training_error=task.training_error
    )
    identity = {**task.identity, "training images": samples}
    state = initial_state(task.network, config, plan, device)
    if resume:
        restore(state, run.path, identity)
    evaluating = _evaluation_due(task, plan, state)  # the run was stopped before or in an evaluation
    finished = state.step >= plan.iterations and not evaluating
    if not run.weights.exists() and (state.best or finished):
        _export_again(task, state, run)
    if finished:
        log.info("this run is finished, all %d steps are done; a longer train.length goes on", state.step)
        return state.result()

    stop = _run(task, config, plan, run, device, state, identity, evaluating=evaluating, quiet=quiet)
    if state.best is None:
        task.export(state.evaluated, run.weights)
    elif state.best.figure == 0 and not task.lower_is_better:
        text = "val/%s was 0 at every evaluation: the weights of the last one are kept; train for longer, or check data"
        log.warning(text, task.best)
    log.info(_totals(task, plan, state, run))
    if stop.wanted and more_follows:
        log.warning("stopped after step %d, the last of this part: --resume goes on", state.step)
        raise KeyboardInterrupt
    return state.result()


def _run(
    task: Task[Network, Batch],
    config: TrainConfig,
    plan: Plan,
    run: RunFolder,
    device: torch.device,
    state: State[Network],
    identity: dict[str, Any],
    *,
    evaluating: bool,
    quiet: bool,
) -> StopRequest:
    """All steps from `state` on, after an evaluation that is due; returns whether a signal came in the last one."""
    for warning in schedule_warnings(config, plan):
        log.warning(warning)
    stop = StopRequest()
    metrics = Metrics(run, state.step, evaluated=not evaluating)
    progress = StepProgress(state.step, plan.iterations, plan.images_per_step, device, quiet)
    loop = _Loop(task, config, plan, run, device, state, identity, metrics, progress, stop)
    task.network.train()
    try:
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), stop, loop.watch, progress:
            if evaluating:
                loop.evaluate()
            loop.run_steps()
    except (KeyboardInterrupt, WorkerDied) as error:
        if isinstance(error, WorkerDied) and not stop.wanted:  # else the signal reached the worker too
            raise
        log.warning("stopped at step %d of %d: --resume goes on", state.step, plan.iterations)
        raise KeyboardInterrupt from None
    finally:
        metrics.close()
    return stop


def _export_again(task: Task[Network, Any], state: State[Network], run: RunFolder) -> None:
    """Write weights that are gone: those of the best evaluation, or where its checkpoint is gone, the last."""
    content = read_checkpoint(run.path, state.best.step) if state.best else None
    network = state.evaluated
    if content is not None:
        network = copy.deepcopy(network)
        network.load_state_dict(content["average"] or content["network"])
    step = content["step"] if content else state.step
    log.warning("%s was gone: the weights of step %d are written again", run.weights, step)
    task.export(network, run.weights)


def check_training(
    config: TrainConfig, samples: int, device: torch.device, *, evaluates: bool, training_error: str | None
) -> Plan:
    """The plan of a training; call it before a run folder is opened, so that nothing is created for wrong settings.

    Args:
        config: The keys of `train`.
        samples: Number of training images.
        device: Where the network will be.
        evaluates: The task's `evaluates`.
        training_error: The task's `training_error`.

    Raises:
        UserError: float16 without CUDA; a schedule that needs evaluations or a training error that the task does not
            have; lengths that do not fit.
    """
    if config.precision == "float16" and device.type != "cuda":
        raise UserError(
            f"train.precision: float16 needs a CUDA device, this is {device.type}; "
            "float32 and bfloat16 work on both"
        )
    if config.schedule == "plateau" and not evaluates:
        raise ConfigError(
            "train.schedule: plateau looks at evaluations, and there are no validation data: set data.val"
        )
    if config.warmup_until_error is not None and training_error is None:
        raise ConfigError("train.warmup_until_error: this task has no training error; use warmup_iterations")
    return make_plan(config, samples)


@dataclass
class _Loop(Generic[Network, Batch]):
    """A training under way: its parts, and what happens between steps, at a logged line and at an evaluation."""

    task: Task[Network, Batch]
    config: TrainConfig
    plan: Plan
    run: RunFolder
    device: torch.device
    state: State[Network]
    identity: dict[str, Any]
    metrics: Metrics
    progress: StepProgress
    stop: StopRequest

    def __post_init__(self) -> None:
        self.watch = Watch(self.config.hang_minutes, self.write_unsaved)
        self.saved_step, self.saved_time = self.state.step, time.monotonic()

    def run_steps(self) -> None:
        """All steps to the plan's end, with their log lines, checkpoints and evaluations.

        Raises:
            KeyboardInterrupt: A signal came; the step it came in is finished and saved.
        """
        config, plan, state = self.config, self.plan, self.state
        begun = time.monotonic() - state.seconds
        steps = feed(self.task, config, plan, state.step, self.device, self.stop, self.watch)
        with closing(steps):
            while state.step < plan.iterations:
                rate, last_batch = self.take_step(steps)
                state.seconds = time.monotonic() - begun
                self.progress.show(state.step, state.window.mean_losses(), rate)
                finished = state.step == plan.iterations
                evaluating = _evaluation_due(self.task, plan, state)
                if finished or state.step % config.log_every == 0:
                    self.log_losses(rate)
                    self.end_warmup()
                if finished or evaluating:
                    check_update(self.task, state, last_batch, rate)
                if finished or evaluating or self.stop.wanted or self.is_saving_due():
                    self.save()
                if self.stop.wanted and (evaluating or not finished):
                    raise KeyboardInterrupt
                if evaluating:
                    self.evaluate()

    def take_step(self, steps: Iterator[tuple[list[Batch], float]]) -> tuple[float, Batch]:
        """One step; returns its rate and its last micro-batch. Where it cannot be taken, the state before is saved."""
        state = self.state
        try:
            micro_batches, waited = next(steps)
            if state.step == 0:
                self.task.draw_first_batch(micro_batches[0], self.run.images)
            dumps = self.run.path / "diverged"
            rate = train_step(
                self.task, self.config, self.plan, state, micro_batches, dumps, self.device, self.stop
            )
        except (Stopped, UserError):
            self.write_unsaved()
            raise
        state.window.waited += waited
        return rate, micro_batches[-1]

    def is_saving_due(self) -> bool:
        """Whether a checkpoint is due by the steps or by the clock."""
        minutes = self.config.checkpoint_minutes
        if minutes is not None and time.monotonic() - self.saved_time >= minutes * 60:
            return True
        return self.state.step % self.plan.checkpoint_every == 0

    def save(self) -> None:
        """Write a checkpoint."""
        with self.watch.waiting(f"the checkpoint of step {self.state.step} to be written in {self.run.path}"):
            self.write()

    def write(self) -> None:
        """Write a checkpoint, however long it takes."""
        save(self.state, self.run.path, self.config, self.identity)
        self.saved_step, self.saved_time = self.state.step, time.monotonic()

    def write_unsaved(self) -> None:
        """Write a checkpoint where the last one is of an earlier step."""
        if self.state.step > self.saved_step:
            self.write()

    def evaluate(self) -> None:
        """Evaluate the network (or its average), log the figures, export it where it is the best so far, and save."""
        with self.progress.paused(), self.stop.at_once():
            figures = self.measure()
            self.state.evaluated_at = self.state.step
            figure = figures[self.task.best]
            if figure is None or math.isnan(figure):
                text = "step %d: %s does not exist, so these weights cannot be the best"
                log.warning(text, self.state.step, self.task.best)
            else:
                self.compare(figure, figures)
        self.save()

    def measure(self) -> dict[str, float | None]:
        """The figures of the network (or its average) on validation data, logged with its validation losses."""
        network = self.state.evaluated
        network.eval()
        with torch.no_grad():
            figures = dict(self.task.evaluate(network))
            losses = self.task.validation_losses(network)
        self.task.network.train()
        values = {f"val/{name}": value for name, value in figures.items()}
        values |= {f"val/loss/{name}": value for name, value in losses.items()}
        # A network whose losses do not exist answers nothing. (Infinite ones of averaged scores can be of a whole one.)
        exploded = any(name.startswith("val/loss/") and value != value for name, value in values.items())
        self.metrics.write(self.state.step, {**_place(self.plan, self.state), **values})
        if exploded:
            log.warning("step %d: the losses on validation images are NaN", self.state.step)
        return {**figures, self.task.best: None} if exploded else figures

    def compare(self, figure: float, figures: dict[str, float | None]) -> None:
        """Export the network where `figure` is the best so far; let the plateau schedule count it."""
        task, config, state = self.task, self.config, self.state
        log.info("step %d: val/%s %.4f", state.step, task.best, figure)
        sign = -1 if task.lower_is_better else 1
        if state.best is None or sign * figure >= sign * state.best.figure:  # of equal ones the later
            state.best = Best(step=state.step, figure=figure, figures=figures)
            task.export(state.evaluated, self.run.weights)
        if config.schedule == "plateau" and state.plateau.add(
            figure,
            lower_is_better=task.lower_is_better,
            patience=config.patience,
            margin=config.plateau_threshold,
        ):
            text = "step %d: plateau %d, the rate is multiplied by %g"
            log.info(text, state.step, state.plateau.met, config.gamma)

    def end_warmup(self) -> None:
        """Raise the rate to its full height where the line just logged has a low enough training error."""
        task, config, state = self.task, self.config, self.state
        if state.held and config.warmup_until_error is not None and task.training_error is not None:
            error = state.losses.get(
                task.training_error, math.inf
            )  # not there if no batch could be learned from
            if error < config.warmup_until_error:
                state.held = False
                log.info("step %d: training error %.3f ends the warm-up", state.step, error)

    def log_losses(self, rate: float) -> None:
        """Write the means over the steps since the last line, and begin a new window."""
        task, plan, state = self.task, self.plan, self.state
        window = state.window
        state.losses = window.mean_losses()
        measured = {name: value for name, value in state.losses.items() if name == task.training_error}
        losses = {name: value for name, value in state.losses.items() if name not in measured}
        elapsed = window.busy + window.waited
        self.metrics.write(
            state.step,
            {
                **_place(plan, state),
                "loss": sum(losses.values()),
                **{f"loss/{name}": value for name, value in losses.items()},
                **{f"train/{name}": value for name, value in measured.items()},
                "lr": rate,
                "gradient_norm": window.gradient_norm / window.steps,
                "images_per_second": window.steps * plan.images_per_step / elapsed,
                "data/wait_share": window.waited / elapsed,
                "memory_mib": memory_mib(self.device),
                **task.counts(),
            },
        )
        state.window = Window()


def _evaluation_due(task: Task[Any, Any], plan: Plan, state: State[Any]) -> bool:
    """Whether the plan asks for an evaluation at this step and it has not been done."""
    if not task.evaluates or plan.evaluate_every is None or state.step in (0, state.evaluated_at):
        return False
    return state.step >= plan.iterations or state.step % plan.evaluate_every == 0


def _place(plan: Plan, state: State[Any]) -> dict[str, float]:
    images = state.step * plan.images_per_step
    return {"epoch": plan.epoch(state.step), "images": images, "seconds": round(state.seconds, 3)}


def _totals(task: Task[Any, Any], plan: Plan, state: State[Any], run: RunFolder) -> str:
    images = state.step * plan.images_per_step
    best = f"; best {task.best} {state.best.figure:.4f} at step {state.best.step}" if state.best else ""
    return (
        f"trained {state.step} steps, {images} images ({plan.epoch(state.step):g} epochs) in "
        f"{duration(state.seconds)}, {images / max(state.seconds, 1e-9):.1f} images/s{best}: {run.weights}"
    )
