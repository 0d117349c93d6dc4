"""Counting a network's multiply-adds and parameters: the figures of Table 1.

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

# oneDNN's fused operators, which a network packed for inference may use but torch's counter does not know.
FUSED_CONVOLUTIONS = ("_convolution_pointwise", "_convolution_pointwise_")
FUSED_LINEAR = "_linear_pointwise"


def count_multiply_adds(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of one input of this shape through a module, without computing anything (meta tensors).

    BN, activations, pooling and biases are left out, as in the paper.
    """
    meta_module = copy_to_meta(module)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta_module(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2


def copy_to_meta(module: nn.Module) -> nn.Module:
    """A copy on meta tensors without BN, which changes neither shapes nor multiply-adds and is faster."""
    meta_module = copy.deepcopy(module).to("meta").eval()
    for parent in list(meta_module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.BatchNorm2d, FrozenBatchNorm2d)):
                setattr(parent, name, nn.Identity())
    return meta_module


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, including weight and bias of frozen BN, which are buffers."""
    trained = sum(parameter.numel() for parameter in module.parameters())
    frozen = sum(
        buffer.numel()
        for name, buffer in module.named_buffers()
        if name.rpartition(".")[2] in ("weight", "bias")
    )
    return trained + frozen


def count_dispatched_multiply_adds(run: Callable[[], object]) -> float:
    """Multiply-adds of the operators that one call of `run` dispatches."""
    with FlopCounterMode(display=False, custom_mapping=_fused_operators()) as counter:
        run()
    return counter.get_total_flops() / 2


def _fused_operators() -> dict[Any, Callable[..., int]]:
    if not torch.backends.mkldnn.is_available():
        return {}
    counters: dict[Any, Callable[..., int]] = {}
    for names, count in ((FUSED_CONVOLUTIONS, _count_convolution), ((FUSED_LINEAR,), _count_linear)):
        for name in names:
            if hasattr(torch.ops.mkldnn, name):
                counters[getattr(torch.ops.mkldnn, name)] = count
    return counters


def _count_convolution(*shapes: Any, out_shape: Any, **others: Any) -> int:
    """Operations of a fused convolution, whose inputs are (maps, weight, bias...) or (maps, summand, weight...)."""
    second, third = shapes[1], shapes[2]
    weight = third if third is not None and len(third) == 4 else second
    return 2 * prod(out_shape) * prod(weight[1:])


def _count_linear(rows: Any, weight: Any, *others: Any, out_shape: Any, **more: Any) -> int:
    return 2 * prod(out_shape) * weight[-1]
