"""Test classifiers: top-1 and top-5 errors by central crop, ten crops or whole images; several are an ensemble.

He et al. 2015, §3.4, §4.1, Tables 3 to 5.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from detres.cli.common import add_common_arguments, tool_parser, write_report
from detres.devices import select_device
from detres.errors import UserError

if TYPE_CHECKING:
    from detres.classification.crops import EvalCrops
    from detres.classification.evaluate import ClassificationFigures

EXAMPLE = """
detres eval-cls --weights runs/tiny_r18/model.safetensors --data tiny-imagenet.zip --split val
detres eval-cls --weights a.safetensors b.safetensors --data imagenet --split val --scales 224 256 384 480 640
"""


def main(argv: list[str]) -> int | None:
    """Run `detres eval-cls`."""
    arguments = _parse(argv)

    from detres.classification.crops import EvalCrops
    from detres.classification.data import read_image_labels, relabel_images
    from detres.classification.evaluate import average_scores, classify_images, read_classifier_members
    from detres.data.class_names import class_places
    from detres.data.config import Source

    device = select_device(arguments.device)
    eval_crops = EvalCrops(arguments.crops, tuple(arguments.scales), arguments.flip)
    members = read_classifier_members(arguments.weights, device)
    names, crop = members[0].class_names, members[0].crop
    source = Source(dir=arguments.data, split=arguments.split)
    images = relabel_images(read_image_labels([source], side=crop.test_side or crop.size), names)
    begun = time.perf_counter()
    scores = [
        classify_images(
            member,
            relabel_images(images, member.class_names),
            eval_crops,
            batch=arguments.batch,
            workers=arguments.workers,
            device=device,
            skip_unreadable=arguments.unreadable == "skip",
            quiet=arguments.quiet,
        ).in_order(class_places(names, member.class_names))
        for member in members
    ]
    figures, seconds = average_scores(scores).figures(), time.perf_counter() - begun
    errors = {member.source: one.figures().errors() for member, one in zip(members, scores, strict=True)}
    _print_errors(images.source, eval_crops, errors, figures)
    content = {
        "figures": figures.errors(),
        "images": figures.images,
        "left_out": figures.left_out,
        "views": str(eval_crops),
        "seconds_per_image": round(seconds / max(figures.images, 1), 6),
    }
    write_report(arguments.json, {**content, "members": errors} if len(members) > 1 else content)
    return None


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = tool_parser("eval-cls", "Top-1 and top-5 errors of a classifier, or of an ensemble.", EXAMPLE)
    add = parser.add_argument
    weights = "weights of a classifier; the scores of several are averaged"
    add("--weights", type=Path, nargs="+", required=True, metavar="FILE", help=weights)
    add("--split", metavar="NAME", help="split of the data (default: the only one)")
    add("--crops", type=int, choices=(1, 10), default=1, help="the central crop (1, default), or ten")
    scales = "whole images with these shorter sides instead of crops (the paper: 224 256 384 480 640)"
    add("--scales", type=int, nargs="+", default=[], metavar="SIDE", help=scales)
    add("--flip", action="store_true", help="average with the mirror image")
    add("--batch", type=int, default=64, metavar="N", help="crops at once (default: 64)")
    add("--workers", type=int, default=2, metavar="N", help="processes that decode (default: 2)")
    unreadable = "whether an image that cannot be read stops the test or is left out (default: stop)"
    add("--unreadable", choices=("stop", "skip"), default="stop", help=unreadable)
    add_common_arguments(parser, "data", "device", "json", "quiet")
    arguments = parser.parse_args(argv)
    if arguments.scales and arguments.crops > 1:
        parser.error("--crops and --scales are two ways to test: give one of them")
    if arguments.data is None:
        raise UserError(
            "--data is missing: name the images to test on, e.g. --data tiny-imagenet.zip --split val"
        )
    if arguments.batch < 1 or arguments.workers < 0 or min(arguments.scales, default=1) < 1:
        raise UserError("--batch and --scales must be at least 1, --workers at least 0")
    return arguments


def _print_errors(
    source: str,
    eval_crops: EvalCrops,
    members: dict[str, dict[str, float | None]],
    figures: ClassificationFigures,
) -> None:
    """What was tested, a row for each weights file, and one for the ensemble of several."""
    from detres.console import table

    left_out = f", {figures.left_out} that cannot be read left out" if figures.left_out else ""
    print(f"{source}: {figures.images} images{left_out}; {eval_crops}")
    rows = [(source, *errors.values()) for source, errors in members.items()]
    if len(rows) > 1:
        rows.append((f"ensemble of {len(rows)}", *figures.errors().values()))
    table("", ("weights", *figures.errors()), rows)
