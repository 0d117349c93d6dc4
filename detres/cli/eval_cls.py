"""Test a classifier: top-1 and top-5 errors on central crops.

He et al. 2015, §3.4 and §4.1.
"""

from __future__ import annotations

import time
from pathlib import Path

from detres.cli.common import add_common_arguments, tool_parser, write_json
from detres.devices import select_device

EXAMPLE = "detres eval-cls --weights runs/tiny_r18/model.safetensors --data tiny-imagenet.zip --split val"


def main(argv: list[str]) -> int | None:
    """Run `detres eval-cls`."""
    parser = tool_parser("eval-cls", "Top-1 and top-5 errors of a classifier on central crops.", EXAMPLE)
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="weights of a classifier")
    parser.add_argument("--split", metavar="NAME", help="split of the data (default: the only one)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="crops at once (default: 64)")
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes that decode (default: 2)"
    )
    add_common_arguments(parser, "data", "device", "json", "quiet")
    arguments = parser.parse_args(argv)

    from detres.classification.classifier import crop_of, read_classifier
    from detres.classification.pictures import read_pictures, select_classes
    from detres.classification.testing import evaluate_classifier
    from detres.console import table
    from detres.data.batching import ClassificationDataset
    from detres.data.config import Source
    from detres.errors import UserError

    if arguments.data is None:
        raise UserError(
            "--data is missing: name the pictures to test on, e.g. --data tiny-imagenet.zip --split val"
        )
    if arguments.batch < 1 or arguments.workers < 0:
        raise UserError("--batch must be at least 1, --workers at least 0")
    device = select_device(arguments.device)
    network, _, metadata = read_classifier(arguments.weights)
    crop = crop_of(metadata)
    source = Source(dir=arguments.data, split=arguments.split)
    pictures = select_classes(read_pictures([source], side=crop.test_side or crop.size), metadata.class_names)
    begun = time.perf_counter()
    found = evaluate_classifier(
        network.to(device),
        metadata.preprocessing,
        ClassificationDataset(pictures, crop, train=False),
        batch=arguments.batch,
        workers=arguments.workers,
        device=device,
        quiet=arguments.quiet,
    )
    seconds = (time.perf_counter() - begun) / found.images
    print(f"{arguments.weights} on {pictures.source}: {found.images} pictures")
    table("Central crop", ("figure", "value"), found.errors().items())
    write_json(
        arguments.json,
        {"figures": found.errors(), "images": found.images, "seconds_per_image": round(seconds, 6)},
    )
    return None
