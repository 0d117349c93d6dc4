"""Test classifiers: top-1 and top-5 errors by central crop, ten crops or whole pictures; several are an ensemble.

He et al. 2015, §3.4, §4.1, Tables 3 to 5.
"""

from __future__ import annotations

import time
from pathlib import Path

from detres.cli.common import add_common_arguments, tool_parser, write_json
from detres.devices import select_device

EXAMPLE = """
detres eval-cls --weights runs/tiny_r18/model.safetensors --data tiny-imagenet.zip --split val
detres eval-cls --weights a.safetensors b.safetensors --data imagenet --split val --scales 224 256 384 480 640
"""


def main(argv: list[str]) -> int | None:
    """Run `detres eval-cls`."""
    parser = tool_parser("eval-cls", "Top-1 and top-5 errors of a classifier, or of an ensemble.", EXAMPLE)
    add = parser.add_argument
    add(
        "--weights",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="weights of a classifier; of several the scores are averaged",
    )
    add("--split", metavar="NAME", help="split of the data (default: the only one)")
    add("--crops", type=int, choices=(1, 10), default=1, help="the central crop (1, default), or ten")
    add(
        "--scales",
        type=int,
        nargs="+",
        default=[],
        metavar="SIDE",
        help="whole pictures of these shorter sides instead of crops (the paper: 224 256 384 480 640)",
    )
    add("--flip", action="store_true", help="average with the mirrored view")
    add("--batch", type=int, default=64, metavar="N", help="views at once (default: 64)")
    add("--workers", type=int, default=2, metavar="N", help="processes that decode (default: 2)")
    add(
        "--unreadable",
        choices=("stop", "skip"),
        default="stop",
        help="what a picture that cannot be read does (default: stop)",
    )
    add_common_arguments(parser, "data", "device", "json", "quiet")
    arguments = parser.parse_args(argv)
    if arguments.scales and arguments.crops > 1:
        parser.error("--crops and --scales are two ways to test: give one of them")

    from detres.classification.crops import Views
    from detres.classification.data import read_image_labels, select_classes
    from detres.classification.evaluate import average_scores, classify_images, read_members
    from detres.console import table
    from detres.data.config import Source
    from detres.errors import UserError

    if arguments.data is None:
        raise UserError(
            "--data is missing: name the pictures to test on, e.g. --data tiny-imagenet.zip --split val"
        )
    if arguments.batch < 1 or arguments.workers < 0 or min(arguments.scales, default=1) < 1:
        raise UserError("--batch and --scales must be at least 1, --workers at least 0")
    device = select_device(arguments.device)
    views = Views(arguments.crops, tuple(arguments.scales), arguments.flip)
    members = read_members(arguments.weights, device)
    names, crop = members[0].class_names, members[0].crop
    source = Source(dir=arguments.data, split=arguments.split)
    images = select_classes(read_image_labels([source], side=crop.test_side or crop.size), names)
    begun = time.perf_counter()
    scores = []
    for member in members:
        found = classify_images(
            member,
            select_classes(images, member.class_names),
            views,
            batch=arguments.batch,
            workers=arguments.workers,
            device=device,
            skip_unreadable=arguments.unreadable == "skip",
            quiet=arguments.quiet,
        )
        scores.append(found.in_order(member.order_for(names)))
    figures = average_scores(scores).figures()
    seconds = (time.perf_counter() - begun) / max(figures.images, 1)
    left_out = f", {figures.left_out} that cannot be read left out" if figures.left_out else ""
    print(f"{images.source}: {figures.images} pictures{left_out}; {views}")
    rows = [
        (member.source, *one.figures().errors().values()) for member, one in zip(members, scores, strict=True)
    ]
    if len(members) > 1:
        rows.append((f"ensemble of {len(members)}", *figures.errors().values()))
    table("", ("weights", *figures.errors()), rows)
    content = {
        "figures": figures.errors(),
        "images": figures.images,
        "left_out": figures.left_out,
        "views": str(views),
        "seconds_per_image": round(seconds, 6),
    }
    if len(members) > 1:
        content["members"] = {
            member.source: one.figures().errors() for member, one in zip(members, scores, strict=True)
        }
    write_json(arguments.json, content)
    return None
