"""Layer responses of trained networks as in Figure 7, with forward variances and gradient norms.

He et al. 2015, §4.2 (Figure 7) and §4.1.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from detres.cli.common import add_common_arguments, tool_parser, write_report
from detres.devices import select_device
from detres.errors import UserError

if TYPE_CHECKING:
    from detres.classification.responses import LayerResponse

EXAMPLE = """
detres layer-responses --weights runs/cifar10/plain20/model.safetensors runs/cifar10/r20/model.safetensors \
    --data cifar10.zip --split test --out figure7.png
"""
IMAGES = (".png", ".svg", ".pdf")


def main(argv: list[str]) -> int | None:
    """Run `detres layer-responses`."""
    arguments = _parse(argv)

    from detres.classification.classifier import crop_of, read_classifier
    from detres.classification.data import read_image_labels
    from detres.classification.responses import responses_of_weights
    from detres.data.config import Source
    from detres.report.responses import plot_responses

    crop = crop_of(read_classifier(arguments.weights[0])[2])
    source = Source(dir=arguments.data, split=arguments.split)
    images = read_image_labels([source], side=crop.test_side or crop.size)
    networks = {}
    for place, weights in enumerate(arguments.weights):
        name, layers = responses_of_weights(
            weights,
            images,
            num_images=arguments.images,
            batch=arguments.batch,
            workers=arguments.workers,
            device=select_device(arguments.device),
            quiet=arguments.quiet,
        )
        label = arguments.labels[place] if arguments.labels else _label(name, weights)
        if label in networks:
            raise UserError(f"two weights files are called {label}; --labels names them")
        networks[label] = [layer for layer in layers if arguments.all or layer.kernel == 3]
    _print_responses(networks, images.source)
    if arguments.out:
        plot_responses(networks, arguments.out)
        print(f"{arguments.out}: Figure 7, forward variances, gradient norms")
    content = {label: [asdict(layer) for layer in layers] for label, layers in networks.items()}
    write_report(arguments.json, {"networks": content, "images": min(arguments.images, len(images))})
    return None


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = tool_parser(
        "layer-responses", "Figure 7's two plots for any weights, and the signals of §4.1.", EXAMPLE
    )
    add = parser.add_argument
    add("--weights", type=Path, nargs="+", required=True, metavar="FILE", help="weights of classifiers")
    labels = "their names in the plots (default: network and run folder)"
    add("--labels", nargs="+", metavar="NAME", help=labels)
    add("--split", metavar="NAME", help="split of the data (default: the only one)")
    add("--images", type=int, default=1000, metavar="N", help="number of images (default: 1000)")
    add("--out", type=Path, metavar="IMAGE", help="the plots to write (.png, .svg, .pdf)")
    add("--all", action="store_true", help="all convolutions instead of the 3x3 ones that Figure 7 shows")
    add("--batch", type=int, default=64, metavar="N", help="crops at once (default: 64)")
    add("--workers", type=int, default=2, metavar="N", help="processes that decode (default: 2)")
    add_common_arguments(parser, "data", "device", "json", "quiet")
    arguments = parser.parse_args(argv)
    if arguments.data is None:
        raise UserError("--data is missing: name labeled images, e.g. --data cifar10.zip --split test")
    if min(arguments.images, arguments.batch) < 1 or arguments.workers < 0:
        raise UserError("--images and --batch must be at least 1, --workers at least 0")
    if arguments.labels and len(arguments.labels) != len(arguments.weights):
        raise UserError(f"--labels: {len(arguments.labels)} names for {len(arguments.weights)} weights files")
    if arguments.out and arguments.out.suffix not in IMAGES:
        raise UserError(f"--out {arguments.out}: an image ends in {', '.join(IMAGES)}")
    return arguments


def _print_responses(networks: dict[str, list[LayerResponse]], source: str) -> None:
    from detres.console import table

    rows = [
        (
            label,
            len(layers),
            f"{sum(layer.deviation for layer in layers) / len(layers):.3f}",
            f"{min(layer.forward_variance for layer in layers):.3g}",
            f"{min(layer.gradient_norm for layer in layers):.3g}",
            f"{max(layer.gradient_norm for layer in layers):.3g}",
        )
        for label, layers in networks.items()
    ]
    columns = ("network", "layers", "mean std", "least variance", "least gradient", "largest gradient")
    table(f"Layer responses on {source}", columns, rows)


def _label(network: str, weights: Path) -> str:
    """`plain20 (run folder)`: the network, and which weights file of it."""
    folder = weights.parent.name if weights.name == "model.safetensors" else weights.stem
    return f"{network} ({folder})"
