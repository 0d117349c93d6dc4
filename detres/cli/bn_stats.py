"""Write exact BN statistics into a classifier's weights, frozen.

He et al. 2015, Appendix A. A detector starts from the result (`train-det --init`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from detres.cli.common import add_common_arguments, tool_parser, write_report
from detres.devices import select_device
from detres.errors import UserError

if TYPE_CHECKING:
    from detres.classification.bn_statistics import LayerDifference, StatisticsReport

EXAMPLE = """
detres bn-stats --weights runs/tiny_r18/model.safetensors --data tiny-imagenet.zip --out backbone.safetensors
"""


def main(argv: list[str]) -> int | None:
    """Run `detres bn-stats`."""
    arguments = _parse(argv)

    from detres.classification.bn_statistics import write_statistics
    from detres.classification.classifier import crop_of, read_classifier
    from detres.classification.data import read_image_labels, sources_of
    from detres.data.config import Source

    sources = sources_of(arguments.data)[0]
    if arguments.split:
        sources = [Source(dir=arguments.data, split=arguments.split)]
    crop = crop_of(read_classifier(arguments.weights)[2])
    report = write_statistics(
        arguments.weights,
        read_image_labels(sources, side=crop.test_side or crop.size),
        arguments.out,
        num_images=arguments.images,
        everywhere=arguments.all,
        exact=arguments.exact,
        batch=arguments.batch,
        workers=arguments.workers,
        device=select_device(arguments.device),
        quiet=arguments.quiet,
    )
    _print_report(report, arguments.out)
    write_report(arguments.json, {**asdict(report), "weights": str(arguments.out)})
    return None


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = tool_parser(
        "bn-stats", "BN statistics pooled over training images, written back frozen.", EXAMPLE
    )
    add = parser.add_argument
    add("--weights", type=Path, required=True, metavar="FILE", help="weights of a classifier")
    add("--split", metavar="NAME", help="split of the data (default: train, or the only one)")
    add("--images", type=int, default=10_000, metavar="N", help="number of images (default: 10000, or all)")
    add("--out", type=Path, required=True, metavar="FILE", help="the weights file to write (.safetensors)")
    exact = "layer by layer: equal to one batch of all images; takes one pass for each layer"
    add("--exact", action="store_true", help=exact)
    add("--all", action="store_true", help="also BN that was constant in training (changes the outputs)")
    add("--batch", type=int, default=64, metavar="N", help="crops at once (default: 64)")
    add("--workers", type=int, default=2, metavar="N", help="processes that decode (default: 2)")
    add_common_arguments(parser, "data", "device", "json", "quiet")
    arguments = parser.parse_args(argv)
    if arguments.data is None:
        raise UserError("--data is missing: name the images that the network was trained on")
    if min(arguments.images, arguments.batch) < 1 or arguments.workers < 0:
        raise UserError("--images and --batch must be at least 1, --workers at least 0")
    if arguments.out.suffix != ".safetensors":
        raise UserError(f"--out {arguments.out}: a weights file ends in .safetensors")
    return arguments


def _print_report(report: StatisticsReport, out: Path) -> None:
    kept = f", {report.constant} kept theirs (constant in training)" if report.constant else ""
    print(
        f"{out}: statistics of {report.layers} BN layers over {report.images} images{kept}; all BN constant"
    )
    change = report.change
    print(
        f"on {change.images} images the logits change by {change.logits:.3f} of their spread, the best class of "
        f"{change.classes:.1%}"
    )
    if report.one_pass:
        _print_differences(report.one_pass)


def _print_differences(layers: Sequence[LayerDifference]) -> None:
    """Print three layers: the first, for which one pass is exact, the median and the worst."""
    from detres.console import table

    in_order = sorted(layers, key=lambda layer: layer.variance)
    shown = {"first": layers[0], "median": in_order[len(in_order) // 2], "worst": in_order[-1]}
    rows = [
        (which, layer.layer, f"{layer.mean:.2g}", f"{layer.variance:.2g}") for which, layer in shown.items()
    ]
    table("One pass would have been off by", ("layer", "name", "mean (deviations)", "variance (share)"), rows)
