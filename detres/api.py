"""Trained networks in Python: load a weights file, find objects in pictures, evaluate on a data set.

`detector = detres.load("model.safetensors"); detector("picture.jpg").draw("out.jpg")`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from detres.classification.classifier import crop_of, read_classifier
from detres.data.batching import to_tensor
from detres.data.config import Source
from detres.data.decoding import read_image
from detres.data.discover import select_classes
from detres.data.drawing import draw_detections, write_image
from detres.data.preprocessing import normalise
from detres.data.records import Annotations, DetectionTable
from detres.data.sources import read_sources
from detres.data.transforms import centre_crop, resize_image, resized_size
from detres.detection import inference
from detres.detection.build import from_tensors
from detres.detection.config import Architecture
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.inference import TestConfig
from detres.devices import select_device
from detres.errors import UserError, WeightsError, nearest
from detres.evaluation.coco import evaluate_coco
from detres.evaluation.voc import evaluate_voc
from detres.networks.norm import folded
from detres.weights.ours import Metadata, read_weights

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = str | Path | np.ndarray | Image


@dataclass(frozen=True)
class Found:
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


class Detector:
    """A trained Faster R-CNN with all that its weights file says about its use.

    Args:
        network: The network in test mode, on its device.
        architecture: Its options.
        metadata: The weights file's.

    Attributes:
        class_names: K names; a label is a place in them.
        category_ids: Their ids in the training data, None where it had none.
        test: The test options that hold where a call says nothing else.
        short_side: Pictures are resized to this shorter side, in pixels,
        long_side: unless the longer side would exceed this.

    Raises:
        WeightsError: The metadata lack sizes or have test options that do not exist.
    """

    def __init__(self, network: FasterRCNN, architecture: Architecture, metadata: Metadata):
        self.network = network
        self.architecture = architecture
        self.metadata = metadata
        self.class_names = metadata.class_names
        self.category_ids = metadata.category_ids
        try:
            self.test = merged_test_options(TestConfig(), metadata.test)
            self.short_side, self.long_side = (
                int(metadata.sizes["short_side"]),
                int(metadata.sizes["long_side"]),
            )
        except (KeyError, UserError) as error:
            raise WeightsError(f"the weights' metadata are damaged or newer: {error}") from error

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.cell_anchors.device

    @overload
    def __call__(self, pictures: Picture, **options: Any) -> Found: ...
    @overload
    def __call__(self, pictures: Sequence[Picture], **options: Any) -> list[Found]: ...
    def __call__(self, pictures: Picture | Sequence[Picture], **options: Any) -> Found | list[Found]:
        """Find objects (He et al. 2015, Appendix A; Ren et al. 2015, §3.3).

        Each picture goes through the network by itself, so that a list gives what its pictures give one by one.

        Args:
            pictures: A path, a PIL image or a (H, W, 3) uint8 RGB array; a list of them gives a list. A file is turned
                upright as its EXIF orientation says; a PIL image or array is taken as it is.
            **options: Test options by name, for this call: `min_score`, `max_detections`, `nms`, `proposals`...
                (the keys of `TestConfig`).

        Raises:
            UserError: A picture that cannot be read, an array of another form, an unknown option.
        """
        test = self.test_options(options)
        if isinstance(pictures, (list, tuple)):
            return [self._find(as_image(picture), test) for picture in pictures]
        return self._find(as_image(pictures), test)

    def test_options(self, options: Mapping[str, Any]) -> TestConfig:
        """The detector's test options, changed by `options`.

        Raises:
            UserError: An option that does not exist, or a value out of range.
        """
        return merged_test_options(self.test, options)

    def _find(self, image: np.ndarray, test: TestConfig) -> Found:
        stored_height, stored_width = image.shape[0], image.shape[1]
        height, width, _ = resized_size(stored_height, stored_width, self.short_side, self.long_side)
        resized = to_tensor(resize_image(image, height, width)).to(self.device)
        (found,) = inference.detect(
            self.network,
            [resized],
            [(height / stored_height, width / stored_width)],
            self.architecture.proposal_options(test),
            self.architecture.box_divisors,
            test,
        )
        boxes, scores, labels = found.boxes.cpu(), found.scores.cpu(), found.labels.cpu()
        return Found(boxes, scores, labels, self.class_names, self.category_ids, image)


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


def load(weights: str | Path | Sequence[str | Path], device: str = "auto") -> Detector | Classifier:
    """Rebuild a trained network from its weights file; nothing else is needed.

    Args:
        weights: A `.safetensors` that a detres tool wrote (or a list with that one).
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        A `Detector` or a `Classifier`, as the file's task says.

    Raises:
        UserError: The file is missing, damaged or not one of ours; the device is not there.
    """
    paths = [weights] if isinstance(weights, (str, Path)) else list(weights)
    if len(paths) != 1:
        raise UserError(f"{len(paths)} weights files: one is needed (ensembles are not supported yet)")
    place = select_device(device)
    tensors, metadata = read_weights(paths[0])
    if metadata.task == "classification":
        network, _, metadata = read_classifier(paths[0])
        return Classifier(network.to(place), metadata)
    if metadata.task != "detection":
        raise WeightsError(
            f"{paths[0]}: weights for {metadata.task}, which this version of detres does not use"
        )
    network, architecture = from_tensors(tensors, metadata, str(paths[0]))
    network.trunk = folded(network.trunk)
    network.region_head.body = folded(network.region_head.body)
    return Detector(network.to(place), architecture, metadata)


def evaluate(
    detector: Detector,
    data: str | Path,
    split: str | None = None,
    *,
    format: str | None = None,
    quiet: bool = True,
    **options: Any,
) -> dict[str, float | None]:
    """COCO's twelve figures and VOC's mAP of a detector on a data set; None where a figure does not exist.

    Args:
        detector: From `load`.
        data: A data set's folder (or `shapes`).
        split: Its split; may stay out where there is only one.
        format: `coco`, `voc` or `yolo`, where the folder holds two.
        quiet: Show no progress.
        **options: Test options, as for a call of the detector.

    Returns:
        `AP` ... `ARl` (Lin et al. 2014) and `mAP`, `mAP_11point`, `mAP_area` (Everingham et al. 2010); fractions.

    Raises:
        UserError: Wrong data, classes that differ from the detector's, an unknown option.
    """
    if not isinstance(detector, Detector):
        raise UserError(f"evaluate needs a detector, this is a {type(detector).__name__}")
    annotations, _ = read_sources([Source(dir=str(data), split=split, format=format)])
    annotations = select_classes(annotations, detector.class_names)
    table, _ = detect_split(detector, annotations, options=options, quiet=quiet)
    return {**evaluate_coco(annotations, table).figures, **evaluate_voc(annotations, table).figures}


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
    test = merged_test_options(detector.test, options or {})
    return inference.detect_split(
        detector.network,
        annotations,
        short_side=detector.short_side,
        long_side=detector.long_side,
        proposal_options=detector.architecture.proposal_options(test),
        box_divisors=detector.architecture.box_divisors,
        test=test,
        quiet=quiet,
    )


def merged_test_options(test: TestConfig, options: Mapping[str, Any]) -> TestConfig:
    """`test` with some options changed.

    Raises:
        UserError: An option that does not exist (with the nearest that does), or a value out of range.
    """
    import pydantic

    unknown = [name for name in options if name not in TestConfig.model_fields]
    if unknown:
        names = ", ".join(TestConfig.model_fields)
        raise UserError(
            f"unknown test option '{unknown[0]}'{nearest(unknown[0], TestConfig.model_fields)}; they are {names}"
        )
    try:
        return TestConfig.model_validate({**test.model_dump(), **options})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"test option {first['loc'][0]}={first['input']!r}: {first['msg']}") from error


def as_image(picture: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a path, a PIL image or such an array.

    Grey and palette images become RGB; an alpha channel is dropped, the colours beneath are kept, as in `read_image`.

    Raises:
        UserError: None of these, a file that cannot be read, or pixels of another shape or type.
    """
    from PIL import Image

    if isinstance(picture, (str, Path)):
        return read_image(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise UserError(
                f"a picture as an array must be (H, W, 3) uint8 RGB, this is {picture.shape} {picture.dtype}"
            )
        return picture
    if isinstance(picture, Image.Image):
        if picture.mode[0] in "IF":
            raise UserError(
                f"a PIL image of mode {picture.mode} has no fixed range: convert it to 8 bits (L or RGB)"
            )
        if 0 in picture.size:
            raise UserError(
                f"a PIL image of {picture.size[0]} x {picture.size[1]} pixels has nothing to look at"
            )
        try:
            return np.asarray(picture.convert("RGB"))
        except OSError as error:  # opened lazily: its file turns out to be damaged only now
            raise UserError(f"a PIL image cannot be read: {error}; its file is damaged") from error
    raise UserError(
        f"a picture must be a path, a PIL image or an (H, W, 3) uint8 array, not {type(picture).__name__}"
    )
