"""A trained detector for use: images in, boxes, scores and names out (He et al. 2015, Appendix A).

N detections in an image, K classes. Boxes are xyxy in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pydantic
import torch
from torch import Tensor

from detres.api.images import ImageLike, as_image
from detres.data.drawing import draw_detections, write_image
from detres.data.records import Annotations, DetectionTable
from detres.detection import detect
from detres.detection.build import detector_from_tensors
from detres.detection.config import DetectionTestConfig
from detres.detection.features import DetectorMember, resize_for_members
from detres.errors import UserError, WeightsError, nearest
from detres.tasks.ensemble import WeightsFile, class_order
from detres.weights.checkpoint import Metadata


@dataclass(frozen=True)
class DetectionResult:
    """The objects found in one picture, best first; the tensors are on the CPU and may be changed.

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
        boxes, labels, scores = (
            tensor.detach().cpu().numpy() for tensor in (self.boxes, self.labels, self.scores)
        )
        drawn = draw_detections(self.image, boxes, labels, scores, self.class_names)
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


class Detector:
    """A trained Faster R-CNN, or an ensemble of several, with all that their weights files say about their use.

    Args:
        members: One network, or the members of an ensemble (He et al. 2015, Appendix B). They may differ in depth,
            preprocessing and image size.
        metadata: Of the first member's weights file: order of classes, category ids, test options.

    Attributes:
        class_names: K names; a label is a position in them.
        category_ids: Their ids in the training data, None where it had none.
        test: The test options that hold where a call says nothing else.
        short_side: Images are resized to this shorter side, in pixels (an ensemble: by the first network),
        long_side: unless the longer side would exceed this.

    Raises:
        WeightsError: The metadata have test options that do not exist.
    """

    def __init__(self, members: Sequence[DetectorMember], metadata: Metadata):
        self.members = tuple(members)
        self.class_names = metadata.class_names
        self.category_ids = metadata.category_ids
        self._low_precision: list[DetectorMember] = []
        try:
            self.test = merge_test_options(DetectionTestConfig(), metadata.test)
        except UserError as error:
            raise WeightsError(f"the weights' metadata are damaged or newer: {error}") from error
        self.short_side, self.long_side = self.members[0].short_side, self.members[0].long_side

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.members[0].network.cell_anchors.device

    @overload
    def __call__(self, images: ImageLike, **options: Any) -> DetectionResult: ...
    @overload
    def __call__(self, images: Sequence[ImageLike], **options: Any) -> list[DetectionResult]: ...
    def __call__(
        self, images: ImageLike | Sequence[ImageLike], **options: Any
    ) -> DetectionResult | list[DetectionResult]:
        """Detect objects (He et al. 2015, Appendix A and B; Ren et al. 2015, §3.3).

        Each image goes through the network by itself, so that a list gives what its images give one by one.

        Args:
            images: A path, a PIL image or a (H, W, 3) uint8 RGB array; a list of them gives a list. A file is turned
                upright as its EXIF orientation says; a PIL image or array is taken as it is.
            **options: Test options by name, for this call: `score_thresh`, `detections_per_img`, `nms_thresh`,
                `proposals`, `refine`, `box_voting`, `flip`, `scales`... (the keys of `test`).

        Raises:
            UserError: An image that cannot be read, an array of another form, an unknown option.
        """
        test = self.test_options(options)
        if isinstance(images, (list, tuple)):
            return [self._detect(as_image(image), test) for image in images]
        return self._detect(as_image(images), test)

    def detect_split(
        self, annotations: Annotations, *, options: Mapping[str, Any] | None = None, quiet: bool = False
    ) -> tuple[DetectionTable, float]:
        """Detections of a whole split, and seconds per image.

        Args:
            annotations: The split; only its images are used.
            options: Test options by name.
            quiet: Show no progress.
        """
        return detect.detect_split(
            self.members, annotations, test=self.test_options(options or {}), quiet=quiet
        )

    def test_options(self, options: Mapping[str, Any]) -> DetectionTestConfig:
        """The detector's test options, changed by `options`.

        Raises:
            UserError: An option that does not exist, or a value out of range.
        """
        return merge_test_options(self.test, options)

    def _members_in(self, precision: Literal["float32", "bfloat16"]) -> Sequence[DetectorMember]:
        """The members in the precision of a test, cast once for all images."""
        if precision == "float32":
            return self.members
        if not self._low_precision or self._low_precision[0].network.cell_anchors.device != self.device:
            self._low_precision = [
                replace(member, network=detect.fuse_for_inference(member.network, precision))
                for member in self.members
            ]
        return self._low_precision

    def _detect(self, image: np.ndarray, test: DetectionTestConfig) -> DetectionResult:
        resized = resize_for_members(image, self.members, test.scales)
        detections = detect.detect_image(
            self._members_in(test.precision), [each.to(self.device) for each in resized], test
        )
        # Cloned, because tensors of inference mode can be neither changed nor used beside parameters.
        boxes, scores, labels = (
            tensor.cpu().clone() for tensor in (detections.boxes, detections.scores, detections.labels)
        )
        return DetectionResult(boxes, scores, labels, self.class_names, self.category_ids, image)


def build_detector_member(file: WeightsFile, first: WeightsFile, device: torch.device) -> DetectorMember:
    """The detector of a weights file as a member of an ensemble, in test mode on `device`.

    Args:
        file: A detector's file.
        first: The file of the ensemble's first member, whose order of classes holds.
        device: Where to compute.

    Raises:
        WeightsError: Tensors that do not fit the file's own architecture, or metadata without sizes.
    """
    metadata = file.metadata
    network, architecture = detector_from_tensors(file.tensors, metadata, file.path)
    order = class_order(metadata.class_names, first.metadata.class_names, file.path, first.path)
    try:
        short_side, long_side = int(metadata.sizes["short_side"]), int(metadata.sizes["long_side"])
    except KeyError as error:
        raise WeightsError(f"{file.path}: the metadata lack {error}; the file is damaged or newer") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise WeightsError(
            f"{file.path}: metadata key sizes: {error}; the file is damaged or edited"
        ) from error
    return DetectorMember(
        detect.fuse_for_inference(network.to(device)),
        architecture,
        short_side,
        long_side,
        None if order == tuple(range(len(order))) else order,
    )


def merge_test_options(test: DetectionTestConfig, options: Mapping[str, Any]) -> DetectionTestConfig:
    """`test` with some options changed; NumPy's numbers count as Python's.

    Raises:
        UserError: An option that does not exist (with the nearest that does), or a value out of range.
    """
    unknown = [name for name in options if name not in DetectionTestConfig.model_fields]
    if unknown:
        names = list(DetectionTestConfig.model_fields)
        raise UserError(
            f"unknown test option '{unknown[0]}'{nearest(unknown[0], names)}; they are {', '.join(names)}"
        )
    plain = {name: _plain(value) for name, value in options.items()}
    try:
        return DetectionTestConfig.model_validate({**test.model_dump(), **plain})
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
