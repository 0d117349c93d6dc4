"""Weights files of one network, or of several that form an ensemble: one task, the same class names in any order.

He et al. 2015, §4.1 (classification) and Appendix B (detection).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from detres.data.class_names import check_class_names, class_places
from detres.errors import UserError, WeightsError
from detres.weights.checkpoint import Metadata, read_weights


@dataclass(frozen=True)
class WeightsFile:
    """A weights file of ours, read.

    Attributes:
        path: As the user gave it.
        tensors: Name -> tensor on the CPU.
        metadata: The rest of what rebuilds the network.
    """

    path: str
    tensors: dict[str, Tensor]
    metadata: Metadata


def read_ensemble(paths: Sequence[str | Path], task: str | None = None) -> list[WeightsFile]:
    """Read the weights files of one network or of an ensemble.

    Args:
        paths: One or more.
        task: The task that they must be for; None: that of the first.

    Raises:
        UserError: No file.
        WeightsError: A file cannot be read, is for another task, or has other class names than the first.
    """
    if not paths:
        raise UserError("0 weights files: one is needed, or several of an ensemble")
    files: list[WeightsFile] = []
    for path in paths:
        file = WeightsFile(str(path), *read_weights(path))
        first = files[0] if files else file
        check_task(file.metadata, task or first.metadata.task, path)
        class_order(file.metadata.class_names, first.metadata.class_names, file.path, first.path)
        files.append(file)
    return files


def check_task(metadata: Metadata, task: str, path: str | Path) -> None:
    """Refuse a weights file that is for another task.

    Raises:
        WeightsError: It is; both tasks are named.
    """
    if metadata.task != task:
        raise WeightsError(f"{path}: weights for {metadata.task}, not for {task}; choose weights for {task}")


def class_order(
    names: Sequence[str], first: Sequence[str], source: str, first_source: str
) -> tuple[int, ...]:
    """For each class of an ensemble's first network its place among another network's classes.

    Args:
        names: The other network's classes.
        first: The first network's.
        source: The other weights file, for the message.
        first_source: The first.

    Raises:
        WeightsError: The names differ; both sides are listed.
    """
    check_class_names(names, first, source=source, expected_source=first_source, error=WeightsError)
    return tuple(class_places(first, names))
