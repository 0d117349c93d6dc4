"""`detres eval-det`: mAP and AP of each class on ImageNet DET, as ILSVRC's development kit takes it."""

from __future__ import annotations

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

if TYPE_CHECKING:
    import argparse

    from detres.evaluation.det import DetResult

EXAMPLE = """
detres eval-det --weights runs/imagenet_det/r101_c4/model.safetensors --data ILSVRC --split val2
detres eval-det --results detections.json --data ILSVRC --split val2 --json det.json
"""
MEANINGS = {"mAP": "mean over classes of the area under the curve", "median_AP": "their median"}


def main(arguments: list[str]) -> None:
    """Evaluate as the command line says."""
    parser = evaluation_parser(
        "eval-det",
        "ILSVRC's detection mAP of weights on a data set, or of a results file. Small objects need less than an IoU of"
        " 0.5.",
        EXAMPLE,
        "COCO results json: a list of image_id, category_id, bbox (xywh), score",
    )
    parser.add_argument(
        "--no-blacklist",
        action="store_true",
        help="count the pictures and classes too that the kit's evaluation leaves out",
    )
    options = parser.parse_args(arguments)
    sources = read_sources(options)
    save_results(options, sources)
    sanity = print_sanity(sources)

    from detres.evaluation.det import evaluate_det

    result = evaluate_det(sources.truth, sources.detections, _blacklist(options, sources))
    _print(result, sources)
    figures = {**result.to_json(), "seconds_per_image": sources.seconds_per_image, **sources.origin}
    write_json(options.json, {**figures, "sanity": sanity})


def _blacklist(options: argparse.Namespace, sources: Sources) -> set[tuple[int, int]]:
    """The development kit's, where the data is ImageNet DET and the kit is there."""
    from detres.data.formats import resolve_directory
    from detres.data.readers.imagenet_det import read_blacklist, recognize
    from detres.data.shapes import is_shapes

    if options.no_blacklist or not options.data or is_shapes(options.data):
        return set()
    directory = resolve_directory(options.data)
    return read_blacklist(directory, sources.truth) if recognize(directory) else set()


def _print(result: DetResult, sources: Sources) -> None:
    figures = [
        (f"{name:11}{MEANINGS[name]}", value, result.reasons.get(name, ""))
        for name, value in result.figures.items()
    ]
    print_table("ILSVRC DET, IoU 0.5 or the small object's own", ("figure", "value", "why"), figures)
    keys = ("AP", "recall", "objects", "detections")
    classes = [
        (name, *(row[key] for key in keys), result.class_reasons.get(name, ""))
        for name, row in result.classes.items()
    ]
    print_table("Classes", ("class", *keys, "why"), classes)
    speed = f", {sources.seconds_per_image:.3f} s a picture" if sources.seconds_per_image is not None else ""
    left = f"; {result.left_out} pairs of picture and class left out (blacklist)" if result.left_out else ""
    print(f"{result.images} pictures, {result.detections} detections{speed}{left}")
