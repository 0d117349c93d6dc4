"""Tensors into a module: all of them or an error that names the first that differ.

A partial load happens only where it is asked for, and what stays random is returned by name.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from detres.errors import WeightsError, listed

NAMED_DIFFERENCES = 4
# BatchNorm2d counts batches; frozen BN and Caffe's weights do not. The count changes nothing at fixed momentum.
COUNTER = "num_batches_tracked"


def load_tensors(
    module: nn.Module, tensors: Mapping[str, Tensor], *, where: str, partial: bool = False
) -> list[str]:
    """Copy `tensors` into `module`'s parameters and buffers of the same names.

    Args:
        module: The network, or a part of one.
        tensors: Name -> tensor, names as in `module.state_dict()`.
        where: The file, for messages.
        partial: Allow tensors that are missing, and leave out those that the module does not have.

    Returns:
        The module's names that `tensors` do not have and that stay as they were (empty unless `partial`).

    Raises:
        WeightsError: Another architecture: names missing or unexpected, or shapes that differ (shapes also when
            `partial`; a partial load that would load nothing is refused too).
    """
    own = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith(COUNTER)}
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    shared = [name for name in own if name in given]
    differing = [
        f"{name} is {tuple(given[name].shape)}, the network's {tuple(own[name].shape)}"
        for name in shared
        if given[name].shape != own[name].shape
    ]
    problems = [f"shapes differ: {_first(differing, '; ')}"] if differing else []
    if missing and not (partial and shared):
        problems.append(f"missing {_first(missing)}")
    if unexpected and not (partial and shared):
        problems.append(f"unexpected {_first(unexpected)}")
    if problems:
        raise WeightsError(f"{where}: weights of another architecture: {'; '.join(problems)}")
    module.load_state_dict({name: given[name] for name in shared}, strict=False)
    return missing


def _first(names: list[str], separator: str = ", ") -> str:
    if separator == ", ":
        return listed(names, NAMED_DIFFERENCES)
    rest = len(names) - NAMED_DIFFERENCES
    return separator.join(names[:NAMED_DIFFERENCES]) + (f"{separator}and {rest} more" if rest > 0 else "")
