"""Reads pickles (`.pth`, `.pt`, `.pkl`) and `.npz` of other programs without running their code.

Only arrays and plain values are read. A pickle that names any other global is refused, and the global is not imported.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import warnings
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
PICKLE_STARTS = (
    b"PK\x03\x04",
    b"\x80\x02",
    b"\x80\x03",
    b"\x80\x04",
    b"\x80\x05",
)  # a zip, or a pickle's protocol
CHECKPOINT_KEYS = (
    b"network",
    b"optimizer",
    b"scaler",
    b"evaluated_at",
    b"identity",
)  # of detres.training.state
LARGEST_INDEX = 1 << 24  # bytes of a torch.save archive's data.pkl that are searched for them


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
    if not os.path.isfile(path):  # no error for names that no system takes
        raise WeightsError(f"{path}: no such weights file")
    refuse_no_weights(path)
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
    if not isinstance(content, dict):
        raise WeightsError(
            f"{path}: holds a {type(content).__name__}; a dictionary of tensors by name is needed"
        )
    return content


def is_pickle(path: Path) -> bool:
    """Whether a file is, by its start, what `read_pickle` or `read_arrays` read, whole or not."""
    with open(path, "rb") as file:
        start = file.read(32)
    # A .safetensors starts with the length of its header, 8 bytes of which the high ones are 0.
    is_length = start[8:9] == b"{" or not start[2:].strip(b"\0")
    return TORCH_LEGACY_START in start or (start.startswith(PICKLE_STARTS) and not is_length)


def refuse_no_weights(path: Path) -> None:
    """Refuse archives of PyTorch that are more than weights: training checkpoints of detres, and programs.

    Raises:
        WeightsError: It is one; says what to give instead.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            index = b""
            if "data.pkl" in names:
                with archive.open(names["data.pkl"]) as file:
                    index = file.read(LARGEST_INDEX)
    except DAMAGE:
        return  # whoever reads it tells what is wrong
    if all(key in index for key in CHECKPOINT_KEYS):
        raise WeightsError(
            f"{path}: a training checkpoint: use model.safetensors beside it (in the run's folder); a checkpoint is "
            "for --resume"
        )
    if "constants.pkl" in names or any(name.startswith(("code/", "models/")) for name in names):
        raise WeightsError(
            f"{path}: a TorchScript or torch.export program: save its state_dict() with torch.save and give that"
        )


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
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tensors' kind; what matters of it is an error later
        return _tensors(torch.load(path, map_location="cpu", weights_only=True))


def _read_numpy(path: Path) -> Any:
    with open(path, "rb") as file:
        return _tensors(ArrayUnpickler(file, encoding="latin1").load())


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
