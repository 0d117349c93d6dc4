"""The training loop of all tasks: it knows batches, losses and steps, and nothing of what is learnt.

He et al. 2015, §3.4; Ren et al. 2015, §3.1.3. What a step does is a function of (seed, step) and of the state before
it, so that a run that was killed and resumed ends bit-equal to an unbroken one (same machine, same number of threads).
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import numpy as np
import torch

from detres.errors import ConfigError, UserError
from detres.training.config import Plan, TrainConfig, make_plan
from detres.training.divergence import diverged
from detres.training.feed import WorkerDied, feed
from detres.training.interruption import StopRequest
from detres.training.optimizer import clip_gradients, gradient_norm, set_rate
from detres.training.progress import StepProgress, duration, memory_mib
from detres.training.run_folder import Metrics, RunFolder
from detres.training.schedules import rate_factor
from detres.training.state import Best, State, Window, initial_state, restore, save
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
        more_follows: Whether other trainings are to follow: a signal in the last step then stops too, all being saved.

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
    evaluating = _evaluation_due(task, plan, state)  # where a run was stopped before or in an evaluation
    if state.step >= plan.iterations and not evaluating:
        log.info("this run is finished, all %d steps are done; a longer train.length goes on", state.step)
        if state.best is None and not run.weights.exists():
            task.export(state.evaluated, run.weights)
        return state.result()

    def evaluate() -> None:
        with progress.paused(), stop.at_once():
            _evaluate(task, config, plan, state, metrics, run)
        save(state, run.path, config, identity)

    stop = StopRequest()
    metrics = Metrics(run, state.step, evaluated=not evaluating)
    progress = StepProgress(state.step, plan.iterations, plan.images_per_step, device, quiet)
    begun = time.monotonic() - state.seconds
    task.network.train()
    try:
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), stop, progress:
            if evaluating:
                evaluate()
            for micro_batches, waited in feed(task, config, plan, state.step, device):
                if state.step == 0:
                    task.draw_first_batch(micro_batches[0], run.images)
                rate = _step(task, config, plan, state, micro_batches, run, device)
                state.seconds = time.monotonic() - begun
                state.window.waited += waited
                progress.show(state.step, state.window.mean_losses(), rate)
                finished = state.step == plan.iterations
                evaluating = _evaluation_due(task, plan, state)
                if finished or state.step % config.log_every == 0:
                    _log_losses(task, metrics, plan, state, rate, device)
                    _end_warmup(task, config, state)
                if finished or evaluating or stop.wanted or state.step % plan.checkpoint_every == 0:
                    save(state, run.path, config, identity)
                if stop.wanted and (evaluating or not finished):
                    raise KeyboardInterrupt
                if evaluating:
                    evaluate()
    except (KeyboardInterrupt, WorkerDied) as error:
        if isinstance(error, WorkerDied):
            if not stop.wanted:
                raise
            save(state, run.path, config, identity)  # the worker was stopped too: there is no step to finish
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


def _evaluation_due(task: Task[Any, Any], plan: Plan, state: State[Any]) -> bool:
    """Whether the network as it is now is to be evaluated, and has not been."""
    if not task.evaluates or plan.evaluate_every is None or state.step in (0, state.evaluated_at):
        return False
    return state.step >= plan.iterations or state.step % plan.evaluate_every == 0


def _step(
    task: Task[Network, Batch],
    config: TrainConfig,
    plan: Plan,
    state: State[Network],
    micro_batches: list[Batch],
    run: RunFolder,
    device: torch.device,
) -> float:
    """One optimizer step over the micro-batches; returns its learning rate."""
    begun = time.monotonic()
    rate = plan.rate * rate_factor(
        state.step,
        iterations=plan.iterations,
        schedule=config.schedule,
        milestones=plan.milestones,
        gamma=config.gamma,
        warmup_iterations=config.linear_warmup,
        warmup_factor=config.warmup_factor,
        plateaus=state.plateau.met,
        held=state.held,
    )
    set_rate(state.optimizer, rate)
    state.optimizer.zero_grad(set_to_none=True)
    terms = []
    for micro, batch in enumerate(micro_batches):
        generator = _seeded(config.seed, state.step, micro)
        with torch.autocast(
            device.type, getattr(torch, config.precision), enabled=config.precision != "float32"
        ):
            losses = task.losses(batch, generator)
        minimized = [loss.float() for name, loss in losses.items() if name != task.training_error]
        total = torch.stack(minimized).sum()
        state.scaler.scale(total / config.accumulate).backward()
        terms.append({name: loss.detach().float() for name, loss in losses.items()})
    state.scaler.unscale_(state.optimizer)
    norm = gradient_norm(state.optimizer)

    # The step's one synchronization with the device.
    numbers = iter(
        torch.stack([*(loss for losses in terms for loss in losses.values()), norm.float()]).tolist()
    )
    values = [{name: next(numbers) for name in losses} for losses in terms]
    norm_value = next(numbers)
    checked = [loss for losses in values for loss in losses.values()]
    if (
        not state.scaler.is_enabled()
    ):  # with it, gradients may overflow: the step is left out and the scale lowered
        checked.append(norm_value)
    if not all(math.isfinite(value) for value in checked):
        raise diverged(
            run.path / "diverged",
            task.network,
            step=state.step + 1,
            rate=rate,
            losses=values,
            gradient_norm=norm_value,
            batches=micro_batches,
            images=[name for batch in micro_batches for name in task.describe(batch)],
            hints=_hints(config, plan, state.step),
        )
    if config.clip is not None:
        clip_gradients(state.optimizer, norm, config.clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.step += 1
    if state.average:
        state.average.update(task.network, state.step)
    state.window.add(values, norm_value, time.monotonic() - begun)
    return rate


def _seeded(seed: int, step: int, micro: int) -> torch.Generator:
    """A generator on the CPU for the samplers of a micro-batch; the global one, for dropout, is seeded too."""
    mixed = np.random.SeedSequence((seed, step, micro), spawn_key=(1,)).generate_state(2, np.uint64)
    torch.manual_seed(int(mixed[0]))
    return torch.Generator().manual_seed(int(mixed[1]))


def _evaluate(
    task: Task[Network, Any],
    config: TrainConfig,
    plan: Plan,
    state: State[Network],
    metrics: Metrics,
    run: RunFolder,
) -> None:
    """Evaluate the network (or its average), note the figures, and export it where it is the best so far."""
    network = state.evaluated
    network.eval()
    with torch.no_grad():
        figures = dict(task.evaluate(network))
        losses = task.validation_losses(network)
    task.network.train()
    values = {f"val/{name}": value for name, value in figures.items()}
    values |= {f"val/loss/{name}": value for name, value in losses.items()}
    metrics.write(state.step, {**_place(plan, state), **values})
    state.evaluated_at = state.step
    figure = figures[task.best]
    if figure is None or math.isnan(figure):
        log.warning("step %d: %s does not exist, so these weights cannot be the best", state.step, task.best)
        return
    log.info("step %d: val/%s %.4f", state.step, task.best, figure)
    sign = -1 if task.lower_is_better else 1
    if state.best is None or sign * figure > sign * state.best.figure:
        state.best = Best(step=state.step, figure=figure, figures=figures)
        task.export(network, run.weights)
    if config.schedule == "plateau" and state.plateau.add(
        figure,
        lower_is_better=task.lower_is_better,
        patience=config.patience,
        margin=config.plateau_threshold,
    ):
        log.info(
            "step %d: plateau %d, the rate is multiplied by %g", state.step, state.plateau.met, config.gamma
        )


def _end_warmup(task: Task[Any, Any], config: TrainConfig, state: State[Any]) -> None:
    """Let the rate go to its full height where the line just logged has a low enough training error."""
    if state.held and config.warmup_until_error is not None and task.training_error is not None:
        error = state.losses[task.training_error]
        if error < config.warmup_until_error:
            state.held = False
            log.info("step %d: training error %.3f ends the warm-up", state.step, error)


def _log_losses(
    task: Task[Any, Any], metrics: Metrics, plan: Plan, state: State[Any], rate: float, device: torch.device
) -> None:
    """Write the means over the steps since the last line, and begin a new window."""
    window = state.window
    state.losses = window.mean_losses()
    measured = {name: value for name, value in state.losses.items() if name == task.training_error}
    losses = {name: value for name, value in state.losses.items() if name not in measured}
    elapsed = window.busy + window.waited
    metrics.write(
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
            "memory_mib": memory_mib(device),
            **task.counts(),
        },
    )
    state.window = Window()


def _place(plan: Plan, state: State[Any]) -> dict[str, float]:
    images = state.step * plan.images_per_step
    return {"epoch": plan.epoch(state.step), "images": images, "seconds": round(state.seconds, 3)}


def _hints(config: TrainConfig, plan: Plan, step: int) -> list[str]:
    """Where to look when the loss is not finite, likeliest first."""
    hints = ["the boxes of these images (tools/check_data.py)"]
    if config.precision == "float16":
        hints.append("train.precision (bfloat16 and float32 do not overflow)")
    early = " and a longer train.warmup_iterations" if step < max(2 * config.warmup_iterations, 200) else ""
    hints.append(f"the rate (train.lr, here {plan.rate:.4g} for {plan.images_per_step} images a step{early})")
    return hints if config.clip else [*hints, "train.clip (e.g. 10)"]


def _totals(task: Task[Any, Any], plan: Plan, state: State[Any], run: RunFolder) -> str:
    images = state.step * plan.images_per_step
    best = f"; best {task.best} {state.best.figure:.4f} at step {state.best.step}" if state.best else ""
    return (
        f"trained {state.step} steps, {images} images ({plan.epoch(state.step):g} epochs) in "
        f"{duration(state.seconds)}, {images / max(state.seconds, 1e-9):.1f} images/s{best}: {run.weights}"
    )
