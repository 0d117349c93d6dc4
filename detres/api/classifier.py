"""A trained classifier for use: pictures in, class names and scores out (He et al. 2015, §3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn

from detres.api.pictures import Picture, as_image
from detres.classification.classifier import crop_of
from detres.data.batching import to_tensor
from detres.data.preprocessing import normalise
from detres.data.transforms import centre_crop
from detres.weights.ours import Metadata


@dataclass(frozen=True)
class Classified:
    """The classes of one picture, likeliest first.

    Attributes:
        names: K class names.
        scores: (K,) float32, softmax.
    """

    names: list[str]
    scores: Tensor


class Classifier:
    """A trained classification network: central crop, softmax (He et al. 2015, §3.4).

    Args:
        network: The network in test mode, on its device.
        metadata: The weights file's.
    """

    def __init__(self, network: nn.Module, metadata: Metadata):
        self.network = network
        self.metadata = metadata
        self.class_names = metadata.class_names
        self.crop = crop_of(metadata)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @overload
    def __call__(self, pictures: Picture) -> Classified: ...
    @overload
    def __call__(self, pictures: Sequence[Picture]) -> list[Classified]: ...
    def __call__(self, pictures: Picture | Sequence[Picture]) -> Classified | list[Classified]:
        """Classify a picture (path, PIL image or (H, W, 3) uint8 RGB array); a list of them gives a list.

        Raises:
            UserError: A picture that cannot be read, an array of another form.
        """
        if isinstance(pictures, (list, tuple)):
            return [self._classify(as_image(picture)) for picture in pictures]
        return self._classify(as_image(pictures))

    @torch.inference_mode()
    def _classify(self, image: np.ndarray) -> Classified:
        crop = to_tensor(centre_crop(image, self.crop)).to(self.device)
        scores = self.network(normalise(crop[None], self.metadata.preprocessing)).softmax(dim=1)[0].cpu()
        scores, order = scores.sort(descending=True, stable=True)
        return Classified([self.class_names[label] for label in order.tolist()], scores)
