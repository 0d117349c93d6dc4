"""Loads tensors into a module: all of them, or an error that names the first differences.

A partial load happens only where it is asked for; the names that keep their values are returned.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from detres.errors import WeightsError, listed

NAMED_DIFFERENCES = 4
# BatchNorm2d counts batches; frozen BN and Caffe's weights do not. With a fixed momentum the count has no effect.
COUNTER = "num_batches_tracked"


def load_tensors(
    module: nn.Module, tensors: Mapping[str, Tensor], *, where: str, partial: bool = False
) -> list[str]:
    """Copy `tensors` into `module`'s parameters and buffers of the same names.

    Args:
        module: The network, or a part of one.
        tensors: Name -> tensor, names as in `module.state_dict()`.
        where: The file, for messages.
        partial: Allow missing tensors, and ignore those that the module does not have.

    Returns:
        Names of the module's tensors that are not in `tensors` and keep their values (none unless `partial`).

    Raises:
        WeightsError: Shapes differ; names are missing or unexpected and `partial` is false; or no name is shared.
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
