"""`detres eval-voc`: VOC's mAP (11-point and area) and AP of each class, of weights or of result files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detres.cli.common import named_inputs
from detres.cli.eval_common import (
    evaluation_parser,
    open_inputs,
    print_classes,
    print_figures,
    print_sanity,
    read_detections,
    write_evaluation,
)
from detres.errors import UserError
from detres.files import check_outputs

if TYPE_CHECKING:
    import argparse

    from detres.data.records import Annotations

EXAMPLE = """
detres eval-voc --weights runs/voc/r101_c4/model.safetensors --data VOCdevkit --split test
detres eval-voc --results results/Main --data VOCdevkit --split test --json voc.json
"""
COLUMNS = ("AP_area", "AP_11point", "recall", "objects", "difficult", "detections")
MEANINGS = {
    "mAP": "mean over classes of the area under the curve",
    "mAP_11point": "mean over classes of the mean over 11 recalls (VOC 2007)",
    "mAP_area": "the same as mAP (VOC 2010 on)",
}


def main(arguments: list[str]) -> None:
    """Evaluate as the command line says."""
    options = _parse(arguments)
    split = _split_name(options) if options.save_comp4 is not None else ""
    inputs = open_inputs(options)
    if options.save_comp4 is not None:
        _check_submission(options, split, inputs.truth)
    sources = read_detections(options, inputs)
    if options.save_comp4 is not None:
        from detres.evaluation.submissions import write_voc_submission

        write_voc_submission(options.save_comp4, sources.truth, sources.detections, split)
    sanity = print_sanity(sources)

    from detres.evaluation.voc import evaluate_voc

    result = evaluate_voc(sources.truth, sources.detections, options.iou)
    print_figures(f"VOC, IoU {result.iou:g}", MEANINGS, result)
    print_classes(result, COLUMNS, sources)
    write_evaluation(options.json, result, sources, sanity)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = evaluation_parser(
        "eval-voc",
        "VOC mAP of weights on a data set, or of result files. A sanity block comes before the figures.",
        EXAMPLE,
        "COCO results json, or a folder of comp4_det_<split>_<class>.txt",
    )
    parser.add_argument("--iou", type=float, default=0.5, help="the IoU that a match needs (0.5)")
    parser.add_argument(
        "--save-comp4",
        type=Path,
        metavar="DIR",
        help="check the detections and write them as comp4_det_<split>_<class>.txt",
    )
    options = parser.parse_args(arguments)
    if not 0 < options.iou <= 1:
        raise UserError(f"--iou {options.iou:g} is out of range; a number above 0 and up to 1, VOC's is 0.5")
    return options


def _check_submission(options: argparse.Namespace, split: str, truth: Annotations) -> None:
    """Refuse wrong input before hours of detection; VOC's server counts all detections of an image."""
    from detres.evaluation.results_files import comp4_paths
    from detres.evaluation.submissions import check_voc_split

    check_voc_split(truth, split)
    paths = comp4_paths(options.save_comp4, truth, split)
    check_outputs(paths, named_inputs(options), overwrite=True)


def _split_name(options: argparse.Namespace) -> str:
    """The name of the split: `--split`, or the only one that the data has."""
    from detres.data.formats import list_splits, resolve_directory
    from detres.data.shapes import is_shapes

    if options.split:
        return options.split
    if options.data and is_shapes(options.data):
        return "train"
    available = list_splits(resolve_directory(options.data), format=options.format) if options.data else []
    if len(available) != 1:
        raise UserError("--save-comp4 puts the split into the file names: say which with --split NAME")
    return available[0]
