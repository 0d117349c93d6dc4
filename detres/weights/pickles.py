"""Foreign pickles (`.pth`, `.pt`, `.pkl`) and `.npz` without their power to run code: only arrays and plain values.

A global name outside the short list is refused by name and never imported.
"""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detres.errors import WeightsError
from detres.unpickling import DAMAGE, ArrayUnpickler, RefusedGlobal

# torch.save's older form starts with this number, pickled by itself (torch/serialization.py, MAGIC_NUMBER).
TORCH_LEGACY_START = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_pickle(path: str | Path) -> dict[str, Any]:
    """The dictionary that a pickle holds; numpy arrays become tensors on the CPU.

    Args:
        path: A file of `torch.save` (either of its forms) or a plain pickle of numpy arrays (Python 2's included).

    Returns:
        The outermost dictionary; nested ones are kept.

    Raises:
        WeightsError: Missing, truncated, not a dictionary, or it names a global that is not needed for weights.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        content = _read_torch(path) if _is_torch_file(path) else _read_numpy(path)
    except RefusedGlobal as error:
        raise _refusal(path, error.name) from error
    except pickle.UnpicklingError as error:
        # torch's restricted reader names the global in its message alone.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise _refusal(path, named.group(1)) from error
        raise _damaged(path, error) from error
    except DAMAGE as error:
        raise _damaged(path, error) from error
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{path}: holds a {type(content).__name__}; a dictionary of tensors by name is needed"
        )
    return {str(key): _tensors(value) for key, value in content.items()}


def is_npz(path: Path) -> bool:
    """Whether a file is numpy's archive of arrays."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except DAMAGE:
        return False  # reading it as a pickle says what is wrong
    return bool(names) and all(name.endswith(".npy") for name in names)


def read_arrays(path: str | Path) -> dict[str, Any]:
    """The arrays of a `.npz` as tensors on the CPU; pickled objects in it are refused.

    Raises:
        WeightsError: Truncated, or it holds objects.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _tensors(arrays[name]) for name in arrays.files}
    except DAMAGE as error:
        raise _damaged(Path(path), error) from error


def _is_torch_file(path: Path) -> bool:
    with open(path, "rb") as file:
        return TORCH_LEGACY_START in file.read(32) or zipfile.is_zipfile(path) or _starts_as_zip(path)


def _starts_as_zip(path: Path) -> bool:
    """A truncated zip has lost its directory at the end but starts as one."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _read_torch(path: Path) -> Any:
    # Training checkpoints of timm and others keep their options beside the weights in argparse's plain record.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_numpy(path: Path) -> Any:
    with open(path, "rb") as file:
        return ArrayUnpickler(file, encoding="latin1").load()


def _tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            return value.tolist()
        native = np.ascontiguousarray(value.astype(value.dtype.newbyteorder("=")))
        return torch.from_numpy(native).reshape(value.shape)  # a single number has become a list of one
    if isinstance(value, Mapping):
        return {str(key): _tensors(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tensors(inner) for inner in value]
    return value


def _refusal(path: Path, name: str) -> WeightsError:
    return WeightsError(
        f"{path}: the pickle names '{name}', which weights do not need and which could run code; refused, nothing was "
        "run. Save the tensors alone (a state_dict, or .safetensors)"
    )


def _damaged(path: Path, error: Exception) -> WeightsError:
    # torch puts advice to load without restriction in front of what happened; that advice is not passed on.
    lines = [
        line for line in str(error).splitlines() if line and not line.startswith("Weights only load failed")
    ]
    said = lines[0][:200] if lines else type(error).__name__
    return WeightsError(f"{path}: truncated or not a weights pickle ({said}); copy or download it again")
