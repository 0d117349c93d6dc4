"""The weights file of detres: a `.safetensors` with the tensors, and metadata that are enough to rebuild the network.

Nothing in it can run code. The preprocessing travels with the weights (He et al. 2015, §3.4; Appendix A). A digest
tells damage: neither safetensors nor a network notices a flipped bit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from detres.config import Section
from detres.data.preprocessing import Preprocessing
from detres.errors import WeightsError
from detres.files import atomic_path
from detres.weights.loading import check_tensors
from detres.weights.pickles import is_pickle, refuse_no_weights

log = logging.getLogger("detres")

FORMAT_VERSION = 2  # 1 was that of before the first release: other names of tensors and keys
METADATA_KEY = "detres"
DIGEST_KEY = "digest"  # beside the fields of Metadata
Architecture = TypeVar("Architecture", bound=Section)


class Metadata(Section):
    """The metadata of a weights file."""

    format_version: Literal[2] = Field(default=FORMAT_VERSION, description="version of the file format")
    task: Literal["detection", "classification", "localization"] = Field(description="what the network does")
    architecture: dict[str, Any] = Field(description="all options of the task's network")
    class_names: tuple[str, ...] = Field(description="ordered names; a label is an index into them")
    category_ids: tuple[int, ...] | None = Field(
        default=None, description="category ids of the classes in the training data"
    )
    preprocessing: Preprocessing = Field(description="how pixels become network input")
    sizes: dict[str, Any] = Field(description="short_side and long_side, or crop, of the images; pixels")
    test: dict[str, Any] = Field(
        default={}, description="test options that differ from the defaults (score threshold...)"
    )
    source: str = Field(default="", description="where the weights came from")


def save_weights(path: str | Path, tensors: Mapping[str, Tensor], metadata: Metadata) -> None:
    """Write a weights file, whole or not at all.

    Args:
        path: The `.safetensors` file to make or replace.
        tensors: Name -> tensor of any device and dtype (a network's `state_dict()`).
        metadata: What else is needed to rebuild the network.

    Raises:
        UserError: No space is left, or the file cannot be written.
    """
    # Each is cloned, because safetensors refuses tensors that share memory.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # One entry, because safetensors writes several in any order, and the same weights should give the same bytes.
    entries = metadata.model_dump(mode="json")
    text = json.dumps({**entries, DIGEST_KEY: _digest(plain, entries)}, ensure_ascii=False)
    content = save(plain, metadata={METADATA_KEY: text})
    with atomic_path(path) as beside:
        beside.write_bytes(content)


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], Metadata]:
    """The tensors (on the CPU) and metadata of a file that `save_weights` wrote.

    Raises:
        WeightsError: Missing, damaged, not a file of detres, of another version, or with tensors that no network can
            use (see `check_tensors`).
    """
    tensors, entries = read_safetensors(path)
    if not is_checkpoint(entries, path):
        raise WeightsError(
            f"{path}: a safetensors file without detres metadata: a model.safetensors of a run is needed here "
            "(other weights are given as --init)"
        )
    return tensors, parse_metadata(entries[METADATA_KEY], tensors, path)


def is_checkpoint(entries: Mapping[str, str], path: str | Path) -> bool:
    """Whether the text metadata of a safetensors file are those of a weights file of detres.

    Raises:
        WeightsError: They were, and the key is damaged: without them the tensors could pass for another program's.
    """
    if METADATA_KEY not in entries and any('"format_version"' in text for text in entries.values()):
        raise _damaged(path)
    return METADATA_KEY in entries


def architecture_of(metadata: Metadata, section: type[Architecture], where: str) -> Architecture:
    """The options of the network in a weights file.

    Args:
        metadata: Of the file.
        section: The task's type of them.
        where: The file, for messages.

    Raises:
        WeightsError: A key is unknown, missing or out of range; names it.
    """
    try:
        return section.model_validate(metadata.architecture)
    except pydantic.ValidationError as error:
        raise _wrong_key(error, f"{where}: architecture key", "newer") from error


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (on the CPU) and text metadata of any safetensors file.

    Raises:
        WeightsError: Missing, unreadable, truncated or not safetensors.
    """
    path = Path(path)
    if not os.path.isfile(path):  # no error for names that no system takes
        raise WeightsError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            entries = file.metadata() or {}
            # Copied, because the mapped file may be replaced while the tensors live.
            return {name: torch.clone(file.get_tensor(name)) for name in file.keys()}, dict(entries)  # noqa: SIM118
    except SafetensorError as error:
        if is_pickle(path):
            refuse_no_weights(path)
            raise WeightsError(
                f"{path}: no .safetensors but a pickle or archive of arrays: --init and convert_weights take it; a "
                "model.safetensors of a run is needed here"
            ) from error
        raise WeightsError(
            f"{path}: truncated or not a safetensors file ({error}); copy or make it again"
        ) from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error


def parse_metadata(text: str, tensors: Mapping[str, Tensor], path: str | Path) -> Metadata:
    """The metadata of a weights file of detres, which with the tensors must have the digest that they were saved with.

    A file without a digest is taken, and the log says so once.

    Args:
        text: The JSON under `METADATA_KEY`.
        tensors: All tensors of the file.
        path: The file, for messages.

    Raises:
        WeightsError: The file is damaged, or of another version; or a tensor cannot be used (see `check_tensors`).
    """
    try:
        entries = json.loads(text)
        digest = entries.pop(DIGEST_KEY, None)
        version = entries.get("format_version")
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path}: the metadata are not JSON ({error}); the file is damaged") from error
    if digest is None or digest != _digest(tensors, entries):
        check_tensors(tensors, str(path))  # names a tensor, where one has turned useless
        if digest is not None:
            raise _damaged(path)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise WeightsError(
            f"{path}: written by a newer detres (format {version}; this one reads {FORMAT_VERSION}): update detres"
        )
    if version == 1:
        raise WeightsError(
            f"{path}: written by a detres from before the first release (format 1, with other names of tensors and "
            "keys): train or convert it again"
        )
    try:
        metadata = Metadata.model_validate(entries)
    except pydantic.ValidationError as error:
        raise _wrong_key(error, f"{path}: metadata key", "edited") from error
    if digest is None:
        _warn_unsigned(str(path))
    return metadata


def _digest(tensors: Mapping[str, Tensor], entries: Mapping[str, Any]) -> str:
    """BLAKE2b of the metadata and of each tensor's name, dtype, shape and bytes; about 1.3 GB/s and thread."""

    def of_tensor(name: str) -> bytes:
        tensor = tensors[name]
        state = hashlib.blake2b(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return state.digest()

    whole = hashlib.blake2b(json.dumps(entries, sort_keys=True).encode(), digest_size=32)
    with ThreadPoolExecutor(min(8, torch.get_num_threads())) as pool:
        for digest in pool.map(of_tensor, sorted(tensors)):
            whole.update(digest)
    return whole.hexdigest()


@cache
def _warn_unsigned(path: str) -> None:
    log.warning(
        "%s has no digest: whether it is damaged cannot be told (files written from now on have one)", path
    )


def _damaged(path: str | Path) -> WeightsError:
    return WeightsError(
        f"{path}: damaged: its content is not what was saved (digest); copy it again, or train or convert it again"
    )


def _wrong_key(error: pydantic.ValidationError, where: str, cause: str) -> WeightsError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return WeightsError(f"{where} {key}: {first['msg']}; the file is damaged or {cause}")
