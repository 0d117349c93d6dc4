"""Reads pickles (`.pth`, `.pt`, `.pkl`) and `.npz` of other programs without running their code.

Only arrays and plain values are read. A pickle that names any other global is refused, and the global is not imported.
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

# The older format of torch.save starts with this number in a pickle of its own (torch/serialization.py, MAGIC_NUMBER).
TORCH_LEGACY_START = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_pickle(path: str | Path) -> dict[str, Any]:
    """The dictionary that a pickle holds; numpy arrays become tensors on the CPU.

    Args:
        path: A file of `torch.save` (old or new format), or a plain pickle of numpy arrays (also from Python 2).

    Returns:
        The outermost dictionary; nested ones are kept.

    Raises:
        WeightsError: Missing, truncated, not a dictionary, or with a global that weights do not need.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        content = _read_torch(path) if _is_torch_file(path) else _read_numpy(path)
    except RefusedGlobal as error:
        raise _refusal(path, error.name) from error
    except pickle.UnpicklingError as error:
        # torch's restricted unpickler names the global in its message only.
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
        return False  # read_pickle tells what is wrong
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
    # Training checkpoints of timm and others hold their options in an argparse.Namespace.
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
        return torch.from_numpy(native).reshape(value.shape)  # ascontiguousarray makes () to (1,)
    if isinstance(value, Mapping):
        return {str(key): _tensors(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tensors(inner) for inner in value]
    return value


def _refusal(path: Path, name: str) -> WeightsError:
    return WeightsError(
        f"{path}: refused: the pickle names '{name}', which weights do not need and which could run code; nothing was "
        "run. Save only the tensors (a state_dict, or .safetensors)"
    )


def _damaged(path: Path, error: Exception) -> WeightsError:
    # torch's message starts with the advice to load without restrictions, which is left out.
    lines = [
        line for line in str(error).splitlines() if line and not line.startswith("Weights only load failed")
    ]
    reason = lines[0][:200] if lines else type(error).__name__
    return WeightsError(f"{path}: truncated or not a weights pickle ({reason}); copy or download it again")
