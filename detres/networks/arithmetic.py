"""How many multiply-adds a network takes: the figures of Table 1.

He et al. 2015, Table 1: convolutions and fully connected layers only.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(network: nn.Module, height: int = 224, width: int = 224) -> int:
    """Multiply-adds of one image (3, height, width) through `network`; nothing is computed (meta tensors).

    BN, activations, pooling and biases are left out, as in the paper.
    """
    shadow = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, 3, height, width, device="meta"))
    return counter.get_total_flops() // 2
