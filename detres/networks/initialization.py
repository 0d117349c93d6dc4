"""Initialization of a network's weights.

He et al. 2015, §3.4, after He et al. 2015b (rectifiers): variance 2 / fan of each convolution.
"""

from __future__ import annotations

import torch
from torch import nn


def initialize(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Convolutions normal with variance 2 / fan out, linear layers normal with std 0.01, biases 0; in place.

    Args:
        network: The network; its BN layers keep weight 1 and bias 0.
        generator: Source of the random numbers; the global generator if None.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01, generator=generator)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
