"""Loads tensors into a module: all of them, or an error that names the first differences.

A partial load happens only where it is asked for; the names that keep their values are returned.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from detres.errors import WeightsError, listed

NAMED_DIFFERENCES = 4
# BatchNorm2d counts batches; frozen BN and Caffe's weights do not. With a fixed momentum the count has no effect.
COUNTER = "num_batches_tracked"
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LARGEST = torch.finfo(torch.float32).max


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
        WeightsError: Shapes differ; names are missing or unexpected and `partial` is false; no name is shared; or a
            tensor cannot be used (see `check_tensors`).
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
    check_tensors({name: given[name] for name in shared}, where)
    module.load_state_dict({name: given[name] for name in shared}, strict=False)
    return missing


def check_tensors(tensors: Mapping[str, Tensor], where: str, *, translated: bool = True) -> None:
    """Refuse tensors that load without an error and make a network useless.

    Args:
        tensors: By the names of a network.
        where: The file, for messages.
        translated: False for tensors as another program named them: only those are refused that cannot be calculated
            with, for it may keep integers beside its weights.

    Raises:
        WeightsError: Tensors without plain values, not floating point, not finite in float32, or negative variances;
            names the first.
    """
    flaws: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        flaw = _flaw_of_kind(tensor) or (_flaw_of_values(name, tensor) if translated else None)
        if flaw:
            flaws.setdefault(flaw, []).append(name)
    for flaw, names in flaws.items():
        what, advice = flaw.split("; ")
        raise WeightsError(f"{where}: {what}: {listed(names, NAMED_DIFFERENCES)}; {advice}")


def _flaw_of_kind(tensor: Tensor) -> str | None:
    """What and what to do, where a tensor cannot be calculated with."""
    if tensor.is_meta:
        return "without values (on the device meta); save the weights after they are loaded"
    if tensor.layout != torch.strided:
        return "sparse; save them with to_dense()"
    if (
        tensor.is_quantized
        or tensor.is_complex()
        or (tensor.is_floating_point() and tensor.dtype not in FLOATING)
    ):
        return (
            f"{str(tensor.dtype).removeprefix('torch.')} numbers; save them as float32, float16 or bfloat16"
        )
    return None


def _flaw_of_values(name: str, tensor: Tensor) -> str | None:
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        return None if name.endswith(COUNTER) else f"not floating point ({kind}); save them as float32"
    if not tensor.numel():
        return None
    low, high = (float(value) for value in tensor.detach().aminmax())
    if not (low >= -LARGEST and high <= LARGEST):  # false for NaN too
        return "not finite; the file is damaged or diverged"
    return "negative variances; the file is damaged" if low < 0 and name.endswith("running_var") else None


def _first(names: list[str], separator: str = ", ") -> str:
    if separator == ", ":
        return listed(names, NAMED_DIFFERENCES)
    rest = len(names) - NAMED_DIFFERENCES
    return separator.join(names[:NAMED_DIFFERENCES]) + (f"{separator}and {rest} more" if rest > 0 else "")
