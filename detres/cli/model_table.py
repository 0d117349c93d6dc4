"""`detres model-table`: output sizes, parameters and multiply-adds of every network and detector, as in Table 1.

He et al. 2015, Table 1, Table 6, Appendix A.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from detres.cli.common import add_common_arguments, tool_parser, write_report
from detres.errors import UserError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from detres.report.model_table import DetectorRow, NetworkRow

EXAMPLE = """
detres model-table
detres model-table --side 128 --short-side 400 --long-side 600 --regions 100 --json models.json
"""
PROPOSALS = 300  # regions per image in the paper's tests
TABLE_1_OPTIONS = ("option B", "option B, stride in the 1x1")


def main(argv: list[str]) -> None:
    """Count and print as the command line says."""
    options = _parse(argv)
    from detres.report.model_table import detector_rows, network_rows

    networks = network_rows(options.side)
    detectors = detector_rows(options.short_side, options.long_side, options.classes)
    totals: Counter[str] = Counter()
    for row in detectors:
        runs = options.regions if row.part == "head per region" else 1
        totals[row.network] += runs * row.multiply_adds
    _print_networks(networks, options.side)
    _print_detectors(detectors, totals, options)
    write_report(
        options.json,
        {
            "networks": [asdict(row) for row in networks],
            "detectors": [asdict(row) for row in detectors],
            "image": {"regions": options.regions, "multiply_adds": totals},
        },
    )


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = tool_parser(
        "model-table", "Table 1 for every network, and the detectors built on them.", EXAMPLE
    )
    add = parser.add_argument
    add("--side", type=int, default=224, metavar="N", help="input of the ImageNet networks (default: 224)")
    add("--short-side", type=int, default=600, metavar="N", help="input of the detectors (default: 600)")
    add("--long-side", type=int, default=1000, metavar="N", help="(default: 1000)")
    add("--classes", type=int, default=80, metavar="K", help="classes of the detectors (default: 80)")
    add("--regions", type=int, default=PROPOSALS, metavar="N", help="regions per image (default: 300)")
    add_common_arguments(parser, "json")
    options = parser.parse_args(argv)
    if min(options.side, options.short_side, options.long_side) < 32:
        raise UserError("--side, --short-side and --long-side must be at least 32")
    if min(options.classes, options.regions) < 1:
        raise UserError("--classes and --regions must be at least 1")
    return options


def _print_networks(networks: Sequence[NetworkRow], side: int) -> None:
    from detres.console import table
    from detres.report.model_table import STAGES

    columns = [row for row in networks if row.name.startswith("resnet") and row.options in TABLE_1_OPTIONS]
    stages = []
    for number, stage in enumerate(STAGES):
        blocks = ["7x7" if number == 0 else str(row.blocks[number - 1]) for row in columns]
        stages.append((stage, f"{columns[0].sizes[number]} px", *blocks))
    title = f"Table 1: blocks of each stage and output sizes at {side} px"
    table(title, ("stage", "output", *(row.name for row in columns)), stages)
    table(
        "Networks; the last column is the paper's: multiply-adds, or parameters of a CIFAR network",
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


def _print_detectors(
    detectors: Sequence[DetectorRow], totals: Mapping[str, int], options: argparse.Namespace
) -> None:
    from detres.console import table

    table(
        f"Detectors at {options.short_side} x {options.long_side}, {options.classes} classes",
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
    table(
        f"One image with {options.regions} regions",
        ("network", "multiply-adds"),
        [(name, f"{total:,}") for name, total in totals.items()],
    )
