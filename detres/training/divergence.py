"""The dump and the error of a loss that is not finite."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from detres.errors import DivergedError, listed
from detres.files import write_json
from detres.training.checkpoints import write_tensors
from detres.training.state import State, statistics_kept
from detres.training.task import Task

LARGE_WEIGHT = 100.0  # networks that learn have none: their losses need not be tried


def diverged(
    folder: Path,
    network: nn.Module,
    *,
    step: int,
    rate: float,
    losses: Sequence[Mapping[str, float]],
    gradient_norm: float,
    batches: Sequence[Any],
    images: Sequence[str],
    hints: Sequence[str],
) -> DivergedError:
    """Dump the step's batch and figures into `folder`; returns the error, which says where and what to check.

    Args:
        folder: `diverged` in the run folder.
        network: With the gradients of the step.
        step: Number of the step, from 1.
        rate: Its learning rate.
        losses: Loss terms of each micro-batch.
        gradient_norm: L2 norm of the whole gradient.
        batches: The micro-batches.
        images: Names of the images in them.
        hints: Likely causes in this configuration, likeliest first.
    """
    dump, figures = folder / f"step-{step}.pt", folder / f"step-{step}.json"
    norms = {name: float(p.grad.norm()) for name, p in network.named_parameters() if p.grad is not None}
    write_tensors(
        dump, {"step": step, "images": list(images), "batches": [plain(batch) for batch in batches]}
    )
    write_json(
        figures,
        {
            "step": step,
            "images": list(images),
            "lr": rate,
            "losses": [{name: _written(value) for name, value in terms.items()} for terms in losses],
            "gradient_norm": _written(gradient_norm),
            "gradient_norms": {name: _written(norm) for name, norm in norms.items()},
        },
    )
    bad = [
        f"loss/{name} is {value}"
        for terms in losses
        for name, value in terms.items()
        if not math.isfinite(value)
    ]
    what = listed(dict.fromkeys(bad)) or f"the losses are finite but the gradient's norm is {gradient_norm}"
    terms = "; ".join(listed(f"{name} {value:.4g}" for name, value in terms.items()) for terms in losses)
    return DivergedError(
        f"training diverged at step {step}: {what} (all terms: {terms}; lr {rate:.4g}). "
        f"Images: {listed(images)}. The batch is dumped in {dump}, losses and norms of gradients in {figures}. "
        f"Look at {', then '.join(hints)}."
    )


def check_update(task: Task[Any, Any], state: State[Any], batch: Any, rate: float) -> None:
    """Look at weights that no later step will try: none may be infinite or NaN, nor so large that the losses are.

    The losses are tried on the last micro-batch in float32; statistics of BN stay as they are.

    Raises:
        DivergedError: A tensor or a loss is not finite.
    """
    bad = [
        name
        for network in dict.fromkeys((task.network, state.evaluated))
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    largest = max(
        (float(p.detach().abs().max()) for p in task.network.parameters() if p.numel()), default=0.0
    )
    if not bad and largest > LARGE_WEIGHT:
        with torch.no_grad(), statistics_kept(task.network):
            losses = task.losses(batch, torch.Generator().manual_seed(0))
        bad = [f"loss/{name}" for name, loss in losses.items() if not loss.isfinite().all()]
    if bad:
        raise DivergedError(
            f"training diverged at step {state.step}: after its update {listed(bad, 3)} is not finite (lr {rate:.4g})."
            f" Images: {listed(task.describe(batch))}. Look at the rate (train.lr), then train.clip (e.g. 10)."
        )


def plain(value: Any) -> Any:
    """`value` in types that `torch.load(weights_only=True)` reads: tensors, dicts, lists, strings, numbers."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _written(value: float) -> float | str:
    """The number, or the text `nan` or `inf`, because JSON has no such numbers."""
    return value if math.isfinite(value) else str(value)
