"""A trained detector for use: pictures in, boxes, scores and names out (He et al. 2015, Appendix A).

N objects found in a picture, K classes. Boxes are xyxy in pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import pydantic
import torch
from torch import Tensor

from detres.api.images import ImageLike, as_image
from detres.data.drawing import draw_detections, write_image
from detres.data.records import Annotations, DetectionTable
from detres.detection import detect as inference
from detres.detection.config import Architecture
from detres.detection.detect import TestConfig
from detres.detection.ensemble import class_order
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.features import Member, sized_images
from detres.errors import UserError, WeightsError, nearest
from detres.weights.checkpoint import Metadata


@dataclass(frozen=True)
class DetectionResult:
    """The objects found in one picture, best first.

    Attributes:
        boxes: (N, 4) float32 xyxy in pixels of the picture.
        scores: (N,) float32 in 0..1.
        labels: (N,) int64, places in `class_names`.
        class_names: The detector's classes.
        category_ids: Their ids in the training data, None where it had none.
        image: (H, W, 3) uint8 RGB, the picture.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] | None
    image: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def draw(self, path: str | Path | None = None) -> np.ndarray:
        """The picture with boxes, names and scores, (H, W, 3) uint8 RGB; written to `path` where given."""
        drawn = draw_detections(
            self.image, self.boxes.numpy(), self.labels.numpy(), self.scores.numpy(), self.class_names
        )
        if path is not None:
            write_image(path, drawn)
        return drawn

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """COCO's results form: image_id, category_id (the training data's own, else 1..K), bbox (xywh), score."""
        ids = self.category_ids or tuple(range(1, len(self.class_names) + 1))
        return [
            {
                "image_id": image_id,
                "category_id": ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (x1, y1, x2, y2), score, label in zip(
                self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True
            )
        ]


@dataclass(frozen=True)
class TrainedNetwork:
    """A network and what its weights file says about it.

    Attributes:
        network: In test mode, on its device.
        architecture: Its options.
        metadata: The weights file's.
        source: The file, for messages.
    """

    network: FasterRCNN
    architecture: Architecture
    metadata: Metadata
    source: str


class Detector:
    """A trained Faster R-CNN, or an ensemble of several, with all that their weights files say about their use.

    Args:
        networks: One, or the members of an ensemble (He et al. 2015, Appendix B). They may differ in depth,
            preprocessing and picture size. Order of classes, category ids and test options are the first one's.

    Attributes:
        class_names: K names; a label is a place in them.
        category_ids: Their ids in the training data, None where it had none.
        test: The test options that hold where a call says nothing else.
        short_side: Pictures are resized to this shorter side, in pixels (an ensemble: by the first network),
        long_side: unless the longer side would exceed this.

    Raises:
        WeightsError: The metadata lack sizes or have test options that do not exist; class names that differ.
    """

    def __init__(self, networks: Sequence[TrainedNetwork]):
        first = networks[0]
        self.networks = tuple(networks)
        self.class_names = first.metadata.class_names
        self.category_ids = first.metadata.category_ids
        self._low_precision: list[FasterRCNN] = []
        self._class_orders = [
            class_order(self.class_names, each.metadata.class_names, first.source, each.source)
            for each in networks
        ]
        try:
            self.test = merged_test_options(TestConfig(), first.metadata.test)
            self._sides = [
                (int(each.metadata.sizes["short_side"]), int(each.metadata.sizes["long_side"]))
                for each in networks
            ]
        except (KeyError, UserError) as error:
            raise WeightsError(f"the weights' metadata are damaged or newer: {error}") from error
        self.short_side, self.long_side = self._sides[0]

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.networks[0].network.cell_anchors.device

    @overload
    def __call__(self, images: ImageLike, **options: Any) -> DetectionResult: ...
    @overload
    def __call__(self, images: Sequence[ImageLike], **options: Any) -> list[DetectionResult]: ...
    def __call__(
        self, images: ImageLike | Sequence[ImageLike], **options: Any
    ) -> DetectionResult | list[DetectionResult]:
        """Find objects (He et al. 2015, Appendix A and B; Ren et al. 2015, §3.3).

        Each picture goes through the network by itself, so that a list gives what its pictures give one by one.

        Args:
            images: A path, a PIL image or a (H, W, 3) uint8 RGB array; a list of them gives a list. A file is turned
                upright as its EXIF orientation says; a PIL image or array is taken as it is.
            **options: Test options by name, for this call: `score_thresh`, `detections_per_img`, `nms_thresh`,
                `proposals`, `refine`, `box_voting`, `flip`, `scales`... (the keys of `TestConfig`).

        Raises:
            UserError: A picture that cannot be read, an array of another form, an unknown option.
        """
        test = self.test_options(options)
        if isinstance(images, (list, tuple)):
            return [self._find(as_image(image), test) for image in images]
        return self._find(as_image(images), test)

    def test_options(self, options: Mapping[str, Any]) -> TestConfig:
        """The detector's test options, changed by `options`.

        Raises:
            UserError: An option that does not exist, or a value out of range.
        """
        return merged_test_options(self.test, options)

    def members(self, test: TestConfig) -> list[Member]:
        """The networks as a test with these options uses them."""
        return [
            Member(
                each.network,
                *sides,
                each.architecture.proposal_options(test),
                each.architecture.target_stds,
                None if order == tuple(range(len(order))) else order,
            )
            for each, sides, order in zip(self.networks, self._sides, self._class_orders, strict=True)
        ]

    def _members_in(self, test: TestConfig) -> list[Member]:
        """The same, in the precision of the test, cast once for all pictures."""
        members = self.members(test)
        if test.precision == "float32":
            return members
        if not self._low_precision or self._low_precision[0].cell_anchors.device != self.device:
            self._low_precision = [
                inference.fuse_for_inference(each.network, test.precision) for each in self.networks
            ]
        return [
            replace(member, network=network)
            for member, network in zip(members, self._low_precision, strict=True)
        ]

    def _find(self, image: np.ndarray, test: TestConfig) -> DetectionResult:
        sized = sized_images(image, self._sides, test.scales)
        (found,) = inference.detect_images(
            self._members_in(test), [[sized.to(self.device) for sized in sized]], test
        )
        boxes, scores, labels = found.boxes.cpu(), found.scores.cpu(), found.labels.cpu()
        return DetectionResult(boxes, scores, labels, self.class_names, self.category_ids, image)


def detect_split(
    detector: Detector,
    annotations: Annotations,
    *,
    options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> tuple[DetectionTable, float]:
    """Detections of a whole split, and seconds an image.

    Args:
        detector: From `load`.
        annotations: The split; only its pictures are used.
        options: Test options by name.
        quiet: Show no progress.
    """
    test = detector.test_options(options or {})
    return inference.detect_split(detector.members(test), annotations, test=test, quiet=quiet)


def merged_test_options(test: TestConfig, options: Mapping[str, Any]) -> TestConfig:
    """`test` with some options changed; NumPy's numbers count as Python's.

    Raises:
        UserError: An option that does not exist (with the nearest that does), or a value out of range.
    """
    unknown = [name for name in options if name not in TestConfig.model_fields]
    if unknown:
        names = ", ".join(TestConfig.model_fields)
        raise UserError(
            f"unknown test option '{unknown[0]}'{nearest(unknown[0], TestConfig.model_fields)}; they are {names}"
        )
    plain = {name: _plain(value) for name, value in options.items()}
    try:
        return TestConfig.model_validate({**test.model_dump(), **plain})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        fault = first["msg"].removeprefix("Value error, ")
        raise UserError(f"test option {name}={plain[name]!r}: {fault}") from error


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, and lists of such numbers, as Python's."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
