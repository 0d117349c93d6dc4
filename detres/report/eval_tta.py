"""What each test-time improvement of Appendix B gains on a data set, and what it costs.

He et al. 2015, Appendix B and Table 9: the rows switch on refinement, voting, several scales and flip one by one and
together. Each has the interval of its difference to the row it is based on, so that noise is not read as a gain.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from detres.api import Detector
from detres.data.detection_samples import load_image
from detres.data.records import Annotations, DetectionTable
from detres.errors import UserError, nearest
from detres.evaluation.bootstrap import (
    difference_intervals,
    match_classes,
    percentile_intervals,
    resample_figures,
    sample_image_weights,
)
from detres.evaluation.coco import evaluate_coco
from detres.evaluation.voc import evaluate_voc
from detres.networks.arithmetic import count_dispatched_multiply_adds

log = logging.getLogger("detres")

OFF: Mapping[str, Any] = {"refine": False, "box_voting": False, "scales": None, "flip": False}
PAPER_SCALES = (200, 400, 600, 800, 1000)  # for a network that was trained at 600
COUNTED_IMAGES = 3
PLAIN, AGAINST = "plain", "against"

Intervals = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: Its name.
        baseline: The row it is based on; None for the first.
        switches: What it switches on.
    """

    name: str
    baseline: str | None
    switches: tuple[str, ...]


ROWS = (
    Row(PLAIN, None, ()),
    Row("vote", PLAIN, ("box_voting",)),
    Row("refine", PLAIN, ("refine",)),
    Row("refine_vote", "refine", ("refine", "box_voting")),
    Row("scales", PLAIN, ("scales",)),
    Row("flip", PLAIN, ("flip",)),
    Row("refine_vote_scales", "refine_vote", ("refine", "box_voting", "scales")),
    Row("all_four", "refine_vote_scales", ("refine", "box_voting", "scales", "flip")),
)


@dataclass(frozen=True)
class RowResult:
    """A row, measured.

    Attributes:
        row: Which.
        options: The test options: the row's switches, on and off, and the options of all rows.
        figures: AP, AP50 and AP75 (COCO), mAP (VOC, area, IoU 0.5); None if there are no objects.
        intervals: 95 % intervals of AP, AP50 and AP75, by the bootstrap over images; empty without resamples.
        differences: 95 % intervals of this row minus another, on the same resamples, by the other's name: the baseline
            and the plain row, as far as they were measured; for the plain row `against`.
        seconds: Per image, loading included.
        multiply_adds: Per image, the mean of the first images.
        detections: Of the whole split.
    """

    row: Row
    options: dict[str, Any]
    figures: dict[str, float | None]
    intervals: Intervals
    differences: Mapping[str, Intervals]
    seconds: float
    multiply_adds: float
    detections: DetectionTable = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The row as `--json` has it: everything but the detections."""
        return {
            "baseline": self.row.baseline,
            "test": self.options,
            "figures": self.figures,
            "intervals": self.intervals,
            "differences": self.differences,
            "seconds_per_image": self.seconds,
            "multiply_adds_per_image": self.multiply_adds,
        }


def select_rows(names: Sequence[str]) -> list[Row]:
    """The rows of these names, in the order of `ROWS`.

    Raises:
        UserError: A name that no row has.
    """
    known = [row.name for row in ROWS]
    for name in names:
        if name not in known:
            raise UserError(f"no row '{name}'{nearest(name, known)}; they are {', '.join(known)}")
    return [row for row in ROWS if row.name in names]


def paper_scales(short_side: int) -> tuple[int, ...]:
    """Shorter sides in pixels: the paper's image pyramid, scaled from its 600 to the network's own shorter side."""
    return tuple(round(scale * short_side / 600) for scale in PAPER_SCALES)


def measure_rows(
    detector: Detector,
    truth: Annotations,
    rows: Sequence[Row],
    *,
    scales: tuple[int, ...] | None = None,
    options: Mapping[str, Any] | None = None,
    resamples: int = 1000,
    against: DetectionTable | None = None,
    quiet: bool = False,
) -> Iterator[RowResult]:
    """Test a detector row by row (He et al. 2015, Appendix B).

    Args:
        detector: A detector or an ensemble.
        truth: The split, with classes in the detector's order.
        rows: Some of `ROWS`; a row whose baseline is not among them has no difference to it.
        scales: Shorter sides, in pixels, of the rows with several scales; None: `paper_scales` of the detector.
        options: Further test options, the same in all rows.
        resamples: Number of bootstrap resamples; 0: no intervals.
        against: Detections of another detector, which the plain row is compared with.
        quiet: Show no progress.

    Raises:
        UserError: A test option that is a switch of the rows, or is wrong; `scales` or `against` without a row for it.
    """
    options = dict(options or {})
    for name in options:
        if name in OFF:
            raise UserError(f"test.{name}: the rows switch it on and off themselves")
    switch_values = {
        "refine": True,
        "box_voting": True,
        "flip": True,
        "scales": paper_scales(detector.short_side) if scales is None else scales,
    }
    if scales is not None and not any("scales" in row.switches for row in rows):
        raise UserError("scales are given but no row has them: add the row scales")
    if against is not None and PLAIN not in [row.name for row in rows]:
        raise UserError("only the plain row is compared with another detector: add the row plain")
    row_options = [{**options, **OFF, **{name: switch_values[name] for name in row.switches}} for row in rows]
    for test_options in row_options:  # a wrong option is refused before the first row runs
        detector.test_options(test_options)
    weights = sample_image_weights(len(truth), resamples, seed=0)
    resampled: dict[str, dict[str, np.ndarray]] = {}

    def resample(detections: DetectionTable) -> dict[str, np.ndarray]:
        return resample_figures(match_classes(truth, detections), weights) if resamples else {}

    if against is not None:
        resampled[AGAINST] = resample(against)
    for number, (row, test_options) in enumerate(zip(rows, row_options, strict=True), start=1):
        log.info("row %d of %d: %s", number, len(rows), row.name)
        operations = mean_multiply_adds(
            detector, truth, test_options
        )  # warms up too, so that the timing is fair
        detections, seconds = detector.detect_split(truth, options=test_options, quiet=quiet)
        values = resampled[row.name] = resample(detections)
        others = (AGAINST,) if row.baseline is None else (row.baseline, PLAIN)
        coco, voc = evaluate_coco(truth, detections).figures, evaluate_voc(truth, detections).figures
        yield RowResult(
            row,
            test_options,
            {**{name: coco[name] for name in ("AP", "AP50", "AP75")}, "mAP": voc["mAP_area"]},
            percentile_intervals(values),
            {name: difference_intervals(values, resampled[name]) for name in others if resampled.get(name)},
            seconds,
            operations,
            detections,
        )


def mean_multiply_adds(detector: Detector, truth: Annotations, options: Mapping[str, Any]) -> float:
    """Multiply-adds per image as this machine runs them: the mean over the first images of a split."""
    images = [load_image(truth, index) for index in range(min(COUNTED_IMAGES, len(truth)))]
    counts = [count_dispatched_multiply_adds(partial(detector, image, **options)) for image in images]
    return sum(counts) / max(len(counts), 1)
