"""The keys of `train`, and the plan in iterations that follows from them and the size of the data.

He et al. 2015, §3.4; Ren et al. 2015, §3.1.3. One iteration is one optimizer step: `accumulate` micro-batches of
`batch` images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from detres.config import Length, Section
from detres.errors import ConfigError, DataError

# Keys that may differ between a run and its resumption, because they do not change what a step does. (A new `length`
# moves the end: a cosine schedule bends towards it, and milestones in % move with it.)
FREE_AT_RESUME = frozenset(
    {
        "length",
        "workers",
        "evaluate_every",
        "checkpoint_every",
        "checkpoint_minutes",
        "hang_minutes",
        "log_every",
        "keep",
    }
)


def free_at_resume(schedule: object, warmup_until_error: object) -> frozenset[str]:
    """`FREE_AT_RESUME` without the keys that the rate depends on: it may depend on evaluations or on logged lines.

    Args:
        schedule: Of the run.
        warmup_until_error: Of the run.
    """
    steering = {"evaluate_every"} if schedule == "plateau" else set()
    return FREE_AT_RESUME - steering - ({"log_every"} if warmup_until_error is not None else set())


class TrainConfig(Section):
    """The keys of `train`."""

    seed: int = Field(
        default=0, ge=0, description="Seed of the order of images, augmentation, sampling and fresh weights"
    )
    batch: int = Field(
        default=2, ge=1, description="Images that go through the network at once (a micro-batch)"
    )
    accumulate: int = Field(
        default=1, ge=1, description="Micro-batches whose gradients are averaged before one optimizer step"
    )
    base_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Images per step for which `lr` is stated: the rate is scaled by batch * accumulate / this",
    )
    workers: int = Field(
        default=2,
        ge=0,
        description="Processes that decode images; the result does not depend on their number",
    )
    lr: float = Field(default=0.001, gt=0, description="Learning rate for a step of `base_batch_size` images")
    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd",
        description="sgd (the paper's), or adamw, which learns faster from scratch with a rate of about 1e-3",
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD; AdamW's first beta")
    weight_decay: float = Field(
        default=1e-4,
        ge=0,
        description="Weight decay: SGD's L2 penalty; AdamW's is decoupled from the gradient",
    )
    bias_lr_factor: float = Field(
        default=1.0, gt=0, description="Learning rate of biases over that of weights (Girshick 2015: 2)"
    )
    bias_weight_decay: float | None = Field(
        default=None,
        ge=0,
        description="Weight decay of biases; null: that of weights (Girshick 2015: 0)",
    )
    length: Length = Field(default=Length.parse("12 epochs"), description="How long to train")
    schedule: Literal["step", "cosine", "plateau"] = Field(
        default="step",
        description="How the rate falls after the warm-up; plateau: where evaluations no longer improve",
    )
    milestones: tuple[Length, ...] = Field(
        default=(), description="Where the step schedule multiplies the rate by `gamma`"
    )
    gamma: float = Field(
        default=0.1, gt=0, le=1, description="Factor of the rate at each milestone or plateau"
    )
    patience: int = Field(
        default=3,
        ge=1,
        description="Plateau: the rate falls after this many evaluations in a row without improvement",
    )
    plateau_threshold: float = Field(
        default=0.0, ge=0, description="Plateau: a figure counts as better if it is better by more than this"
    )
    warmup_iterations: int = Field(
        default=500, ge=0, description="Iterations over which the rate rises linearly to its full height"
    )
    warmup_factor: float = Field(
        default=0.1, gt=0, le=1, description="Factor of the rate at which the warm-up starts"
    )
    warmup_until_error: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Instead of rising linearly the rate stays at `warmup_factor` until the training error of a logged"
        " line is below this (ResNet-110 on CIFAR-10: 0.8); `warmup_iterations` then counts as 0",
    )
    clip: float | None = Field(
        default=None, gt=0, description="Largest L2 norm of the whole gradient; null: not clipped"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="Type of the forward pass by autocast; float16 needs CUDA and scales the losses",
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Decay of the running average of weights that is evaluated and saved; null: no average",
    )
    evaluate_every: Length | None = Field(
        default=Length.parse("1 epochs"), description="How often to evaluate; null: never"
    )
    checkpoint_every: Length = Field(
        default=Length.parse("1 epochs"), description="How often to save (also at each evaluation)"
    )
    checkpoint_minutes: float | None = Field(
        default=None,
        gt=0,
        description="Minutes after which to save besides; null: only by `checkpoint_every`",
    )
    hang_minutes: float | None = Field(
        default=10,
        gt=0,
        description="Minutes of waiting in vain for images or for a checkpoint to be written, after which the run ends"
        " with an error; null: never",
    )
    log_every: int = Field(
        default=20,
        ge=1,
        description="Iterations over which losses are averaged into one line of metrics.jsonl",
    )
    keep: int = Field(default=2, ge=1, description="Newest checkpoints kept, besides the best")

    @property
    def linear_warmup(self) -> int:
        """Iterations of the linear warm-up; 0 where the warm-up waits for the training error instead."""
        return self.warmup_iterations if self.warmup_until_error is None else 0

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.length.unit == "%":
            raise ValueError(f"length is {self.length} of itself; write '12 epochs' or '240000 iterations'")
        if self.schedule == "plateau" and self.evaluate_every is None:
            raise ValueError("schedule plateau looks at evaluations: set evaluate_every")
        return self


@dataclass(frozen=True)
class Plan:
    """What a `TrainConfig` means for a data set of known size, counted in iterations.

    Attributes:
        iterations: Length of the run.
        milestones: Iterations at which the rate falls.
        evaluate_every: Iterations between evaluations, None for none.
        checkpoint_every: Iterations between checkpoints.
        images_per_step: batch * accumulate.
        samples: Images in the data set.
        rate: Learning rate of weights at full height, after scaling with the batch.
    """

    iterations: int
    milestones: tuple[int, ...]
    evaluate_every: int | None
    checkpoint_every: int
    images_per_step: int
    samples: int
    rate: float

    def epoch(self, step: int) -> float:
        """Passes over the data after `step` iterations."""
        return round(step * self.images_per_step / self.samples, 4)


def schedule_warnings(config: TrainConfig, plan: Plan) -> list[str]:
    """What of the schedule lies beyond the end of the run: one line each."""
    warnings = []
    if config.linear_warmup >= plan.iterations:
        reached = (
            config.warmup_factor + (1 - config.warmup_factor) * (plan.iterations - 1) / config.linear_warmup
        )
        warnings.append(
            f"train.warmup_iterations: the run ends at step {plan.iterations}, within the warm-up of"
            f" {config.linear_warmup}: the rate is at most {reached:.2g} of {plan.rate:g}"
        )
    late = [str(milestone) for milestone in plan.milestones if milestone >= plan.iterations]
    if late and config.schedule == "step":
        warnings.append(
            f"train.milestones: the run ends at step {plan.iterations}: the rate does not fall at {', '.join(late)}"
        )
    return warnings


def make_plan(config: TrainConfig, samples: int) -> Plan:
    """Count the lengths of `config` in iterations; epochs and shares of the run are rounded up.

    Args:
        config: The keys of `train`.
        samples: Number of training images.

    Raises:
        DataError: There are no training images.
        ConfigError: The milestones do not rise.
    """
    if samples == 0:
        raise DataError("the training data has no images: check data.train and its split")
    images_per_step = config.batch * config.accumulate

    def iterations(length: Length, whole: int = 0) -> int:
        if length.unit == "iterations":
            return length.count
        if length.unit == "%":
            return max(1, math.ceil(length.count * whole / 100))
        return max(1, math.ceil(length.count * samples / images_per_step))

    run = iterations(config.length)
    milestones = tuple(iterations(length, run) for length in config.milestones)
    if list(milestones) != sorted(set(milestones)):
        raise ConfigError(
            f"train.milestones: {', '.join(map(str, config.milestones))} do not rise; "
            "list them in order, each once"
        )
    scale = images_per_step / config.base_batch_size if config.base_batch_size else 1.0
    return Plan(
        iterations=run,
        milestones=milestones,
        evaluate_every=iterations(config.evaluate_every, run) if config.evaluate_every else None,
        checkpoint_every=iterations(config.checkpoint_every, run),
        images_per_step=images_per_step,
        samples=samples,
        rate=config.lr * scale,
    )
