"""A trained classifier for use: it takes images and returns class names with scores (He et al. 2015, §3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pydantic
import torch
from torch import Tensor

from detres.api.images import ImageLike, as_image
from detres.classification.config import ClassificationTestConfig
from detres.classification.crops import EvalCrops, EvalCropSample, collate_eval_crops, score_eval_crops
from detres.classification.evaluate import ClassifierMember
from detres.errors import UserError, nearest
from detres.tasks.ensemble import class_order

OPTIONS = ("crops", "scales", "flip")


@dataclass(frozen=True)
class ClassificationResult:
    """The classes of one image, likeliest first.

    Attributes:
        names: K class names.
        scores: (K,) float32 on the CPU, softmax; may be changed.
    """

    names: list[str]
    scores: Tensor


class Classifier:
    """Trained classification networks, one or an ensemble, whose scores are averaged (He et al. 2015, §3.4).

    Args:
        members: The networks in test mode, on their device; all with the same class names.

    Attributes:
        class_names: K names, in the order of the first member.

    Raises:
        WeightsError: Class names differ; both sides are named.
    """

    def __init__(self, members: Sequence[ClassifierMember]):
        self.members = list(members)
        self.class_names = self.members[0].class_names
        self._orders = [
            class_order(member.class_names, self.class_names, member.source, self.members[0].source)
            for member in self.members
        ]

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.members[0].network.parameters()).device

    @overload
    def __call__(self, images: ImageLike, **options: Any) -> ClassificationResult: ...
    @overload
    def __call__(self, images: Sequence[ImageLike], **options: Any) -> list[ClassificationResult]: ...
    def __call__(
        self, images: ImageLike | Sequence[ImageLike], **options: Any
    ) -> ClassificationResult | list[ClassificationResult]:
        """Classify an image (path, PIL image or (H, W, 3) uint8 RGB array); a list of them gives a list.

        Args:
            images: One or several.
            **options: `crops=10`, or `scales=(224, 256, ...)` for whole images; `flip=True` for their mirrors too.

        Raises:
            UserError: An image that cannot be read, an array of another form, an unknown option.
        """
        eval_crops = _eval_crops(options)
        if isinstance(images, (list, tuple)):
            return [self._classify(as_image(image), eval_crops) for image in images]
        return self._classify(as_image(images), eval_crops)

    def _classify(self, image: np.ndarray, eval_crops: EvalCrops) -> ClassificationResult:
        # Sorted outside of inference mode, whose tensors can be neither changed nor used beside parameters.
        scores, ranks = self._score(image, eval_crops).sort(descending=True, stable=True)
        return ClassificationResult([self.class_names[label] for label in ranks.tolist()], scores)

    @torch.inference_mode()
    def _score(self, image: np.ndarray, eval_crops: EvalCrops) -> Tensor:
        """(K,) float32: the members' average for each class."""
        total = torch.zeros(len(self.class_names), dtype=torch.float64)
        for member, order in zip(self.members, self._orders, strict=True):
            batch = collate_eval_crops([EvalCropSample(eval_crops.tensors(image, member.crop), 0)])
            dense = bool(eval_crops.scales)
            total += score_eval_crops(member.network, member.preprocessing, batch, self.device, dense=dense)[
                0, order
            ]
        return (total / len(self.members)).float()


def _eval_crops(options: dict[str, Any]) -> EvalCrops:
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise UserError(f"no test option '{unknown[0]}' of classifiers{nearest(unknown[0], OPTIONS)}")
    try:
        return ClassificationTestConfig.model_validate(options).eval_crops()
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "test options"
        raise UserError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
