"""`detres eval-tta`: what refinement, voting, several scales and flip gain on a data set, and what they cost."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detres.cli.common import add_common_arguments, named_inputs, tool_parser, write_report
from detres.cli.eval_common import (
    DATA_HELP,
    add_format_argument,
    check_bootstrap,
    format_interval,
    parse_test_options,
    read_detector,
)
from detres.errors import UserError
from detres.files import check_outputs

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from detres.report.eval_tta import Row, RowResult

log = logging.getLogger("detres")

EXAMPLE = """
detres eval-tta --weights runs/cells/model.safetensors --data data/cells --split test
detres eval-tta --weights a.safetensors b.safetensors --data coco --split val --rows plain,refine_vote,all_four
detres eval-tta --weights context.safetensors --data coco --split val --against rows/plain.json
"""


def main(arguments: list[str]) -> None:
    """Measure as the command line says."""
    options = _parse(arguments)
    from detres.report.eval_tta import ROWS, select_rows

    rows = select_rows(options.rows) if options.rows else list(ROWS)
    targets = {}
    if options.save_results is not None:
        targets = {row.name: options.save_results / f"{row.name}.json" for row in rows}
    check_outputs([options.json, *targets.values()], named_inputs(options), overwrite=True)
    results: list[RowResult] = []
    try:
        _measure(options, rows, targets, results)
    finally:  # the rows that are measured are printed even if a later one is interrupted
        if results:
            _print(results)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = tool_parser(
        "eval-tta",
        "Appendix B's test-time improvements on a data set, row by row: figures, seconds, multiply-adds, and the"
        " difference to the row that each is based on.",
        EXAMPLE,
    )
    add = parser.add_argument
    add(
        "--weights",
        nargs="+",
        required=True,
        metavar="FILE",
        help="weights to test; several form an ensemble",
    )
    add("--data", required=True, metavar="DIR", help=DATA_HELP)
    add("--split", metavar="NAME", help="split of --data")
    add_format_argument(parser)
    add(
        "--scales",
        type=_parse_scales,
        metavar="N,N,...",
        help="shorter sides of the rows with several scales (default: the paper's, 200 to 1000 for a network of 600)",
    )
    add(
        "--rows",
        type=_parse_names,
        metavar="NAME,NAME,...",
        help="of plain, vote, refine, refine_vote, scales, flip, refine_vote_scales, all_four (default: every row)",
    )
    add(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="resamples of the images for 95 %% intervals (default: 1000; 0: none)",
    )
    add(
        "--against",
        type=Path,
        metavar="FILE",
        help="results (COCO json) of another detector on the same images, which the plain row is compared with",
    )
    add("--save-results", type=Path, metavar="DIR", help="write each row's detections (COCO json)")
    add_common_arguments(parser, "set", "device", "json", "quiet")
    options = parser.parse_args(arguments)
    check_bootstrap(options)
    return options


def _measure(
    options: argparse.Namespace, rows: list[Row], targets: dict[str, Path], results: list[RowResult]
) -> None:
    """Measure the rows into `results`; each is written as soon as it is done."""
    from detres.evaluation.results_files import read_results, write_coco_results
    from detres.report.eval_tta import measure_rows

    detector, truth = read_detector(options)
    if truth.crowd.all():
        raise UserError(f"{truth.source}: no objects are annotated, so that no row has a figure")
    against = read_results(options.against, truth, options.split) if options.against is not None else None
    report: dict[str, Any] = {
        "rows": {},
        "complete": False,
        "images": len(truth),
        "weights": options.weights,
        "ground_truth": truth.source,
        "against": None if options.against is None else str(options.against),
        "resamples": options.bootstrap,
    }
    for result in measure_rows(
        detector,
        truth,
        rows,
        scales=options.scales,
        options=parse_test_options(options.set),
        resamples=options.bootstrap,
        against=against,
        quiet=options.quiet,
    ):
        results.append(result)
        if targets:
            write_coco_results(targets[result.row.name], truth, result.detections)
        report["rows"][result.row.name] = result.to_json()
        report["complete"] = len(results) == len(rows)
        write_report(options.json, report)
        figures = ", ".join(
            f"{name} {value:.3f}" for name, value in result.figures.items() if value is not None
        )
        log.info("%s: %s, %.3f s per image", result.row.name, figures, result.seconds)
    print(f"{len(truth)} images: {truth.source}")


def _print(results: Sequence[RowResult]) -> None:
    from detres.console import table
    from detres.report.eval_tta import AGAINST

    names = ("AP", "AP50", "AP75")
    table(
        "Figures with 95 % intervals over the images; mAP: VOC's; seconds and multiply-adds per image",
        ("row", "AP", "95 %", "AP50", "95 %", "AP75", "mAP", "s", "multiply-adds"),
        [
            (
                result.row.name,
                result.figures["AP"],
                format_interval(result.intervals, "AP"),
                result.figures["AP50"],
                format_interval(result.intervals, "AP50"),
                result.figures["AP75"],
                result.figures["mAP"],
                f"{result.seconds:.3f}",
                f"{result.multiply_adds / 1e9:.1f}e9",
            )
            for result in results
        ],
    )
    differences = [
        (
            result.row.name,
            f"--{other}" if other == AGAINST else other,
            *(format_interval(intervals, name, "+") for name in names),
        )
        for result in results
        for other, intervals in result.differences.items()
    ]
    if differences:
        table(
            "Differences: 95 % intervals on the same resamples of the images",
            ("row", "compared with", *names),
            differences,
        )


def _parse_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _parse_scales(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise UserError(
            f"--scales {text}: should be shorter sides in rising order, such as 400,600,800"
        ) from None
