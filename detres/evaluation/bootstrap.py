"""Intervals of COCO's AP by the bootstrap over images: how much a figure depends on the choice of test images.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13 (percentile intervals). pycocotools matches the
images once. A resample gives each image a weight (how often it was drawn), and only the curves are computed again.

N images, B resamples, D detections, T IoU thresholds, P true detections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from detres.data.records import Annotations, DetectionTable
from detres.evaluation.engines import match_with_pycocotools, number_images
from detres.evaluation.overlaps import check_detections

LEVEL = 95.0  # per cent of the resamples that lie within an interval
CELLS_AT_ONCE = 2_000_000  # resamples times detections in memory


@dataclass(frozen=True)
class ClassMatches:
    """pycocotools' matches of one class, with detections in order of falling score.

    Attributes:
        images: (D,) int64, the image of each detection.
        true: (T, D) bool, the detection matches an object that counts.
        ignored: (T, D) bool, the detection is ignored.
        objects: (N,) int64, objects of the class in each image, without ignored ones.
    """

    images: np.ndarray
    true: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray


def bootstrap_coco(
    truth: Annotations, detections: DetectionTable, *, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of AP, AP50 and AP75 over resampled images.

    AP is not linear in the images: if a class has few of them, resamples have a somewhat higher AP than the set itself.
    In `bootstrap_difference` this holds for both sides and mostly cancels.

    Args:
        truth: The objects.
        detections: Detections.
        resamples: Number of resamples.
        seed: Of the sample of images; the same seed gives the same intervals.

    Returns:
        Lower and upper end by name of figure; empty if there are no objects.

    Raises:
        DataError: See `evaluate_coco`.
    """
    weights = sample_image_weights(len(truth), resamples, seed)
    return percentile_intervals(resample_figures(match_classes(truth, detections), weights))


def bootstrap_difference(
    truth: Annotations, first: DetectionTable, second: DetectionTable, *, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of `first`'s AP, AP50 and AP75 minus `second`'s, on the same resampled images (paired).

    If the interval contains 0, the difference is not significant on this test set.

    Args:
        truth: The objects.
        first: Detections of one detector.
        second: Detections of another, on the same images.
        resamples: Number of resamples.
        seed: Of the sample of images.

    Returns:
        Lower and upper end by name of figure; empty if there are no objects.

    Raises:
        DataError: See `evaluate_coco`.
    """
    weights = sample_image_weights(len(truth), resamples, seed)
    minuend = resample_figures(match_classes(truth, first), weights)
    subtrahend = resample_figures(match_classes(truth, second), weights)
    return difference_intervals(minuend, subtrahend)


def difference_intervals(
    minuend: Mapping[str, np.ndarray], subtrahend: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, float]]:
    """95 % intervals of one detector's figures minus another's; each figure has (B,) values of the same resamples."""
    return percentile_intervals({name: values - subtrahend[name] for name, values in minuend.items()})


def sample_image_weights(images: int, resamples: int, seed: int) -> np.ndarray:
    """(B, N) int64, how often each image was drawn, of N drawn with replacement."""
    if not images:
        return np.zeros((resamples, 0), np.int64)
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)


def match_classes(truth: Annotations, detections: DetectionTable) -> list[ClassMatches]:
    """Pycocotools' matches of each class: objects of all sizes, 100 detections per class and image."""
    check_detections(truth, detections)
    evaluation = match_with_pycocotools(truth, detections, all_sizes_only=True)
    index_of = dict(zip(number_images(truth).tolist(), range(len(truth)), strict=True))
    count = len(truth)
    thresholds = len(evaluation.params.iouThrs)
    classes = []
    for label in range(len(truth.class_names)):
        entries = [entry for entry in evaluation.evalImgs[label * count : (label + 1) * count] if entry]
        objects = np.zeros(count, np.int64)
        scores, images = [np.zeros(0)], [np.zeros(0, np.int64)]
        true, ignored = [np.zeros((thresholds, 0), bool)], [np.zeros((thresholds, 0), bool)]
        for entry in entries:
            image = index_of[entry["image_id"]]
            objects[image] = np.count_nonzero(entry["gtIgnore"] == 0)
            scores.append(np.asarray(entry["dtScores"], np.float64))
            images.append(np.full(len(entry["dtScores"]), image))
            ignored.append(entry["dtIgnore"])
            true.append((entry["dtMatches"] > 0) & ~entry["dtIgnore"])
        order = np.argsort(-np.concatenate(scores), kind="stable")
        columns = np.concatenate(true, axis=1)[:, order], np.concatenate(ignored, axis=1)[:, order]
        classes.append(ClassMatches(np.concatenate(images)[order], *columns, objects))
    return classes


def resample_figures(classes: list[ClassMatches], weights: np.ndarray) -> dict[str, np.ndarray]:
    """AP, AP50 and AP75 of each resample, NaN if it has no objects.

    Args:
        classes: Matches of each class.
        weights: (B, N) int64, how often each image was drawn; all ones give pycocotools' own figures.

    Returns:
        (B,) float64 by name of figure.
    """
    totals = {name: np.zeros(len(weights)) for name in ("AP", "AP50", "AP75")}
    class_counts = np.zeros(len(weights))
    for matches in classes:
        rows = max(1, CELLS_AT_ONCE // max(1, len(matches.images)))
        parts = [_average_precisions(matches, weights[at : at + rows]) for at in range(0, len(weights), rows)]
        precisions = np.concatenate(parts) if parts else np.zeros((0, 10))  # (B, T)
        exists = weights @ matches.objects > 0
        class_counts += exists
        totals["AP"] += np.where(exists, precisions.mean(axis=1), 0)
        totals["AP50"] += np.where(exists, precisions[:, 0], 0)
        totals["AP75"] += np.where(exists, precisions[:, 5], 0)
    return {
        name: np.where(class_counts > 0, total / np.maximum(class_counts, 1), np.nan)
        for name, total in totals.items()
    }


def _average_precisions(matches: ClassMatches, weights: np.ndarray) -> np.ndarray:
    """(B, T) average precision of one class in each resample and at each IoU threshold.

    An image drawn w times adds each of its detections w times, one after the other. The best precision at a recall or
    above is reached right after a true detection, because false ones only lower it; only those columns are computed.
    """
    repeats = weights[:, matches.images]  # (B, D)
    seen = np.cumsum(repeats, axis=1)
    needed = _min_true_count(weights @ matches.objects)  # (B, 101)
    result = np.zeros((len(weights), len(matches.true)))
    for threshold, (true, ignored) in enumerate(zip(matches.true, matches.ignored, strict=True)):
        at = np.flatnonzero(true)
        if not len(at):
            continue
        true_count = np.cumsum(repeats[:, at], axis=1)  # (B, P)
        count = seen[:, at]
        if ignored.any():
            count = count - np.cumsum(repeats * ignored, axis=1)[:, at]
        precision = true_count / (count + np.spacing(1))
        envelope = np.zeros((len(weights), len(at) + 1))
        envelope[:, :-1] = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        first = _first_reaching(true_count, needed)  # (B, 101), P if the recall is not reached
        result[:, threshold] = np.take_along_axis(envelope, first, axis=1).mean(axis=1)
    return result


def _min_true_count(objects: np.ndarray) -> np.ndarray:
    """(B, 101) int64, the fewest true detections whose recall among (B,) objects reaches 0, .01 .. 1.

    The comparison is that of pycocotools, in floating point: true / objects >= recall.
    """
    recalls = np.linspace(0.0, 1.0, 101)
    total = np.maximum(objects, 1)[:, None]
    needed = np.maximum(np.floor(recalls * total) - 1, 0)
    for _ in range(3):
        needed += needed / total < recalls
    return needed.astype(np.int64)


def _first_reaching(counts: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """(B, 101) first index in each row of `counts` (B, P; rising) that is at least `needed` (B, 101), else P."""
    step = int(max(counts[:, -1].max(), needed.max())) + 1
    offsets = np.arange(len(counts))[:, None]
    flat = (counts + offsets * step).ravel()
    return np.searchsorted(flat, needed + offsets * step) - offsets * counts.shape[1]


def percentile_intervals(figures: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Lower and upper end of each figure's resampled values (B,), without NaN; a figure without values is left out."""
    tails = ((100 - LEVEL) / 2, (100 + LEVEL) / 2)
    intervals = {}
    for name, values in figures.items():
        finite = values[~np.isnan(values)]
        if len(finite):
            lower, upper = np.percentile(finite, tails)
            intervals[name] = (float(lower), float(upper))
    return intervals
