"""How many multiply-adds a network takes: the figures of Table 1.

He et al. 2015, Table 1: convolutions and fully connected layers only.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detres.networks.norm import FrozenBatchNorm2d


def multiply_adds(network: nn.Module, height: int = 224, width: int = 224) -> int:
    """Multiply-adds of one image (3, height, width) through `network`; nothing is computed (meta tensors).

    BN, activations, pooling and biases are left out, as in the paper.
    """
    return multiply_adds_of(network, (1, 3, height, width))


def multiply_adds_of(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of one input of this shape through any module, counted as `multiply_adds` does."""
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
