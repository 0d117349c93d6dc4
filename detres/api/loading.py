"""From a weights file to a network for use, and its figures on a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from detres.api.classifier import Classifier
from detres.api.detector import Detector, build_detector_member
from detres.classification.evaluate import build_classifier_member
from detres.data.config import Source
from detres.data.formats import select_classes
from detres.data.sources import log_reports, read_sources
from detres.devices import select_device
from detres.errors import UserError, WeightsError
from detres.evaluation.coco import evaluate_coco
from detres.evaluation.voc import evaluate_voc
from detres.tasks.ensemble import read_ensemble


def load(
    weights: str | Path | Sequence[str | Path], device: str | int | torch.device | None = "auto"
) -> Detector | Classifier:
    """Rebuild a trained network from its weights file; nothing else is needed.

    Args:
        weights: A `.safetensors` that a detres tool wrote; several with the same class names are an ensemble (He et al.
            2015, §4.1 for classifiers, Appendix B for detectors).
        device: `auto` or None (a GPU where there is one), `cpu`, `cuda` or `cuda:N`, a `torch.device` of these, or the
            number of a GPU.

    Returns:
        A `Detector` or a `Classifier`, as the file's task says.

    Raises:
        UserError: A file is missing, damaged or not one of ours; files that make no ensemble; the device is not there.
    """
    place = select_device(device)
    paths = (
        [weights] if isinstance(weights, (str, Path)) or not isinstance(weights, Iterable) else list(weights)
    )
    odd = [path for path in paths if not isinstance(path, (str, Path))]
    if odd:
        raise UserError(f"weights must be a path, or a list of paths, not {type(odd[0]).__name__}")
    files = read_ensemble(paths)
    first = files[0]
    if first.metadata.task == "localization":
        raise WeightsError(
            f"{first.path}: weights for localization, which this version of detres does not use"
        )
    if first.metadata.task == "classification":
        return Classifier([build_classifier_member(file, place) for file in files])
    return Detector([build_detector_member(file, first, place) for file in files], first.metadata)


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

    What the reader drops or mends is logged as a warning of the logger `detres`.

    Args:
        detector: From `load`.
        data: A data set's folder (or `shapes`).
        split: Its split; may stay out where there is only one.
        format: `coco`, `voc`, `yolo` or `imagenet_det`, where the folder holds two.
        quiet: Show no progress.
        **options: Test options, as for a call of the detector.

    Returns:
        `AP` ... `ARl` (Lin et al. 2014) and `mAP`, `mAP_11point`, `mAP_area` (Everingham et al. 2010); fractions.

    Raises:
        UserError: Wrong data, classes that differ from the detector's, an unknown option.
    """
    if not isinstance(detector, Detector):
        raise UserError(f"evaluate needs a detector, this is a {type(detector).__name__}")
    annotations, reports = read_sources([Source(dir=str(data), split=split, format=format)])
    log_reports(reports)
    annotations = select_classes(annotations, detector.class_names)
    table, _ = detector.detect_split(annotations, options=options, quiet=quiet)
    return {**evaluate_coco(annotations, table).figures, **evaluate_voc(annotations, table).figures}
