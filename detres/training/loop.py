"""The training loop of all tasks: it knows batches, losses and steps, and nothing of what is learned.

He et al. 2015, §3.4; Ren et al. 2015, §3.1.3. A step depends on (seed, step) and on the state before it alone, so that
a run that was killed and resumed ends bit-equal to an unbroken one (same machine, same number of threads).
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any, Generic

import torch

from detres.errors import ConfigError, UserError
from detres.training.config import Plan, TrainConfig, make_plan
from detres.training.feed import WorkerDied, feed
from detres.training.interruption import StopRequest
from detres.training.progress import StepProgress, duration, memory_mib
from detres.training.run_folder import Metrics, RunFolder
from detres.training.state import Best, State, Window, initial_state, restore, save
from detres.training.step import train_step
from detres.training.task import Batch, Network, Task

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
        DivergedError: A loss or gradient is not finite.
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
    if state.step >= plan.iterations and not evaluating:
        log.info("this run is finished, all %d steps are done; a longer train.length goes on", state.step)
        if state.best is None and not run.weights.exists():
            task.export(state.evaluated, run.weights)
        return state.result()

    stop = StopRequest()
    metrics = Metrics(run, state.step, evaluated=not evaluating)
    progress = StepProgress(state.step, plan.iterations, plan.images_per_step, device, quiet)
    loop = _Loop(task, config, plan, run, device, state, identity, metrics, progress, stop)
    task.network.train()
    try:
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), stop, progress:
            if evaluating:
                loop.evaluate()
            loop.run_steps()
    except (KeyboardInterrupt, WorkerDied) as error:
        if isinstance(error, WorkerDied):
            if not stop.wanted:
                raise
            loop.save()  # the signal reached the worker too: there is no step to finish
        log.warning("stopped at step %d of %d: --resume goes on", state.step, plan.iterations)
        raise KeyboardInterrupt from None
    finally:
        metrics.close()
    if state.best is None:
        task.export(state.evaluated, run.weights)
    log.info(_totals(task, plan, state, run))
    if stop.wanted and more_follows:
        log.warning("stopped after step %d, the last of this part: --resume goes on", state.step)
        raise KeyboardInterrupt
    return state.result()


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

    def run_steps(self) -> None:
        """All steps to the plan's end, with their log lines, checkpoints and evaluations.

        Raises:
            KeyboardInterrupt: A signal came; the step it came in is finished and saved.
        """
        task, config, plan, state = self.task, self.config, self.plan, self.state
        begun = time.monotonic() - state.seconds
        for micro_batches, waited in feed(task, config, plan, state.step, self.device):
            if state.step == 0:
                task.draw_first_batch(micro_batches[0], self.run.images)
            rate = train_step(
                task, config, plan, state, micro_batches, self.run.path / "diverged", self.device
            )
            state.seconds = time.monotonic() - begun
            state.window.waited += waited
            self.progress.show(state.step, state.window.mean_losses(), rate)
            finished = state.step == plan.iterations
            evaluating = _evaluation_due(task, plan, state)
            if finished or state.step % config.log_every == 0:
                self.log_losses(rate)
                self.end_warmup()
            if finished or evaluating or self.stop.wanted or state.step % plan.checkpoint_every == 0:
                self.save()
            if self.stop.wanted and (evaluating or not finished):
                raise KeyboardInterrupt
            if evaluating:
                self.evaluate()

    def save(self) -> None:
        """Write a checkpoint."""
        save(self.state, self.run.path, self.config, self.identity)

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
        self.metrics.write(self.state.step, {**_place(self.plan, self.state), **values})
        return figures

    def compare(self, figure: float, figures: dict[str, float | None]) -> None:
        """Export the network where `figure` is the best so far; let the plateau schedule count it."""
        task, config, state = self.task, self.config, self.state
        log.info("step %d: val/%s %.4f", state.step, task.best, figure)
        sign = -1 if task.lower_is_better else 1
        if state.best is None or sign * figure > sign * state.best.figure:
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
            error = state.losses[task.training_error]
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
