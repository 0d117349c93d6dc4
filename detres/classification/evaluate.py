"""Testing classifiers, one or an ensemble, on one or several crops of each image.

He et al. 2015, §3.4 and §4.1 (top-1 and top-5; ensembles average the scores). N images, K classes, s a crop's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detres.classification.classifier import CLASSIFICATION, crop_of, rebuild_classifier
from detres.classification.crops import EvalCropDataset, EvalCrops, collate_eval_crops, score_with_logs
from detres.classification.data import LeftOut
from detres.console import progress
from detres.data.batching import make_loader
from detres.data.classification_samples import ClassificationBatch, ClassificationDataset
from detres.data.config import CropConfig
from detres.data.preprocessing import Preprocessing, normalize
from detres.data.records import ImageLabels
from detres.evaluation.classification import cross_entropy, top_k_error
from detres.tasks.ensemble import WeightsFile, read_ensemble
from detres.training.feed import plain_errors

DENSE_BATCH = 8  # images in a loader's batch of whole images at several sizes


@dataclass(frozen=True)
class ClassificationFigures:
    """The figures of a test; None: the figure does not exist.

    Attributes:
        top1_error: Share of images whose best class is wrong, 0..1.
        top5_error: Share of images whose class is not among the best five; None for five classes or fewer.
        loss: Mean of -log score of the right class (softmax cross entropy).
        images: Number of images.
        left_out: Images that could not be read.
    """

    top1_error: float | None
    top5_error: float | None
    loss: float | None
    images: int
    left_out: int = 0

    def errors(self) -> dict[str, float | None]:
        """The two errors by name."""
        return {"top1_error": self.top1_error, "top5_error": self.top5_error}


@dataclass(frozen=True)
class Scores:
    """Class scores of the images that could be read.

    Attributes:
        scores: (N, K) float64, softmax, averaged over crops and members.
        labels: (N,) int64.
        left_out: Images that could not be read.
        logs: (N, K), the logs of scores of one crop an image, which are finite where a score is rounded to 0.
    """

    scores: np.ndarray
    labels: np.ndarray
    left_out: int
    logs: np.ndarray | None = None

    def in_order(self, order: Sequence[int]) -> Scores:
        """The same scores and labels with reordered classes: the new class i is the old class `order[i]`."""
        place = np.argsort(np.asarray(order, dtype=np.int64))
        logs = None if self.logs is None else self.logs[:, order]
        return Scores(self.scores[:, order], place[self.labels], self.left_out, logs)

    def figures(self) -> ClassificationFigures:
        """Top-1 and top-5 errors and the mean loss."""
        with np.errstate(divide="ignore"):
            logs = np.log(self.scores)
        if self.logs is not None:
            logs = np.where(self.scores > 0, logs, self.logs)
        loss = cross_entropy(logs, self.labels)
        return ClassificationFigures(
            top1_error=top_k_error(self.scores, self.labels, 1),
            top5_error=top_k_error(self.scores, self.labels, 5),
            loss=loss,
            images=len(self.labels),
            left_out=self.left_out,
        )


@dataclass(frozen=True)
class ClassifierMember:
    """A trained classifier with all that it needs to be used.

    Attributes:
        network: In evaluation mode.
        preprocessing: How pixels become its input.
        crop: Sizes of its crops.
        class_names: Its K classes.
        source: Its file.
    """

    network: nn.Module
    preprocessing: Preprocessing
    crop: CropConfig
    class_names: tuple[str, ...]
    source: str = ""


def read_classifier_members(paths: Sequence[str | Path], device: torch.device) -> list[ClassifierMember]:
    """Classifiers of an ensemble, on `device`, from their weights files.

    Raises:
        WeightsError: A file is not a classifier's, or has other classes than the first.
    """
    return [build_classifier_member(file, device) for file in read_ensemble(paths, CLASSIFICATION)]


def build_classifier_member(file: WeightsFile, device: torch.device) -> ClassifierMember:
    """The classifier of a weights file that has been read, on `device`.

    Raises:
        WeightsError: The tensors do not fit the file's own architecture.
    """
    network, _ = rebuild_classifier(file.tensors, file.metadata, file.path)
    crop, preprocessing = crop_of(file.metadata), file.metadata.preprocessing
    return ClassifierMember(network.to(device), preprocessing, crop, file.metadata.class_names, file.path)


def classify_images(
    member: ClassifierMember,
    images: ImageLabels,
    eval_crops: EvalCrops = EvalCrops(),  # noqa: B008  frozen
    *,
    batch: int = 64,
    workers: int = 0,
    device: torch.device | None = None,
    skip_unreadable: bool = False,
    left_out: LeftOut | None = None,
    quiet: bool = False,
) -> Scores:
    """Scores of a classifier, with its own classes in its own order.

    Args:
        member: The classifier.
        images: Their labels are places in its classes.
        eval_crops: Which crops it scores.
        batch: Number of crops that go through at once.
        workers: Processes that decode.
        device: Where the network is; None: the CPU.
        skip_unreadable: Leave out, name and count images that cannot be read.
        left_out: Gets them; those that it has already are counted, but not logged again.
        quiet: No progress on standard error.

    Raises:
        UserError: An image cannot be read; a scale does not suit the network.
    """
    dataset = EvalCropDataset(images, member.crop, eval_crops, skip_unreadable=skip_unreadable)
    together = DENSE_BATCH if eval_crops.scales else max(1, batch // eval_crops.crops)
    keys = range(len(dataset))
    batches = [list(keys[start : start + together]) for start in range(0, len(keys), together)]
    loader = make_loader(dataset, batches, collate_eval_crops, workers=workers)
    scores, logs, labels, unreadable = [], [], [], 0
    left_out = LeftOut() if left_out is None else left_out
    device = device or torch.device("cpu")
    with torch.inference_mode(), plain_errors():
        for found in progress(loader, "classify", total=len(batches), quiet=quiet):
            left_out.add(found.unreadable)
            unreadable += len(found.unreadable)
            if len(found):
                dense = bool(eval_crops.scales)
                some_scores, some_logs = score_with_logs(
                    member.network, member.preprocessing, found, device, dense=dense, limit=batch
                )
                scores.append(some_scores)
                logs.append(some_logs)
                labels.append(found.labels)
    one_crop = eval_crops.crops == 1 and len(eval_crops.scales) <= 1 and not eval_crops.flip
    return Scores(
        scores=torch.cat(scores).numpy() if scores else np.zeros((0, len(member.class_names))),
        labels=torch.cat(labels).numpy() if labels else np.zeros(0, np.int64),
        left_out=unreadable,
        logs=torch.cat(logs).numpy() if logs and one_crop else None,
    )


def average_scores(members: Sequence[Scores]) -> Scores:
    """Mean scores of an ensemble. Its members' scores are of the same images and classes in the same order."""
    first = members[0]
    assert all(np.array_equal(member.labels, first.labels) for member in members)
    total = np.mean([member.scores for member in members], axis=0)
    return Scores(total, first.labels, first.left_out)


def evaluate_classifier(
    network: nn.Module,
    preprocessing: Preprocessing,
    images: ClassificationDataset,
    eval_crops: EvalCrops = EvalCrops(),  # noqa: B008  frozen
    *,
    batch: int = 64,
    workers: int = 0,
    device: torch.device | None = None,
    left_out: LeftOut | None = None,
    quiet: bool = False,
) -> ClassificationFigures:
    """Figures of a network, in evaluation mode and on `device`.

    Args:
        network: (V, 3, h, w) -> logits (V, K).
        preprocessing: How pixels become its input.
        images: Images and sizes of crops; it says whether images that cannot be read are skipped.
        eval_crops: Which crops the network scores.
        batch: Number of crops that go through at once.
        workers: Processes that decode.
        device: Where the network is; None: the CPU.
        left_out: Gets images that cannot be read (see `classify_images`).
        quiet: No progress on standard error.
    """
    labels = images.images
    member = ClassifierMember(network, preprocessing, images.crop, labels.class_names)
    skip = images.skip_unreadable
    return classify_images(
        member,
        labels,
        eval_crops,
        batch=batch,
        workers=workers,
        device=device,
        skip_unreadable=skip,
        left_out=left_out,
        quiet=quiet,
    ).figures()


def network_input(
    crops: ClassificationBatch, preprocessing: Preprocessing, device: torch.device | None
) -> Tensor:
    """The network's input, (N, 3, s, s) float32 on the device (the CPU where None)."""
    device = device or torch.device("cpu")
    shifts = None if crops.shifts is None else crops.shifts.to(device, non_blocking=True)
    return normalize(crops.images.to(device, non_blocking=True), preprocessing, shifts=shifts)
