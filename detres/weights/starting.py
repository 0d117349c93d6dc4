"""What a network to be trained is, once the weights that it starts from have been read.

Stride position, pool, eps and preprocessing come with the weights; a configuration that says otherwise is refused.
"""

from __future__ import annotations

from typing import TypeVar

from detres.config import Section
from detres.data.preprocessing import TORCHVISION, Preprocessing
from detres.errors import ConfigError
from detres.networks.config import NetworkConfig
from detres.weights.foreign import Backbone, read_backbone


def start_network(
    network: NetworkConfig, init: str | None
) -> tuple[NetworkConfig, Preprocessing, Backbone | None]:
    """The configured network as its initial weights complete it.

    Args:
        network: The configuration's `model.network`; only keys that it sets are compared with the weights.
        init: The configuration's `model.init` (see `read_backbone`); None starts from random weights.

    Returns:
        The network, the preprocessing (torchvision's where there are no weights), and the weights.

    Raises:
        ConfigError: The configuration says otherwise than the weights.
        WeightsError: The weights cannot be read.
    """
    if init is None:
        return network, TORCHVISION, None
    backbone = read_backbone(init)
    said = {name: getattr(network, name) for name in network.model_fields_set}
    for name, value in said.items():
        if name in backbone.network and backbone.network[name] != value:
            raise ConfigError(
                f"model.network.{name} is {value}, but the weights {init} have {backbone.network[name]}: "
                "leave the key out or choose other weights"
            )
    return NetworkConfig.model_validate({**said, **backbone.network}), backbone.preprocessing, backbone


Config = TypeVar("Config", bound=Section)


def with_network(config: Config) -> Config:
    """A task's configuration with `model.network` as its initial weights complete it.

    What is saved then says what was trained, and a run can be repeated from it.

    Args:
        config: A configuration with `model.network` and `model.init`.

    Raises:
        ConfigError: The configuration says otherwise than the weights.
        WeightsError: The weights cannot be read.
    """
    model = getattr(config, "model")  # noqa: B009  each task has a model section of its own type
    network, _, _ = start_network(model.network, model.init)
    return config.model_copy(update={"model": model.model_copy(update={"network": network})})
