"""Learning-rate schedules: pure functions from the iteration to a factor of the full rate.

Linear warm-up (Goyal et al. 2017, §2.2), steps (He et al. 2015, §3.4; Ren et al. 2015, §3.1.3), half a cosine
(Loshchilov and Hutter 2017, eq. 5, without restarts). Iterations count from 0: iteration t follows t updates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal


def rate_factor(
    iteration: int,
    *,
    iterations: int,
    schedule: Literal["step", "cosine"],
    milestones: Sequence[int],
    gamma: float,
    warmup_iterations: int,
    warmup_factor: float,
) -> float:
    """Factor of the full learning rate at `iteration` of `iterations`: the warm-up's times the schedule's."""
    if schedule == "step":
        decay = step_decay(iteration, milestones, gamma)
    else:
        decay = cosine_decay(iteration, iterations)
    return linear_warmup(iteration, warmup_iterations, warmup_factor) * decay


def linear_warmup(iteration: int, warmup_iterations: int, warmup_factor: float) -> float:
    """`warmup_factor` at iteration 0, rising along a line to 1 at `warmup_iterations`, then 1."""
    if iteration >= warmup_iterations:
        return 1.0
    return warmup_factor + (1.0 - warmup_factor) * iteration / warmup_iterations


def step_decay(iteration: int, milestones: Sequence[int], gamma: float) -> float:
    """The power of `gamma` that is the number of milestones reached; the update at one already has the lower rate."""
    return gamma ** sum(iteration >= milestone for milestone in milestones)


def cosine_decay(iteration: int, iterations: int) -> float:
    """Half a cosine from 1 at iteration 0 to 0 at `iterations`, which is past the last update."""
    return 0.5 * (1.0 + math.cos(math.pi * min(iteration, iterations) / iterations))
