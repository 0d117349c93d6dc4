"""What each test-time improvement of Appendix B gives on a data set, and what it costs.

He et al. 2015, Appendix B and Table 9: rows in which refinement, voting, several scales and flip are switched on one by
one and together, each with the difference to the row it is built on, so that nobody reads noise.
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
    class_matches,
    difference_intervals,
    draw_weights,
    percentile_intervals,
    resampled_figures,
)
from detres.evaluation.coco import evaluate_coco
from detres.evaluation.voc import evaluate_voc
from detres.networks.arithmetic import counted_operations

log = logging.getLogger("detres")

OFF: Mapping[str, Any] = {"refine": False, "box_voting": False, "scales": None, "flip": False}
PAPER_SCALES = (200, 400, 600, 800, 1000)  # of a network that was trained at 600
COUNTED_IMAGES = 3
PLAIN, AGAINST = "plain", "against"

Intervals = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: Its name.
        before: The row it is built on, None for the first.
        switches: What it switches on.
    """

    name: str
    before: str | None
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
        options: The test options that were set: the row's switches, on and off, and those of all rows.
        figures: AP, AP50 and AP75 (COCO), mAP (VOC, area, IoU 0.5); None where there are no objects.
        intervals: Of AP, AP50 and AP75, 95 %, by the bootstrap over pictures; empty without resamples.
        differences: 95 % intervals of this row less another, on the same resamples, by the other's name: the row before
            and the plain one, as far as they were measured; for the plain row `against`.
        seconds: Of one image, loading included.
        multiply_adds: Of one image, the mean of the first pictures.
        detections: All that was found.
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
        """All but the detections."""
        return {
            "before": self.row.before,
            "test": self.options,
            "figures": self.figures,
            "intervals": self.intervals,
            "differences": self.differences,
            "seconds_per_image": self.seconds,
            "multiply_adds_per_image": self.multiply_adds,
        }


def rows_named(names: Sequence[str]) -> list[Row]:
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
    """Shorter sides in pixels: the paper's pyramid in proportion to a network's own shorter side (the paper's: 600)."""
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
        rows: Some of `ROWS`; where the row before is not among them there is no difference to it.
        scales: Shorter sides, in pixels, of the rows that have several; None: `paper_scales` of the detector.
        options: Further test options, the same in all rows.
        resamples: Of the bootstrap; 0: no intervals.
        against: Detections of another detector, which the plain row is compared to.
        quiet: Show no progress.

    Raises:
        UserError: A test option that is a switch of the rows, or is wrong; `scales` or `against` without a row for it.
    """
    options = dict(options or {})
    for name in options:
        if name in OFF:
            raise UserError(f"test.{name}: the rows switch it on and off themselves")
    switched = {
        "refine": True,
        "box_voting": True,
        "flip": True,
        "scales": paper_scales(detector.short_side) if scales is None else scales,
    }
    if scales is not None and not any("scales" in row.switches for row in rows):
        raise UserError("scales are given, and no row has them: add the row scales")
    if against is not None and PLAIN not in [row.name for row in rows]:
        raise UserError("it is the plain row that is compared to another detector: add the row plain")
    of_rows = [{**options, **OFF, **{name: switched[name] for name in row.switches}} for row in rows]
    for of_row in of_rows:  # all options are looked at before the first hour
        detector.test_options(of_row)
    weights = draw_weights(len(truth), resamples, seed=0)
    resampled: dict[str, dict[str, np.ndarray]] = {}

    def resample(detections: DetectionTable) -> dict[str, np.ndarray]:
        return resampled_figures(class_matches(truth, detections), weights) if resamples else {}

    if against is not None:
        resampled[AGAINST] = resample(against)
    for number, (row, of_row) in enumerate(zip(rows, of_rows, strict=True), start=1):
        log.info("row %d of %d: %s", number, len(rows), row.name)
        operations = mean_multiply_adds(detector, truth, of_row)  # and the pictures' first, slower passes
        detections, seconds = detector.detect_split(truth, options=of_row, quiet=quiet)
        values = resampled[row.name] = resample(detections)
        others = (AGAINST,) if row.before is None else (row.before, PLAIN)
        coco, voc = evaluate_coco(truth, detections).figures, evaluate_voc(truth, detections).figures
        yield RowResult(
            row,
            of_row,
            {**{name: coco[name] for name in ("AP", "AP50", "AP75")}, "mAP": voc["mAP_area"]},
            percentile_intervals(values),
            {name: difference_intervals(values, resampled[name]) for name in others if resampled.get(name)},
            seconds,
            operations,
            detections,
        )


def mean_multiply_adds(detector: Detector, truth: Annotations, options: Mapping[str, Any]) -> float:
    """Multiply-adds of one image, as they are dispatched here; the mean of the first pictures of a split."""
    images = [load_image(truth, index) for index in range(min(COUNTED_IMAGES, len(truth)))]
    counts = [counted_operations(partial(detector, image, **options)) for image in images]
    return sum(counts) / max(len(counts), 1)
