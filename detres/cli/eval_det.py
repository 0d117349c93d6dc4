"""`detres eval-det`: mAP and AP of each class on ImageNet DET, as ILSVRC's development kit computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detres.cli.eval_common import (
    Sources,
    evaluation_parser,
    open_inputs,
    print_classes,
    print_figures,
    print_sanity,
    read_detections,
    write_evaluation,
)

if TYPE_CHECKING:
    import argparse

EXAMPLE = """
detres eval-det --weights runs/imagenet_det/r101_c4/model.safetensors --data ILSVRC --split val2
detres eval-det --results detections.json --data ILSVRC --split val2 --json det.json
"""
MEANINGS = {"mAP": "mean over classes of the area under the curve", "median_AP": "their median"}


def main(arguments: list[str]) -> None:
    """Evaluate as the command line says."""
    parser = evaluation_parser(
        "eval-det",
        "ILSVRC's detection mAP of weights on a data set, or of a results file. Small objects"
        " need an IoU of less than 0.5.",
        EXAMPLE,
        "COCO results json: a list of image_id, category_id, bbox (xywh), score",
    )
    parser.add_argument(
        "--no-blacklist",
        action="store_true",
        help="count also the images and classes that the kit's evaluation leaves out",
    )
    options = parser.parse_args(arguments)
    sources = read_detections(options, open_inputs(options))
    sanity = print_sanity(sources)

    from detres.evaluation.det import evaluate_det

    result = evaluate_det(sources.truth, sources.detections, _blacklist(options, sources))
    left_out = f"; {result.left_out} pairs of image and class left out (blacklist)" if result.left_out else ""
    print_figures("ILSVRC DET, IoU 0.5 or the small object's own", MEANINGS, result)
    print_classes(result, ("AP", "recall", "objects", "detections"), sources, left_out)
    write_evaluation(options.json, result, sources, sanity)


def _blacklist(options: argparse.Namespace, sources: Sources) -> set[tuple[int, int]]:
    """The development kit's blacklist, if the data is ImageNet DET and the kit is there; else empty."""
    from detres.data.formats import resolve_directory
    from detres.data.readers.imagenet_det import read_blacklist, recognize
    from detres.data.shapes import is_shapes

    if options.no_blacklist or not options.data or is_shapes(options.data):
        return set()
    directory = resolve_directory(options.data)
    return read_blacklist(directory, sources.truth) if recognize(directory) else set()
