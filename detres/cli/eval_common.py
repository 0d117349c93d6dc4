"""What the evaluation tools share: reading the ground truth and the detections, printing tables, writing `--json`.

Heavy imports are inside the functions, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detres.cli.common import add_common_arguments, tool_parser, write_report
from detres.errors import UserError
from detres.files import check_writable

if TYPE_CHECKING:
    from detres.api import Detector
    from detres.data.records import Annotations, DetectionTable
    from detres.evaluation.coco import CocoResult
    from detres.evaluation.det import DetResult
    from detres.evaluation.voc import VocResult

    Result = CocoResult | DetResult | VocResult
    Intervals = Mapping[str, tuple[float, float]]

log = logging.getLogger("detres")

DATA_HELP = "ground truth: a data set (COCO, VOC, YOLO, ImageNet DET, shapes)"


@dataclass(frozen=True)
class EvaluationInputs:
    """What the command line names, before anything is detected.

    Attributes:
        truth: The ground truth.
        detector: The detector of `--weights`; None with `--results`.
        test_options: The test options of `--set`.
    """

    truth: Annotations
    detector: Detector | None
    test_options: dict[str, Any]

    @property
    def detections_per_img(self) -> int | None:
        """The most detections that an image can get; None with `--results`."""
        if self.detector is None:
            return None
        return self.detector.test_options(self.test_options).detections_per_img


@dataclass(frozen=True)
class Sources:
    """What is evaluated.

    Attributes:
        truth: The ground truth.
        detections: The detections.
        seconds_per_image: Time of the detector; None if the detections were read from a file.
        origin: Where both came from, as `--json` reports it.
    """

    truth: Annotations
    detections: DetectionTable
    seconds_per_image: float | None
    origin: dict[str, object]


def evaluation_parser(
    name: str, description: str, example: str, results_help: str
) -> argparse.ArgumentParser:
    """A parser with the options that all tools with `--weights` or `--results` share."""
    parser = tool_parser(name, description, example)
    detections = parser.add_mutually_exclusive_group(required=True)
    detections.add_argument(
        "--weights", nargs="+", metavar="FILE", help="weights to test; several form an ensemble"
    )
    detections.add_argument("--results", type=Path, metavar="PATH", help=results_help)
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--annotations", type=Path, metavar="FILE", help="ground truth: a COCO json")
    truth.add_argument("--data", metavar="DIR", help=DATA_HELP)
    parser.add_argument("--split", metavar="NAME", help="split of --data (and of comp4 files)")
    add_format_argument(parser)
    parser.add_argument("--save-results", type=Path, metavar="FILE", help="write the detections (COCO json)")
    add_common_arguments(parser, "set", "device", "json", "quiet")
    return parser


def add_format_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--format`, which goes with `--data`."""
    parser.add_argument(
        "--format", metavar="coco|voc|yolo|imagenet_det", help="format of --data, if the folder holds two"
    )


def check_bootstrap(options: argparse.Namespace) -> None:
    """Check `--bootstrap` and `--against`.

    Raises:
        UserError: A negative number, a missing file, or `--against` without resamples.
    """
    if options.bootstrap < 0:
        raise UserError(f"--bootstrap {options.bootstrap}: should be a number of resamples, such as 1000")
    if options.against is None:
        return
    if not options.bootstrap:
        raise UserError(
            "--against: the difference is an interval over resamples; say how many with --bootstrap 1000"
        )
    if not options.against.is_file():
        raise UserError(
            f"--against {options.against}: no such file; it should be a COCO results json, as --save-results writes it"
        )


def open_inputs(options: argparse.Namespace) -> EvaluationInputs:
    """Read the ground truth and, with `--weights`, load the detector; nothing is detected yet.

    Args:
        options: Of `evaluation_parser`.

    Raises:
        UserError: Options that do not go together, files that cannot be written, or an error of the readers.
    """
    check_writable(options.save_results)
    if options.weights:
        if options.annotations:
            raise UserError("--annotations has no images to test --weights on: give --data DIR --split NAME")
        test_options = parse_test_options(options.set)
        detector, truth = read_detector(options)
        return EvaluationInputs(truth, detector, test_options)
    if options.set:
        raise UserError(f"--set {options.set[0]}: test options change --weights, not --results")
    return EvaluationInputs(_read_truth(options), None, {})


def read_detections(options: argparse.Namespace, inputs: EvaluationInputs) -> Sources:
    """Run the detector, or read `--results`; write `--save-results` if it was given.

    Raises:
        UserError: A test option or a file that is wrong.
    """
    from detres.evaluation.results_files import read_results, write_coco_results

    truth = inputs.truth
    origin: dict[str, object] = {"ground_truth": truth.source}
    if inputs.detector is None:
        detections, seconds = read_results(options.results, truth, options.split), None
        origin = {"results": str(options.results), **origin}
    else:
        detections, seconds = inputs.detector.detect_split(
            truth, options=inputs.test_options, quiet=options.quiet
        )
        origin = {"weights": list(options.weights), **origin, "test": inputs.test_options}
    if options.save_results is not None:
        write_coco_results(options.save_results, truth, detections)
    return Sources(truth, detections, seconds, origin)


def print_sanity(sources: Sources) -> dict[str, object]:
    """Print the sanity block and return it for `--json`."""
    from detres.evaluation.sanity import check_sanity

    report = check_sanity(sources.truth, sources.detections)
    print(f"{report.text()}\n", flush=True)
    return report.to_json()


def print_figures(
    title: str, meanings: Mapping[str, str], result: Result, intervals: Mapping[str, Intervals] | None = None
) -> None:
    """Print the figures of the whole split.

    Args:
        title: Above the table.
        meanings: What each figure means.
        result: The figures.
        intervals: Further columns by their titles: an interval for some of the figures.
    """
    intervals = intervals or {}
    width = max(map(len, meanings)) + 2
    rows = []
    for name, value in result.figures.items():
        ranges = [format_interval(column, name) for column in intervals.values()]
        rows.append((f"{name:{width}}{meanings[name]}", value, *ranges, result.reasons.get(name, "")))
    print_table(title, ("figure", "value", *intervals, "why"), rows)


def print_classes(result: Result, columns: Sequence[str], sources: Sources, remark: str = "") -> None:
    """Print the figures of each class, and one line with the numbers of images and detections.

    Args:
        result: The figures.
        columns: The figures of a class to show.
        sources: What was evaluated.
        remark: The end of the last line.
    """
    rows = [
        (name, *(figures[column] for column in columns), result.class_reasons.get(name, ""))
        for name, figures in result.classes.items()
    ]
    print_table("Classes", ("class", *columns, "why"), rows)
    seconds = sources.seconds_per_image
    speed = "" if seconds is None else f", {seconds:.3f} s per image"
    print(f"{result.images} images, {result.detections} detections{speed}{remark}")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table without the columns that are empty in all rows."""
    from detres.console import table

    kept = [place for place in range(len(columns)) if any(row[place] != "" for row in rows)]
    table(title, [columns[place] for place in kept], [[row[place] for place in kept] for row in rows])


def format_interval(intervals: Intervals, name: str, sign: str = "") -> str:
    """`low to high` of the named figure, or an empty string if it has no interval; `sign` "+" shows the sign."""
    if name not in intervals:
        return ""
    low, high = intervals[name]
    return f"{low:{sign}.3f} to {high:{sign}.3f}"


def write_evaluation(
    path: Path | None, result: Result, sources: Sources, sanity: dict[str, object], **more: object
) -> None:
    """Write `--json`'s file, if the option was given: the figures, where they came from, and the sanity block."""
    figures = {**result.to_json(), "seconds_per_image": sources.seconds_per_image, **sources.origin}
    write_report(path, {**figures, **more, "sanity": sanity})


def parse_test_options(overrides: list[str]) -> dict[str, Any]:
    """Test options by keyword from `--set test.x=value`; the values are read as YAML.

    Raises:
        UserError: A key outside `test`, or a value that is not YAML.
    """
    from detres.strict_yaml import override_document

    options: dict[str, Any] = {}
    for override in overrides:
        values = override_document(override).values
        if set(values) != {"test"} or not isinstance(values["test"], dict):
            raise UserError(
                f"--set {override}: only keys of `test` can be set here, such as test.score_thresh=0.05"
            )
        options.update(values["test"])
    return options


def read_detector(options: argparse.Namespace) -> tuple[Detector, Annotations]:
    """The detector of `--weights`, and the ground truth of `--data` with the detector's classes in its order.

    Raises:
        UserError: Weights that are not a detector's, or an error of the readers.
    """
    from detres.api import Detector, load
    from detres.data.formats import select_classes

    truth = _read_split(options, need_images=True)
    detector = load(options.weights, device=options.device)
    if not isinstance(detector, Detector):
        raise UserError(
            f"{options.weights[0]}: weights of a {type(detector).__name__.lower()}, not of a detector"
        )
    return detector, select_classes(truth, detector.class_names)


def _read_truth(options: argparse.Namespace) -> Annotations:
    if options.annotations is None:
        return _read_split(options, need_images=False)
    from detres.data.formats import read_annotations
    from detres.data.sources import log_reports

    if not options.annotations.is_file():
        raise UserError(f"{options.annotations}: no such file; --annotations should be a COCO json")
    truth, report = read_annotations(options.annotations, None)
    log_reports([report])
    return truth


def _read_split(options: argparse.Namespace, *, need_images: bool) -> Annotations:
    from detres.data.formats import read_annotations, read_unlabeled, resolve_directory
    from detres.data.shapes import is_shapes, read_shapes
    from detres.data.sources import log_reports

    if is_shapes(options.data):
        return read_shapes(options.data, options.split)
    folder = resolve_directory(options.data)
    unlabeled = read_unlabeled(folder, options.split, format=options.format, need_images=need_images)
    if unlabeled is not None:
        log.warning(
            "%s: no annotations: detections can be written but not measured",
            unlabeled.source,
        )
        return unlabeled
    truth, report = read_annotations(folder, options.split, format=options.format, need_images=need_images)
    log_reports([report])
    return truth
