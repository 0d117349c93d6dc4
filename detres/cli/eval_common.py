"""What the evaluation tools share: where the ground truth and the detections come from, and the sanity block.

Heavy imports are inside the functions, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detres.cli.common import add_common_arguments, tool_parser
from detres.errors import UserError
from detres.files import refuse_blocked

if TYPE_CHECKING:
    from detres.api import Detector
    from detres.data.records import Annotations, DetectionTable

    Check = Callable[[Annotations, int | None], None]

log = logging.getLogger("detres")

DATA_HELP = "ground truth: a data set (COCO, VOC, YOLO, ImageNet DET, shapes)"


@dataclass(frozen=True)
class Sources:
    """What is evaluated.

    Attributes:
        truth: The ground truth.
        detections: The detections.
        seconds_per_image: Time of the detector, None where results were read from a file.
        origin: What `--json` says about where they came from.
    """

    truth: Annotations
    detections: DetectionTable
    seconds_per_image: float | None
    origin: dict[str, object]


def evaluation_parser(
    name: str, description: str, example: str, results_help: str
) -> argparse.ArgumentParser:
    """A parser with the options of the tools that give figures of weights or results."""
    parser = tool_parser(name, description, example)
    found = parser.add_mutually_exclusive_group(required=True)
    found.add_argument("--weights", nargs="+", metavar="FILE", help="weights to test; several: an ensemble")
    found.add_argument("--results", type=Path, metavar="PATH", help=results_help)
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--annotations", type=Path, metavar="FILE", help="ground truth: a COCO json")
    truth.add_argument("--data", metavar="DIR", help=DATA_HELP)
    parser.add_argument("--split", metavar="NAME", help="split of --data (and of comp4 files)")
    add_format(parser)
    parser.add_argument("--save-results", type=Path, metavar="FILE", help="write the detections (COCO json)")
    add_common_arguments(parser, "set", "device", "json", "quiet")
    return parser


def add_format(parser: argparse.ArgumentParser) -> None:
    """`--format`, of `--data`."""
    parser.add_argument(
        "--format", metavar="coco|voc|yolo|imagenet_det", help="format of --data, where it holds two"
    )


def check_bootstrap(arguments: argparse.Namespace) -> None:
    """Refuse `--bootstrap` and `--against` that say nothing.

    Raises:
        UserError: A negative number, no file, or a difference without resamples.
    """
    if arguments.bootstrap < 0:
        raise UserError(f"--bootstrap {arguments.bootstrap}: should be a number of resamples, such as 1000")
    if arguments.against is None:
        return
    if not arguments.bootstrap:
        raise UserError(
            "--against: the difference is an interval over resamples; say how many with --bootstrap 1000"
        )
    if not arguments.against.is_file():
        raise UserError(
            f"--against {arguments.against}: no such file; it wants a COCO results json (--save-results writes one)"
        )


def read_sources(arguments: argparse.Namespace, check: Check | None = None) -> Sources:
    """Ground truth and detections as the options say.

    Args:
        arguments: Of `evaluation_parser`.
        check: Called before anything is detected, with the ground truth and the most detections that a picture may get
            (None where results are read); may refuse them.

    Raises:
        UserError: Options that do not go together, files that cannot be written, or whatever the readers find.
    """
    refuse_blocked(arguments.save_results)
    if arguments.weights:
        if arguments.annotations:
            raise UserError(
                "--annotations has no pictures to test --weights on: give --data DIR --split NAME"
            )
        return _detected(arguments, check)
    if arguments.set:
        raise UserError(f"--set {arguments.set[0]}: test options change --weights, not --results")
    truth = _read_truth(arguments)
    if check is not None:
        check(truth, None)
    from detres.evaluation.results_files import read_results

    detections = read_results(arguments.results, truth, arguments.split)
    origin: dict[str, object] = {"results": str(arguments.results), "ground_truth": truth.source}
    return Sources(truth, detections, None, origin)


def print_sanity(sources: Sources) -> dict[str, object]:
    """Print the sanity block; returns it for `--json`."""
    from detres.evaluation.sanity import sanity

    report = sanity(sources.truth, sources.detections)
    print(f"{report.text()}\n", flush=True)
    return report.to_json()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table without the columns that are empty throughout."""
    from detres.console import table

    shown = [place for place in range(len(columns)) if any(row[place] != "" for row in rows)]
    table(title, [columns[place] for place in shown], [[row[place] for place in shown] for row in rows])


def save_results(arguments: argparse.Namespace, sources: Sources) -> None:
    """Write `--save-results`, where it was given."""
    if arguments.save_results is not None:
        from detres.evaluation.results_files import write_coco_results

        write_coco_results(arguments.save_results, sources.truth, sources.detections)


def parse_test_options(overrides: list[str]) -> dict[str, Any]:
    """Options by keyword from `--set test.x=value`, the values read as YAML.

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


def read_detector(arguments: argparse.Namespace) -> tuple[Detector, Annotations]:
    """The detector of `--weights`, and the ground truth of `--data` with its classes.

    Raises:
        UserError: Weights that are not a detector's, or whatever the readers find.
    """
    from detres.api import Detector, load
    from detres.data.formats import select_classes

    truth = _read_split(arguments, need_images=True)
    detector = load(arguments.weights, device=arguments.device)
    if not isinstance(detector, Detector):
        raise UserError(
            f"{arguments.weights[0]}: weights of a {type(detector).__name__.lower()}, not of a detector"
        )
    return detector, select_classes(truth, detector.class_names)


def _read_truth(arguments: argparse.Namespace) -> Annotations:
    if arguments.annotations is None:
        return _read_split(arguments, need_images=False)
    from detres.data.formats import read_annotations
    from detres.data.sources import log_reports

    if not arguments.annotations.is_file():
        raise UserError(f"{arguments.annotations}: no such file; --annotations wants a COCO json")
    truth, report = read_annotations(arguments.annotations, None)
    log_reports([report])
    return truth


def _read_split(arguments: argparse.Namespace, *, need_images: bool) -> Annotations:
    from detres.data.formats import read_annotations, read_unlabeled, resolve_directory
    from detres.data.shapes import is_shapes, read_shapes
    from detres.data.sources import log_reports

    if is_shapes(arguments.data):
        return read_shapes(arguments.data, arguments.split)
    folder, chosen = resolve_directory(arguments.data), arguments.format
    unlabeled = read_unlabeled(folder, arguments.split, format=chosen, need_images=need_images)
    if unlabeled is not None:
        log.warning("%s: no annotations: detections can be written, no figure exists", unlabeled.source)
        return unlabeled
    truth, report = read_annotations(folder, arguments.split, format=chosen, need_images=need_images)
    log_reports([report])
    return truth


def _detected(arguments: argparse.Namespace, check: Check | None) -> Sources:
    options = parse_test_options(arguments.set)
    detector, truth = read_detector(arguments)
    if check is not None:
        check(truth, detector.test_options(options).detections_per_img)
    detections, seconds = detector.detect_split(truth, options=options, quiet=arguments.quiet)
    origin: dict[str, object] = {
        "weights": list(arguments.weights),
        "ground_truth": truth.source,
        "test": options,
    }
    return Sources(truth, detections, seconds, origin)
