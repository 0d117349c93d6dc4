"""Testing classifiers, one or an ensemble, on views of each picture.

He et al. 2015, §3.4 and §4.1 (top-1 and top-5; ensembles average the scores). N pictures, K classes, s a crop's side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detres.classification.classifier import crop_of, from_tensors
from detres.classification.crops import ViewDataset, Views, collate_views, view_scores
from detres.classification.data import LeftOut
from detres.console import progress
from detres.data.batching import make_loader
from detres.data.classification_samples import ClassificationBatch, ClassificationDataset
from detres.data.config import CropConfig
from detres.data.preprocessing import Preprocessing, normalize
from detres.data.records import ImageLabels
from detres.errors import WeightsError, listed
from detres.evaluation.classification import cross_entropy, top_k_error
from detres.training.feed import plain_errors
from detres.weights.checkpoint import Metadata, read_weights

DENSE_BATCH = 8  # whole pictures of several sizes that one loader's batch holds


@dataclass(frozen=True)
class ClassificationFigures:
    """What a test gives; None where a figure does not exist.

    Attributes:
        top1_error: Share of pictures whose best class is wrong, 0..1.
        top5_error: Share of pictures whose class is not among the best five; None for five classes or fewer.
        loss: Mean of -log score of the right class (softmax cross entropy).
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


@dataclass(frozen=True)
class Scores:
    """Class scores of the pictures that could be read.

    Attributes:
        scores: (N, K) float64, softmax, averaged over views and members.
        labels: (N,) int64.
        left_out: Pictures that could not be read.
    """

    scores: np.ndarray
    labels: np.ndarray
    left_out: int

    def in_order(self, order: Sequence[int]) -> Scores:
        """The same with other labels: class i becomes what was class `order[i]`."""
        place = np.argsort(np.asarray(order, dtype=np.int64))
        return Scores(self.scores[:, order], place[self.labels], self.left_out)

    def figures(self) -> ClassificationFigures:
        """Top-1 and top-5 errors and the mean loss."""
        with np.errstate(divide="ignore"):
            loss = cross_entropy(np.log(self.scores), self.labels)
        return ClassificationFigures(
            top1_error=top_k_error(self.scores, self.labels, 1),
            top5_error=top_k_error(self.scores, self.labels, 5),
            loss=loss,
            images=len(self.labels),
            left_out=self.left_out,
        )


@dataclass(frozen=True)
class Member:
    """A classifier to be tested.

    Attributes:
        network: In evaluation mode.
        preprocessing: What it expects.
        crop: Sizes of its crops.
        class_names: Its K classes.
        source: Its file.
    """

    network: nn.Module
    preprocessing: Preprocessing
    crop: CropConfig
    class_names: tuple[str, ...]
    source: str = ""

    def order_for(self, class_names: tuple[str, ...]) -> list[int]:
        """Places of `class_names` among its own.

        Raises:
            WeightsError: Other classes; both sides are named.
        """
        unknown = [name for name in self.class_names if name not in class_names]
        lacking = [name for name in class_names if name not in self.class_names]
        if unknown or lacking:
            raise WeightsError(
                f"{self.source}: other classes than the first weights: unknown {listed(unknown) or 'none'}, "
                f"missing {listed(lacking) or 'none'}"
            )
        return [self.class_names.index(name) for name in class_names]


def read_members(paths: Sequence[str | Path], device: torch.device) -> list[Member]:
    """Classifiers of an ensemble, on `device`, from their weights files.

    Raises:
        WeightsError: A file is not a classifier's, or has other classes than the first.
    """
    members: list[Member] = []
    for path in paths:
        member = member_of(*read_weights(path), path, device)
        member.order_for(members[0].class_names if members else member.class_names)
        members.append(member)
    return members


def member_of(
    tensors: Mapping[str, Tensor], metadata: Metadata, path: str | Path, device: torch.device
) -> Member:
    """The classifier of a weights file that has been read, on `device`.

    Raises:
        WeightsError: Not a classifier's, or tensors that do not fit its own architecture.
    """
    if metadata.task != "classification":
        raise WeightsError(
            f"{path}: weights for {metadata.task}, not for classification; choose a classifier's file"
        )
    network, _ = from_tensors(tensors, metadata, str(path))
    crop = crop_of(metadata)
    return Member(network.to(device), metadata.preprocessing, crop, metadata.class_names, str(path))


def classify_images(
    member: Member,
    images: ImageLabels,
    views: Views = Views(),  # noqa: B008  frozen
    *,
    batch: int = 64,
    workers: int = 0,
    device: torch.device | None = None,
    skip_unreadable: bool = False,
    left_out: LeftOut | None = None,
    quiet: bool = False,
) -> Scores:
    """Scores of a classifier, its own classes in its own order.

    Args:
        member: The classifier.
        images: Their labels are places in its classes.
        views: What it looks at.
        batch: Views that go through at once.
        workers: Processes that decode.
        device: Where the network is; None: the CPU.
        skip_unreadable: Leave out, name and count pictures that cannot be read.
        left_out: Gets them; those that it has already are counted, but not named again.
        quiet: No progress on standard error.

    Raises:
        UserError: A picture cannot be read; a scale does not suit the network.
    """
    dataset = ViewDataset(images, member.crop, views, skip_unreadable=skip_unreadable)
    together = DENSE_BATCH if views.scales else max(1, batch // views.crops)
    keys = range(len(dataset))
    batches = [list(keys[start : start + together]) for start in range(0, len(keys), together)]
    loader = make_loader(dataset, batches, collate_views, workers=workers)
    scores, labels, unreadable = [], [], 0
    left_out = LeftOut() if left_out is None else left_out
    device = device or torch.device("cpu")
    with torch.inference_mode(), plain_errors():
        for found in progress(loader, "classify", total=len(batches), quiet=quiet):
            left_out.add(found.unreadable)
            unreadable += len(found.unreadable)
            if len(found):
                dense = bool(views.scales)
                scores.append(
                    view_scores(member.network, member.preprocessing, found, device, dense=dense, limit=batch)
                )
                labels.append(found.labels)
    return Scores(
        scores=torch.cat(scores).numpy() if scores else np.zeros((0, len(member.class_names))),
        labels=torch.cat(labels).numpy() if labels else np.zeros(0, np.int64),
        left_out=unreadable,
    )


def average_scores(members: Sequence[Scores]) -> Scores:
    """An ensemble's scores: the mean of its members', of the same pictures and classes in the same order."""
    first = members[0]
    assert all(np.array_equal(member.labels, first.labels) for member in members)
    total = np.mean([member.scores for member in members], axis=0)
    return Scores(total, first.labels, first.left_out)


def evaluate_classifier(
    network: nn.Module,
    preprocessing: Preprocessing,
    images: ClassificationDataset,
    views: Views = Views(),  # noqa: B008  frozen
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
        preprocessing: What it expects.
        images: Pictures and crops; those that cannot be read are left out where it skips them.
        views: What the network looks at.
        batch: Views that go through at once.
        workers: Processes that decode.
        device: Where the network is; None: the CPU.
        left_out: Gets pictures that cannot be read (see `classify_images`).
        quiet: No progress on standard error.
    """
    labels = images.images
    member = Member(network, preprocessing, images.crop, labels.class_names)
    skip = images.skip_unreadable
    return classify_images(
        member,
        labels,
        views,
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
    """(N, 3, s, s) float32 on the device."""
    device = device or torch.device("cpu")
    shifts = None if crops.shifts is None else crops.shifts.to(device, non_blocking=True)
    return normalize(crops.images.to(device, non_blocking=True), preprocessing, shifts=shifts)
