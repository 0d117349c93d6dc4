"""One optimizer step over some micro-batches, whatever the task.

What a step draws at random depends on (seed, step, micro-batch) alone.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detres.training.config import Plan, TrainConfig
from detres.training.divergence import diverged
from detres.training.interruption import StopRequest
from detres.training.optimizer import clip_gradients, gradient_norm, set_rate
from detres.training.schedules import rate_factor
from detres.training.state import State, statistics_kept
from detres.training.task import Batch, Network, Task


def train_step(
    task: Task[Network, Batch],
    config: TrainConfig,
    plan: Plan,
    state: State[Network],
    micro_batches: list[Batch],
    dumps: Path,
    device: torch.device,
    stop: StopRequest,
) -> float:
    """Go one step further; returns the step's learning rate.

    Args:
        task: Gives the losses.
        config: The keys of `train`.
        plan: What they come to for the data.
        state: Changed in place.
        micro_batches: `accumulate` of them, as `task.collate` made them.
        dumps: The folder that gets the batch of a step that is not finite.
        device: Where the network is.
        stop: Looked at between micro-batches.

    Raises:
        DivergedError: A loss is not finite, or the gradient is not.
        Stopped: A signal came between micro-batches; the state is as before the step.
    """
    begun = time.monotonic()
    rate = _rate(config, plan, state)
    set_rate(state.optimizer, rate)
    state.optimizer.zero_grad(set_to_none=True)
    terms = _accumulate(task, config, state, micro_batches, device, stop)
    state.scaler.unscale_(state.optimizer)
    norm = gradient_norm(state.optimizer)

    # The step's one synchronization with the device.
    numbers = iter(
        torch.stack([*(loss for losses in terms for loss in losses.values()), norm.float()]).tolist()
    )
    losses = [{name: next(numbers) for name in named} for named in terms]
    norm_value = next(numbers)
    checked = [loss for named in losses for loss in named.values()]
    # With a scaler gradients may overflow, because it then leaves the step out and lowers the scale.
    if not state.scaler.is_enabled():
        checked.append(norm_value)
    if not all(math.isfinite(value) for value in checked):
        raise diverged(
            dumps,
            task.network,
            step=state.step + 1,
            rate=rate,
            losses=losses,
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
    state.window.add(losses, norm_value, time.monotonic() - begun)
    return rate


def _accumulate(
    task: Task[Network, Batch],
    config: TrainConfig,
    state: State[Network],
    micro_batches: list[Batch],
    device: torch.device,
    stop: StopRequest,
) -> list[dict[str, Tensor]]:
    """Add the gradients of all micro-batches; where it ends early, statistics of BN are as they were before."""
    if len(micro_batches) == 1:
        return [_backward(task, config, state, 0, micro_batches[0], device)]
    terms = []
    with statistics_kept(task.network, unless_done=True):
        for micro, batch in enumerate(micro_batches):
            stop.check()
            terms.append(_backward(task, config, state, micro, batch, device))
    return terms


def _rate(config: TrainConfig, plan: Plan, state: State[Network]) -> float:
    return plan.rate * rate_factor(
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


def _backward(
    task: Task[Network, Batch],
    config: TrainConfig,
    state: State[Network],
    micro: int,
    batch: Batch,
    device: torch.device,
) -> dict[str, Tensor]:
    """Add the gradients of micro-batch number `micro`; returns its loss terms, detached, on their device."""
    generator = _seeded(config.seed, state.step, micro)
    precision = getattr(torch, config.precision)
    with torch.autocast(device.type, precision, enabled=config.precision != "float32"):
        losses = task.losses(batch, generator)
    minimized = [loss.float() for name, loss in losses.items() if name != task.training_error]
    total = torch.stack(minimized).sum()
    state.scaler.scale(total / config.accumulate).backward()
    return {name: loss.detach().float() for name, loss in losses.items()}


def _seeded(seed: int, step: int, micro: int) -> torch.Generator:
    """A generator on the CPU for a micro-batch's samplers. It also seeds torch's global one, which dropout uses."""
    mixed = np.random.SeedSequence((seed, step, micro), spawn_key=(1,)).generate_state(2, np.uint64)
    torch.manual_seed(int(mixed[0]))
    return torch.Generator().manual_seed(int(mixed[1]))


def _hints(config: TrainConfig, plan: Plan, step: int) -> list[str]:
    """Likely causes of a loss that is not finite, likeliest first."""
    hints = ["the boxes of these images (tools/check_data.py)"]
    if config.precision == "float16":
        hints.append("train.precision (bfloat16 and float32 do not overflow)")
    early = " and a longer train.warmup_iterations" if step < max(2 * config.warmup_iterations, 200) else ""
    hints.append(f"the rate (train.lr, here {plan.rate:.4g} for {plan.images_per_step} images a step{early})")
    return hints if config.clip else [*hints, "train.clip (e.g. 10)"]
