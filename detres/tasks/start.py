"""What a training starts from: the initial weights, read once, and the network that they complete.

Stride position, pool, eps and preprocessing come with the weights; a configuration that says otherwise is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from detres.config import Section
from detres.data.preprocessing import TORCHVISION, Preprocessing
from detres.errors import ConfigError
from detres.networks.config import NetworkConfig
from detres.weights.foreign import Backbone, read_backbone

Config = TypeVar("Config", bound=Section)


@dataclass(frozen=True)
class Start:
    """The network that a training begins with.

    Attributes:
        network: The configured network, completed by the weights.
        preprocessing: That of the weights; torchvision's where there are none.
        backbone: The weights; None: random ones. `backbone.checkpoint` is the whole file where it is one of ours.
    """

    network: NetworkConfig
    preprocessing: Preprocessing = TORCHVISION
    backbone: Backbone | None = None


def read_start(network: NetworkConfig, init: str | None) -> Start:
    """Read the initial weights and complete the configured network by what they say.

    Args:
        network: The configuration's `model.network`; only keys that it sets are compared with the weights.
        init: The configuration's `model.init` (see `read_backbone`); None: random weights.

    Raises:
        ConfigError: The configuration contradicts the weights.
        WeightsError: The weights cannot be read.
    """
    if init is None:
        return Start(network)
    backbone = read_backbone(init)
    configured = {name: getattr(network, name) for name in network.model_fields_set}
    for name, value in configured.items():
        if name in backbone.network and backbone.network[name] != value:
            raise ConfigError(
                f"model.network.{name} is {value}, but the weights {init} have {backbone.network[name]}: "
                "leave the key out or choose other weights"
            )
    completed = NetworkConfig.model_validate({**configured, **backbone.network})
    return Start(completed, backbone.preprocessing, backbone)


def with_network(config: Config, network: NetworkConfig) -> Config:
    """A task's configuration with `network` as its `model.network`.

    The saved configuration then names the network that was trained, so that the run can be repeated from it.
    """
    model = getattr(config, "model")  # noqa: B009  each task has a model section of its own type
    return config.model_copy(update={"model": model.model_copy(update={"network": network})})
