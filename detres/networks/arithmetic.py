"""How many multiply-adds a network takes: the figures of Table 1.

He et al. 2015, Table 1: convolutions and fully connected layers only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detres.networks.norm import FrozenBatchNorm2d

# oneDNN's fused operators, which a network packed for inference may use and torch's counter does not know.
FUSED_CONVOLUTIONS = ("_convolution_pointwise", "_convolution_pointwise_")
FUSED_LINEAR = "_linear_pointwise"


def multiply_adds_of(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of one input of this shape through any module; nothing is computed (meta tensors).

    BN, activations, pooling and biases are left out, as in the paper.
    """
    shadow = shadow_of(module)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2


def shadow_of(module: nn.Module) -> nn.Module:
    """A copy on meta tensors whose BN does nothing: shapes and multiply-adds are the same, and it is sooner done."""
    shadow = copy.deepcopy(module).to("meta").eval()
    for parent in list(shadow.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.BatchNorm2d, FrozenBatchNorm2d)):
                setattr(parent, name, nn.Identity())
    return shadow


def parameters(module: nn.Module) -> int:
    """Numbers that training would fit: all parameters, and scale and offset of constant BN (which are buffers)."""
    fitted = sum(parameter.numel() for parameter in module.parameters())
    constant = sum(
        buffer.numel()
        for name, buffer in module.named_buffers()
        if name.rpartition(".")[2] in ("weight", "bias")
    )
    return fitted + constant


def counted_operations(run: Callable[[], object]) -> float:
    """Multiply-adds that one call of `run` dispatches."""
    with FlopCounterMode(display=False, custom_mapping=_fused_operators()) as counter:
        run()
    return counter.get_total_flops() / 2


def _fused_operators() -> dict[Any, Callable[..., int]]:
    if not torch.backends.mkldnn.is_available():
        return {}
    known: dict[Any, Callable[..., int]] = {}
    for names, count in ((FUSED_CONVOLUTIONS, _convolution), ((FUSED_LINEAR,), _linear)):
        for name in names:
            if hasattr(torch.ops.mkldnn, name):
                known[getattr(torch.ops.mkldnn, name)] = count
    return known


def _convolution(*shapes: Any, out_shape: Any, **others: Any) -> int:
    """Operations of a fused convolution: (maps, weight, bias...) or, with an addition, (maps, other, weight...)."""
    second, third = shapes[1], shapes[2]
    weight = third if third is not None and len(third) == 4 else second
    return 2 * prod(out_shape) * prod(weight[1:])


def _linear(rows: Any, weight: Any, *others: Any, out_shape: Any, **more: Any) -> int:
    return 2 * prod(out_shape) * weight[-1]
