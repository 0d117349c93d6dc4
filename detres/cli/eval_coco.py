"""`detres eval-coco`: COCO's twelve figures and AP of each class, of weights or of a results file."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detres.cli.common import write_json
from detres.cli.eval_common import (
    Sources,
    check_bootstrap,
    evaluation_parser,
    print_sanity,
    print_table,
    read_sources,
    save_results,
)
from detres.files import refuse_blocked

if TYPE_CHECKING:
    from detres.data.records import Annotations, DetectionTable
    from detres.evaluation.coco import CocoResult

    Intervals = dict[str, tuple[float, float]]

EXAMPLE = """
detres eval-coco --weights runs/cells/model.safetensors --data data/cells --split test
detres eval-coco --weights a.safetensors b.safetensors --data coco --split val --set test.refine=true
detres eval-coco --results detections.json --annotations instances_val2017.json --json coco.json
"""
MEANINGS = {
    "AP": "IoU .50:.05:.95",
    "AP50": "IoU .50",
    "AP75": "IoU .75",
    "APs": "small objects, area up to 32^2",
    "APm": "medium objects, 32^2 to 96^2",
    "APl": "large objects, from 96^2",
    "AR1": "recall with 1 detection of a class in a picture",
    "AR10": "recall with 10",
    "AR100": "recall with 100",
    "ARs": "recall of small objects",
    "ARm": "recall of medium objects",
    "ARl": "recall of large objects",
}


def main(arguments: list[str]) -> None:
    """Evaluate as the command line says."""
    parser = evaluation_parser(
        "eval-coco",
        "COCO mAP of weights on a data set, or of a results file. A sanity block comes before the figures.",
        EXAMPLE,
        "COCO results json: a list of image_id, category_id, bbox (xywh), score",
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=0,
        metavar="N",
        help="95 %% intervals of AP, AP50, AP75 from N resamples of the pictures (1000 are usual)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="with --bootstrap: intervals of the difference to another's results json, on the same resamples",
    )
    parser.add_argument(
        "--engine",
        default="auto",
        choices=("auto", "pycocotools", "hotcoco"),
        help="what takes the measure; the figures are the same (default: auto, hotcoco where it is installed)",
    )
    parser.add_argument(
        "--submission",
        type=Path,
        metavar="FILE",
        help="check the detections and write them for COCO's server: detections_<split>_<algorithm>_results.json",
    )
    options = parser.parse_args(arguments)
    if options.submission is not None:
        from detres.evaluation.submissions import check_coco_name, write_coco_submission

        check_coco_name(options.submission, options.split)
        refuse_blocked(options.submission)
    check_bootstrap(options)
    from detres.evaluation.engines import chosen_engine

    chosen_engine(options.engine)
    others: list[DetectionTable] = []
    sources = read_sources(options, partial(_check, options, others))
    save_results(options, sources)
    if options.submission is not None:
        write_coco_submission(options.submission, sources.truth, sources.detections)
    sanity = print_sanity(sources)

    from detres.evaluation.bootstrap import bootstrap_coco, bootstrap_difference
    from detres.evaluation.coco import evaluate_coco

    result = evaluate_coco(sources.truth, sources.detections, engine=options.engine)
    intervals = {}
    if options.bootstrap:
        intervals = bootstrap_coco(sources.truth, sources.detections, resamples=options.bootstrap)
    differences = {}
    if others:
        differences = bootstrap_difference(
            sources.truth, sources.detections, others[0], resamples=options.bootstrap
        )
    _print(result, intervals, differences, sources)
    figures = {**result.to_json(), "seconds_per_image": sources.seconds_per_image, **sources.origin}
    if options.against is not None:
        figures["against"] = {"results": str(options.against), "differences": differences}
    write_json(options.json, {**figures, "intervals": intervals, "sanity": sanity})


def _check(
    options: argparse.Namespace,
    others: list[DetectionTable],
    truth: Annotations,
    detections_per_img: int | None,
) -> None:
    """Find what is at fault before hours of detection; `others` gets the results of `--against`."""
    if options.submission is not None:
        from detres.evaluation.submissions import check_coco_limit, check_coco_split

        check_coco_split(truth)
        check_coco_limit(detections_per_img)
    if options.against is not None:
        from detres.evaluation.results_files import read_results

        others.append(read_results(options.against, truth, options.split))


def _print(result: CocoResult, intervals: Intervals, differences: Intervals, sources: Sources) -> None:
    rows = []
    for name, value in result.figures.items():
        shown = [
            "{:.3f} to {:.3f}".format(*found[name]) if name in found else ""
            for found in (intervals, differences)
        ]
        rows.append((f"{name:6}{MEANINGS[name]}", value, *shown, result.reasons.get(name, "")))
    print_table("COCO", ("figure", "value", "95 % interval", "less the other's", "why"), rows)
    classes = [
        (name, figures["AP"], figures["AP50"], figures["objects"], result.class_reasons.get(name, ""))
        for name, figures in result.classes.items()
    ]
    print_table("Classes", ("class", "AP", "AP50", "objects", "why"), classes)
    speed = f", {sources.seconds_per_image:.3f} s a picture" if sources.seconds_per_image is not None else ""
    print(f"{result.images} pictures, {result.detections} detections{speed}, by {result.engine}")
