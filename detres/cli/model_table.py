"""Output sizes, parameters and multiply-adds of every network and detector, as in Table 1.

He et al. 2015, Table 1, Table 6, Appendix A.
"""

from __future__ import annotations

from dataclasses import asdict

from detres.cli.common import add_common_arguments, tool_parser, write_json

EXAMPLE = """
detres model-table
detres model-table --side 128 --short-side 400 --long-side 600 --regions 100 --json models.json
"""
PROPOSALS = 300  # regions of a picture in the paper's tests


def main(argv: list[str]) -> int | None:
    """Run `detres model-table`."""
    parser = tool_parser("model-table", "Table 1 of every network, detectors included.", EXAMPLE)
    add = parser.add_argument
    add("--side", type=int, default=224, metavar="N", help="input of the ImageNet networks (default: 224)")
    add("--short-side", type=int, default=600, metavar="N", help="pictures of the detectors (default: 600)")
    add("--long-side", type=int, default=1000, metavar="N", help="(default: 1000)")
    add("--classes", type=int, default=80, metavar="K", help="classes of the detectors (default: 80)")
    add("--regions", type=int, default=PROPOSALS, metavar="N", help="regions a picture (default: 300)")
    add_common_arguments(parser, "json")
    arguments = parser.parse_args(argv)

    from detres.console import table
    from detres.errors import UserError
    from detres.report.model_table import STAGES, detector_rows, network_rows

    if min(arguments.side, arguments.short_side, arguments.long_side) < 32:
        raise UserError("--side, --short-side and --long-side must be at least 32")
    if min(arguments.classes, arguments.regions) < 1:
        raise UserError("--classes and --regions must be at least 1")
    networks = network_rows(arguments.side)
    detectors = detector_rows(arguments.short_side, arguments.long_side, arguments.classes)
    residual = [row for row in networks if row.name.startswith("resnet") and row.options in _TABLE_1]
    table(
        f"Table 1: blocks of each stage and output sizes at {arguments.side} px",
        ("stage", "output", *(row.name for row in residual)),
        [
            (stage, f"{residual[0].sizes[place]} px", *(_blocks(row.blocks, place) for row in residual))
            for place, stage in enumerate(STAGES)
        ],
    )
    table(
        "Networks; beside them the paper's multiply-adds, of CIFAR networks its parameters",
        ("network", "options", "input", "parameters", "multiply-adds", "paper"),
        [
            (
                row.name,
                row.options,
                row.side,
                f"{row.parameters:,}",
                f"{row.multiply_adds:,}",
                "" if row.paper is None else f"{row.paper:.3g}",
            )
            for row in networks
        ],
    )
    table(
        f"Detectors at {arguments.short_side} x {arguments.long_side}, {arguments.classes} classes",
        ("network", "part", "output", "parameters", "multiply-adds"),
        [
            (
                row.network,
                row.part,
                " x ".join(map(str, row.output)),
                f"{row.parameters:,}",
                f"{row.multiply_adds:,}",
            )
            for row in detectors
        ],
    )
    totals = {}
    for row in detectors:
        times = arguments.regions if row.part == "head per region" else 1
        totals[row.network] = totals.get(row.network, 0) + times * row.multiply_adds
    table(
        f"One picture with {arguments.regions} regions",
        ("network", "multiply-adds"),
        [(name, f"{total:,}") for name, total in totals.items()],
    )
    write_json(
        arguments.json,
        {
            "networks": [asdict(row) for row in networks],
            "detectors": [asdict(row) for row in detectors],
            "picture": {"regions": arguments.regions, "multiply_adds": totals},
        },
    )
    return None


_TABLE_1 = ("option B", "option B, stride in the 1x1")


def _blocks(blocks: tuple[int, ...], place: int) -> str:
    """conv1 is one convolution; the stages behind it have blocks."""
    return "7x7" if place == 0 else str(blocks[place - 1])
