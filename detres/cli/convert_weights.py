"""`detres convert-weights`: from torchvision, timm, detectron2, Caffe and published CIFAR networks to detres, and back.

He et al. 2015, §3.3-3.4: preprocessing, stride, pool and eps are recognized in the file and written into the result.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detres.cli.common import add_common_arguments, tool_parser, write_report

if TYPE_CHECKING:
    from detres.weights.foreign import Backbone

EXAMPLE = """
detres convert-weights R-50.pkl resnet50_msra.safetensors
detres convert-weights resnet20-12fca82f.th resnet20.safetensors
detres convert-weights runs/imagenet/r50/model.safetensors resnet50.pth --to torchvision
"""


def main(argv: list[str]) -> int | None:
    """Run `detres convert-weights`."""
    parser = tool_parser(
        "convert-weights", "Convert a network's weights together with their recipe.", EXAMPLE
    )
    add = parser.add_argument
    add("input", metavar="IN", help="a weights file in any layout, or torchvision:resnet50")
    add("output", metavar="OUT", type=Path, help="the file to write (.safetensors; torchvision's also .pth)")
    add("--to", choices=("detres", "torchvision"), default="detres", help="layout to write (default: detres)")
    add(
        "--classes",
        type=Path,
        metavar="FILE|DIR",
        help="names of the outputs in order: a text file, one a line, or the data they were trained on",
    )
    add_common_arguments(parser, "json", "quiet")
    arguments = parser.parse_args(argv)

    from detres.classification.convert import convert_to_detres, convert_to_torchvision
    from detres.errors import UserError

    if arguments.to == "torchvision":
        if arguments.classes:
            raise UserError("--classes: torchvision's layout has no class names; leave it out")
        backbone, foreign = convert_to_torchvision(arguments.input, arguments.output)
    else:
        if arguments.output.suffix != ".safetensors":
            raise UserError(f"{arguments.output}: a weights file of detres ends in .safetensors")
        names = _names(arguments.classes) if arguments.classes else None
        backbone, foreign = convert_to_detres(arguments.input, arguments.output, names), []
    facts = _facts(backbone)
    if not arguments.quiet:
        from detres.console import table

        print(arguments.input)
        table("", ("key", "value"), facts.items())
    for difference in foreign:
        print(f"differs from torchvision's networks: {difference}")
    if backbone.missing and arguments.to == "torchvision":
        print(f"partial network: {len(backbone.missing)} tensors are missing")
    print(f"{arguments.output}: {len(backbone.tensors)} tensors, for {arguments.to}")
    write_report(
        arguments.json, {**facts, "weights": str(arguments.output), "missing": list(backbone.missing)}
    )
    return None


def _facts(backbone: Backbone) -> dict[str, str]:
    """What the file tells about the network and its recipe."""
    from detres.errors import listed
    from detres.networks.config import NetworkConfig

    network, preprocessing = NetworkConfig.model_validate(backbone.network), backbone.preprocessing
    norms = "constant scale and offset" if backbone.folded else "statistics in the file"
    facts = {"layout": backbone.layout, "network": network.name, "shortcut": network.shortcut}
    if network.name.startswith("vgg"):
        facts = {"layout": backbone.layout, "network": network.name, "max pool": network.pool}
    elif not network.name.startswith("cifar"):
        facts |= {"stride in": network.stride_in, "max pool": network.pool}
    if not network.name.startswith("vgg"):
        facts |= {"eps": f"{network.eps:g}", "BN": norms}
    return facts | {
        "channels": f"{preprocessing.channel_order}, 0..{preprocessing.value_range}",
        "mean": listed(f"{number:.6g}" for number in preprocessing.mean),
        "std": listed(f"{number:.6g}" for number in preprocessing.std),
    }


def _names(path: Path) -> tuple[str, ...]:
    """The class names in a text file, or those of a data set."""
    from detres.classification.data import read_image_labels, sources_of
    from detres.data.files import read_names

    if path.is_file() and path.suffix in (".txt", ".names", ""):
        return tuple(read_names(path))
    return read_image_labels(sources_of(str(path))[0]).class_names
