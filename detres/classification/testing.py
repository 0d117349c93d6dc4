"""Testing a classifier on the central crop of each picture.

He et al. 2015, §3.4 and §4.1. N pictures, K classes, s the crop's side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from detres.classification.pictures import LeftOut
from detres.console import progress
from detres.data.batching import (
    ClassificationBatch,
    ClassificationDataset,
    collate_classification,
    make_loader,
)
from detres.data.preprocessing import Preprocessing, normalise
from detres.evaluation.classification import cross_entropy, top_k_error
from detres.training.feed import plain_errors


@dataclass(frozen=True)
class ClassificationFigures:
    """What a test gives; None where a figure does not exist.

    Attributes:
        top1_error: Share of pictures whose best class is wrong, 0..1.
        top5_error: Share of pictures whose class is not among the best five; None for five classes or fewer.
        loss: Mean softmax cross entropy.
        images: Number of pictures.
        left_out: Pictures that could not be read.
    """

    top1_error: float | None
    top5_error: float | None
    loss: float | None
    images: int
    left_out: int = 0

    def errors(self) -> dict[str, float | None]:
        """The two errors by name."""
        return {"top1_error": self.top1_error, "top5_error": self.top5_error}


def evaluate_classifier(
    network: nn.Module,
    preprocessing: Preprocessing,
    pictures: ClassificationDataset,
    *,
    batch: int = 64,
    workers: int = 0,
    device: torch.device | None = None,
    quiet: bool = False,
) -> ClassificationFigures:
    """Test a network, in evaluation mode and on `device`, on the crops of `pictures`.

    Args:
        network: (N, 3, s, s) -> logits (N, K).
        preprocessing: What it expects.
        pictures: The crops, made with `train=False`.
        batch: Crops that go through at once.
        workers: Processes that decode.
        device: Where the network is; None: the CPU.
        quiet: No progress on standard error.
    """
    logits, labels, left_out = [], [], LeftOut()
    keys = range(len(pictures))
    batches = [list(keys[start : start + batch]) for start in range(0, len(keys), batch)]
    loader = make_loader(pictures, batches, collate_classification, workers=workers)
    with torch.inference_mode(), plain_errors():
        for crops in progress(loader, "classify", total=len(batches), quiet=quiet):
            left_out.add(crops.unreadable)
            if not len(crops):
                continue
            logits.append(network(network_input(crops, preprocessing, device)).float().cpu())
            labels.append(crops.labels)
    all_logits = (
        torch.cat(logits).numpy() if logits else np.zeros((0, len(pictures.pictures.class_names)), np.float32)
    )
    all_labels = torch.cat(labels).numpy() if labels else np.zeros(0, np.int64)
    return ClassificationFigures(
        top1_error=top_k_error(all_logits, all_labels, 1),
        top5_error=top_k_error(all_logits, all_labels, 5),
        loss=cross_entropy(all_logits, all_labels),
        images=len(all_labels),
        left_out=len(left_out),
    )


def network_input(
    crops: ClassificationBatch, preprocessing: Preprocessing, device: torch.device | None
) -> Tensor:
    """(N, 3, s, s) float32 on the device."""
    device = device or torch.device("cpu")
    shifts = None if crops.shifts is None else crops.shifts.to(device, non_blocking=True)
    return normalise(crops.images.to(device, non_blocking=True), preprocessing, shifts=shifts)
