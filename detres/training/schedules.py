"""Learning-rate schedules: pure functions from the iteration to a factor of the full rate.

Linear warm-up (Goyal et al. 2017, §2.2), steps (He et al. 2015, §4.2; Ren et al. 2015, §3.1.3), plateaus (He et al.
2015, §3.4), half a cosine (Loshchilov and Hutter 2017, eq. 5, without restarts). Iterations count from 0: iteration t
follows t updates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


def rate_factor(
    iteration: int,
    *,
    iterations: int,
    schedule: Literal["step", "cosine", "plateau"],
    milestones: Sequence[int],
    gamma: float,
    warmup_iterations: int,
    warmup_factor: float,
    plateaus: int = 0,
    held: bool = False,
) -> float:
    """Factor of the full learning rate at `iteration` of `iterations`: the warm-up's times the schedule's.

    Args:
        iteration: Updates done.
        iterations: Of the whole run.
        schedule: How the rate falls.
        milestones: Of the step schedule.
        gamma: Factor at each milestone or plateau.
        warmup_iterations: Length of the linear warm-up.
        warmup_factor: The factor at its start, and throughout while `held`.
        plateaus: Plateaus met so far (`Plateau.met`).
        held: Whether the warm-up still waits for the training error (He et al. 2015, §4.2, n = 18).
    """
    if schedule == "step":
        decay = step_decay(iteration, milestones, gamma)
    elif schedule == "cosine":
        decay = cosine_decay(iteration, iterations)
    else:
        decay = gamma**plateaus
    return decay * (warmup_factor if held else linear_warmup(iteration, warmup_iterations, warmup_factor))


def linear_warmup(iteration: int, warmup_iterations: int, warmup_factor: float) -> float:
    """`warmup_factor` at iteration 0, rising along a line to 1 at `warmup_iterations`, then 1."""
    if iteration >= warmup_iterations:
        return 1.0
    return warmup_factor + (1.0 - warmup_factor) * iteration / warmup_iterations


def step_decay(iteration: int, milestones: Sequence[int], gamma: float) -> float:
    """`gamma` to the power of the number of milestones reached; the update at a milestone has the lower rate."""
    return gamma ** sum(iteration >= milestone for milestone in milestones)


def cosine_decay(iteration: int, iterations: int) -> float:
    """Half a cosine, from 1 at iteration 0 to 0 at `iterations`, one past the last update."""
    return 0.5 * (1.0 + math.cos(math.pi * min(iteration, iterations) / iterations))


@dataclass
class Plateau:
    """The state of the plateau schedule: the best figure so far, and the evaluations after it.

    Attributes:
        best: The figure that later ones are compared with; None before the first evaluation.
        without: Evaluations since then, or since the last plateau, that were no better.
        met: Plateaus so far; each multiplies the rate by gamma.
    """

    best: float | None = None
    without: int = 0
    met: int = 0

    def add(self, figure: float, *, lower_is_better: bool, patience: int, margin: float) -> bool:
        """Count an evaluation; True if the last `patience` ones did not beat the best by more than `margin`."""
        gain = 0.0 if self.best is None else (self.best - figure if lower_is_better else figure - self.best)
        if self.best is None or gain > margin:
            self.best, self.without = figure, 0
            return False
        self.without += 1
        if self.without < patience:
            return False
        self.without = 0
        self.met += 1
        return True
