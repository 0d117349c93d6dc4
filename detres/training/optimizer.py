"""SGD or AdamW with a separate rate and decay for biases, gradient clipping, the running average of weights.

Girshick 2015, §2.3 (twice the rate for biases, and no decay, as in its released models); Polyak and Juditsky 1992
(averaging); Loshchilov and Hutter 2019 (AdamW).
"""

from __future__ import annotations

import copy
from typing import Generic, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from detres.errors import UserError
from detres.training.task import Network


def build_optimizer(
    network: nn.Module,
    *,
    rate: float,
    momentum: float,
    weight_decay: float,
    bias_lr_factor: float = 1.0,
    bias_weight_decay: float | None = None,
    kind: Literal["sgd", "adamw"] = "sgd",
) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters of `network` that require a gradient; biases are a group of their own.

    `momentum` is SGD's momentum, and AdamW's first beta.

    A bias is a parameter whose name ends in `bias`; so a batch norm's shift is one and its scale is not.

    Raises:
        UserError: Nothing is left to train.
    """
    weights, biases = [], []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (biases if name.rpartition(".")[2] == "bias" else weights).append(parameter)
    if not weights and not biases:
        raise UserError(
            "all parameters of the network are frozen, nothing is left to train: lower model.freeze_at"
        )
    bias_decay = weight_decay if bias_weight_decay is None else bias_weight_decay
    groups = [
        {"params": weights, "lr_factor": 1.0, "weight_decay": weight_decay},
        {"params": biases, "lr_factor": bias_lr_factor, "weight_decay": bias_decay},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer: torch.optim.Optimizer
    if kind == "sgd":
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=(momentum, 0.999))
    set_rate(optimizer, rate)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set each group's learning rate to `rate` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters that the next step changes."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """L2 norm of all gradients together, a scalar on their device (0 where there are none)."""
    return get_total_norm([p.grad for p in trained_parameters(optimizer) if p.grad is not None])


def clip_gradients(optimizer: torch.optim.Optimizer, norm: Tensor, limit: float) -> None:
    """Scale all gradients by limit / norm where their `norm` is above `limit`, in place."""
    clip_grads_with_norm_(trained_parameters(optimizer), limit, norm)


class WeightAverage(Generic[Network]):
    """A copy of a network whose weights follow the trained ones: average <- d * average + (1 - d) * weights.

    At update t, d is the smaller of `decay` and (1 + t) / (10 + t), so that the first weights soon lose influence.
    Buffers and integers are copied, not averaged.

    Attributes:
        network: The average, a network of the same class, without gradients, in eval mode.
    """

    def __init__(self, network: Network, decay: float):
        self.decay = decay
        self.network: Network = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, network: Network, step: int) -> None:
        """Move towards `network` after its update number `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, parameter in zip(self.network.parameters(), network.parameters(), strict=True):
            average.lerp_(parameter, 1.0 - decay)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)
