"""`detres eval-coco`: COCO's twelve figures and AP of each class, of weights or of a results file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from detres.cli.eval_common import (
    EvaluationInputs,
    check_bootstrap,
    evaluation_parser,
    open_inputs,
    print_classes,
    print_figures,
    print_sanity,
    read_detections,
    write_evaluation,
)
from detres.files import check_writable

if TYPE_CHECKING:
    from detres.data.records import DetectionTable

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
    "AR1": "recall with 1 detection per class and image",
    "AR10": "recall with 10",
    "AR100": "recall with 100",
    "ARs": "recall of small objects",
    "ARm": "recall of medium objects",
    "ARl": "recall of large objects",
}


def main(arguments: list[str]) -> None:
    """Evaluate as the command line says."""
    options = _parse(arguments)
    inputs = open_inputs(options)
    other = _check_inputs(options, inputs)
    sources = read_detections(options, inputs)
    truth, detections = sources.truth, sources.detections
    if options.submission is not None:
        from detres.evaluation.submissions import write_coco_submission

        write_coco_submission(options.submission, truth, detections)
    sanity = print_sanity(sources)

    from detres.evaluation.bootstrap import bootstrap_coco, bootstrap_difference
    from detres.evaluation.coco import evaluate_coco

    result = evaluate_coco(truth, detections, engine=options.engine)
    resamples = options.bootstrap
    intervals = bootstrap_coco(truth, detections, resamples=resamples) if resamples else {}
    more, differences = {}, {}
    if other is not None:
        differences = bootstrap_difference(truth, detections, other, resamples=resamples)
        more = {"against": {"results": str(options.against), "differences": differences}}
    columns = {"95 % interval": intervals, "difference to --against": differences}
    print_figures("COCO", MEANINGS, result, columns)
    print_classes(result, ("AP", "AP50", "objects"), sources, f", by {result.engine}")
    write_evaluation(options.json, result, sources, sanity, **more, intervals=intervals)


def _parse(arguments: list[str]) -> argparse.Namespace:
    """The options, with everything refused that can be refused before any data is read."""
    parser = evaluation_parser(
        "eval-coco",
        "COCO mAP of weights on a data set, or of a results file. A sanity block comes before the figures.",
        EXAMPLE,
        "COCO results json: a list of image_id, category_id, bbox (xywh), score",
    )
    add = parser.add_argument
    add(
        "--bootstrap",
        type=int,
        default=0,
        metavar="N",
        help="95 %% intervals of AP, AP50, AP75 from N resamples of the images (1000 are usual)",
    )
    add(
        "--against",
        type=Path,
        metavar="FILE",
        help="with --bootstrap: intervals of the difference to another results json, on the same resamples",
    )
    add(
        "--engine",
        default="auto",
        choices=("auto", "pycocotools", "hotcoco"),
        help="what computes the metrics; both give the same (default: auto, hotcoco if it is installed)",
    )
    add(
        "--submission",
        type=Path,
        metavar="FILE",
        help="check the detections and write them for COCO's server: detections_<split>_<algorithm>_results.json",
    )
    options = parser.parse_args(arguments)
    if options.submission is not None:
        from detres.evaluation.submissions import check_coco_name

        check_coco_name(options.submission, options.split)
        check_writable(options.submission)
    check_bootstrap(options)
    from detres.evaluation.engines import select_engine

    select_engine(options.engine)
    return options


def _check_inputs(options: argparse.Namespace, inputs: EvaluationInputs) -> DetectionTable | None:
    """Refuse wrong input before hours of detection; returns the detections of `--against`."""
    if options.submission is not None:
        from detres.evaluation.submissions import check_coco_limit, check_coco_split

        check_coco_split(inputs.truth)
        check_coco_limit(inputs.detections_per_img)
    if options.against is None:
        return None
    from detres.evaluation.results_files import read_results

    return read_results(options.against, inputs.truth, options.split)
