"""`detres eval-voc`: VOC's mAP (11-point and area) and AP of each class, of weights or of result files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detres.cli.common import write_json
from detres.cli.eval_common import (
    Sources,
    evaluation_parser,
    print_sanity,
    print_table,
    read_sources,
    save_results,
)
from detres.errors import UserError
from detres.files import refuse_blocked

if TYPE_CHECKING:
    import argparse

    from detres.data.records import Annotations
    from detres.evaluation.voc import VocResult

EXAMPLE = """
detres eval-voc --weights runs/voc/r101_c4/model.safetensors --data VOCdevkit --split test
detres eval-voc --results results/Main --data VOCdevkit --split test --json voc.json
"""
MEANINGS = {
    "mAP": "mean over classes of the area under the curve",
    "mAP_11point": "mean over classes of the mean over 11 recalls (VOC 2007)",
    "mAP_area": "the same as mAP (VOC 2010 on)",
}


def main(arguments: list[str]) -> None:
    """Evaluate as the command line says."""
    parser = evaluation_parser(
        "eval-voc",
        "VOC mAP of weights on a data set, or of result files. A sanity block comes before the figures.",
        EXAMPLE,
        "COCO results json, or a folder of comp4_det_<split>_<class>.txt",
    )
    parser.add_argument("--iou", type=float, default=0.5, help="the overlap that a match needs (0.5)")
    parser.add_argument(
        "--save-comp4",
        type=Path,
        metavar="DIR",
        help="check the detections and write them as comp4_det_<split>_<class>.txt",
    )
    options = parser.parse_args(arguments)
    if not 0 < options.iou <= 1:
        raise UserError(f"--iou {options.iou:g} is out of range; a number above 0 and up to 1, VOC's is 0.5")
    check, split = None, ""
    if options.save_comp4 is not None:
        from detres.evaluation.submissions import write_voc_submission

        split = _split_read(options)
        check = partial(_check, options.save_comp4, split)
    sources = read_sources(options, check)
    save_results(options, sources)
    if options.save_comp4 is not None:
        write_voc_submission(options.save_comp4, sources.truth, sources.detections, split)
    sanity = print_sanity(sources)

    from detres.evaluation.voc import evaluate_voc

    result = evaluate_voc(sources.truth, sources.detections, options.iou)
    _print(result, sources)
    figures = {**result.to_json(), "seconds_per_image": sources.seconds_per_image, **sources.origin}
    write_json(options.json, {**figures, "sanity": sanity})


def _check(folder: Path, split: str, truth: Annotations, detections_per_img: int | None) -> None:
    """Find what is at fault before hours of detection; VOC's server counts all detections of a picture."""
    from detres.evaluation.results_files import comp4_paths
    from detres.evaluation.submissions import check_voc_split

    check_voc_split(truth, split)
    refuse_blocked(*comp4_paths(folder, truth, split))


def _split_read(options: argparse.Namespace) -> str:
    """The name of the split; where `--split` does not say, the one that is read."""
    from detres.data.formats import list_splits, resolve_directory
    from detres.data.shapes import is_shapes

    if options.split:
        return options.split
    if options.data and is_shapes(options.data):
        return "train"
    available = list_splits(resolve_directory(options.data), format=options.format) if options.data else []
    if len(available) != 1:
        raise UserError("--save-comp4 names its files by the split: say --split NAME")
    return available[0]


def _print(result: VocResult, sources: Sources) -> None:
    figures = [
        (f"{name:13}{MEANINGS[name]}", value, result.reasons.get(name, ""))
        for name, value in result.figures.items()
    ]
    print_table(f"VOC, IoU {result.iou:g}", ("figure", "value", "why"), figures)
    keys = ("AP_area", "AP_11point", "recall", "objects", "difficult", "detections")
    classes = [
        (name, *(row[key] for key in keys), result.class_reasons.get(name, ""))
        for name, row in result.classes.items()
    ]
    print_table("Classes", ("class", *keys, "why"), classes)
    speed = f", {sources.seconds_per_image:.3f} s a picture" if sources.seconds_per_image is not None else ""
    print(f"{result.images} pictures, {result.detections} detections{speed}")
