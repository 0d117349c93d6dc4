"""Our weights file: one `.safetensors` with the tensors by name and, as JSON text, all that rebuilds the network.

Nothing in it can run code. The recipe of the input travels with the weights (He et al. 2015, §3.4; Appendix A).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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

FORMAT_VERSION = 1
METADATA_KEY = "detres"
Architecture = TypeVar("Architecture", bound=Section)


class Metadata(Section):
    """What a weights file says beside its tensors."""

    format_version: Literal[1] = Field(default=FORMAT_VERSION, description="version of the file's form")
    task: Literal["detection", "classification", "localization"] = Field(description="what the network does")
    architecture: dict[str, Any] = Field(description="the task's model configuration, whole")
    class_names: tuple[str, ...] = Field(description="ordered names; a label is a place in this list")
    category_ids: tuple[int, ...] | None = Field(
        default=None, description="ids of the classes as the data had them"
    )
    preprocessing: Preprocessing = Field(description="how pixels become network input")
    sizes: dict[str, Any] = Field(description="short_side and long_side, or crop, of the pictures; pixels")
    test: dict[str, Any] = Field(
        default={}, description="test options that are not the defaults (score threshold...)"
    )
    source: str = Field(default="", description="where the weights came from")


def save_weights(path: str | Path, tensors: Mapping[str, Tensor], metadata: Metadata) -> None:
    """Write a weights file, whole or not at all.

    Args:
        path: The `.safetensors` file to make or replace.
        tensors: Name -> tensor of any device and dtype (a network's `state_dict()`).
        metadata: The rest of what rebuilds the network.

    Raises:
        UserError: No space left, or the place cannot be written.
    """
    # A clone each: safetensors refuses tensors that share memory.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # One entry, for safetensors writes several in any order: the same weights are the same bytes.
    content = save(plain, metadata={METADATA_KEY: metadata.model_dump_json()})
    with atomic_path(path) as beside:
        beside.write_bytes(content)


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], Metadata]:
    """The tensors (on the CPU) and metadata of a file that `save_weights` wrote.

    Raises:
        WeightsError: Missing, truncated, not one of ours, or of a newer version.
    """
    tensors, entries = read_safetensors(path)
    if METADATA_KEY not in entries:
        raise WeightsError(
            f"{path}: a safetensors file without detres metadata; a file of model.safetensors' form is needed here "
            "(a backbone goes to --init)"
        )
    return tensors, parse_metadata(entries[METADATA_KEY], path)


def architecture_of(metadata: Metadata, section: type[Architecture], where: str) -> Architecture:
    """The task's model configuration that a weights file keeps.

    Args:
        metadata: The file's.
        section: The task's own form of it.
        where: The file, for messages.

    Raises:
        WeightsError: A key is unknown, missing or out of range; names it.
    """
    try:
        return section.model_validate(metadata.architecture)
    except pydantic.ValidationError as error:
        raise _wrong_key(error, f"{where}: architecture key", "newer") from error


def is_ours(entries: Mapping[str, str]) -> bool:
    """Whether a safetensors file's metadata is that of `save_weights`."""
    return METADATA_KEY in entries


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (on the CPU) and text metadata of any safetensors file.

    Raises:
        WeightsError: Missing, unreadable, truncated or not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            entries = file.metadata() or {}
            # Copied out of the mapped file, which may be replaced while the tensors live.
            return {name: torch.clone(file.get_tensor(name)) for name in file.keys()}, dict(entries)  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(
            f"{path}: truncated or not a safetensors file ({error}); copy or make it again"
        ) from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error


def parse_metadata(text: str, path: str | Path) -> Metadata:
    """The metadata of a file of ours, from their JSON text.

    Raises:
        WeightsError: The file is damaged, or of a newer version.
    """
    try:
        version = json.loads(text).get("format_version")
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: the metadata are not JSON ({error}); the file is damaged") from error
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise WeightsError(
            f"{path}: written by a newer detres (format {version}, this one reads up to {FORMAT_VERSION}): "
            "update detres"
        )
    try:
        return Metadata.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise _wrong_key(error, f"{path}: metadata key", "edited") from error


def _wrong_key(error: pydantic.ValidationError, where: str, otherwise: str) -> WeightsError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return WeightsError(f"{where} {key}: {first['msg']}; the file is damaged or {otherwise}")
