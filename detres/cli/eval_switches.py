"""`detres eval-switches`: what refinement, voting, several scales and flip give on a data set, and what they cost."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from detres.cli.common import add_common_arguments, tool_parser, write_json
from detres.cli.eval_common import DATA_HELP, add_format, parse_test_options, read_detector
from detres.errors import UserError
from detres.files import refuse_blocked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from detres.report.switches import RowResult

log = logging.getLogger("detres")

EXAMPLE = """
detres eval-switches --weights runs/cells/model.safetensors --data data/cells --split test
detres eval-switches --weights a.safetensors b.safetensors --data coco --split val --rows plain,refine_vote,all
detres eval-switches --weights context.safetensors --data coco --split val --against rows/plain.json
"""


def main(arguments: list[str]) -> None:
    """Measure as the command line says."""
    parser = tool_parser(
        "eval-switches",
        "Appendix B's test-time improvements on a data set, row by row: figures, seconds, multiply-adds, and the"
        " difference to the row that each is built on.",
        EXAMPLE,
    )
    add = parser.add_argument
    add("--weights", nargs="+", required=True, metavar="FILE", help="weights to test; several: an ensemble")
    add("--data", required=True, metavar="DIR", help=DATA_HELP)
    add("--split", metavar="NAME", help="split of --data")
    add_format(parser)
    add(
        "--scales",
        type=_numbers,
        metavar="N,N,...",
        help="shorter sides of the rows with several (default: the paper's 200 to 1000 where the network has 600)",
    )
    add("--rows", type=_names, metavar="NAME,NAME,...", help="some of the rows (default: all)")
    add(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="resamples of the pictures for 95 %% intervals (default: 1000; 0: none)",
    )
    add(
        "--against",
        type=Path,
        metavar="FILE",
        help="results (COCO json) of another detector on the same pictures, which the plain row is compared to",
    )
    add("--save-results", type=Path, metavar="DIR", help="write each row's detections (COCO json)")
    add_common_arguments(parser, "set", "device", "json", "quiet")
    options = parser.parse_args(arguments)
    if options.bootstrap < 0:
        raise UserError(f"--bootstrap {options.bootstrap}: should be a number of resamples, such as 1000")
    if options.against is not None and not options.bootstrap:
        raise UserError(
            "--against: the difference is an interval over resamples; say how many with --bootstrap 1000"
        )
    refuse_blocked(options.json, *([options.save_results / "plain.json"] if options.save_results else []))
    from detres.evaluation.results_files import read_results, write_coco_results
    from detres.report.switches import ROWS, measure_rows, rows_named

    rows = rows_named(options.rows) if options.rows else list(ROWS)
    detector, truth = read_detector(options)
    if not len(truth.boxes):
        raise UserError(f"{truth.source}: no objects are annotated, so that no row has a figure")
    against = read_results(options.against, truth, options.split) if options.against is not None else None
    of_all = {"images": len(truth), "weights": options.weights, "ground_truth": truth.source}
    results = []
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
        if options.save_results is not None:
            write_coco_results(options.save_results / f"{result.row.name}.json", truth, result.detections)
        measured = {result.row.name: result.to_json() for result in results}
        write_json(options.json, {"rows": measured, **of_all})  # after each row: a later one may be stopped
        log.info("%s", _line(result))
    _print(results)
    print(f"{len(truth)} pictures: {truth.source}")


def _print(results: Sequence[RowResult]) -> None:
    from detres.console import table

    names = ("AP", "AP50", "AP75")
    table(
        "Figures, 95 % intervals over pictures; mAP: VOC's; seconds and multiply-adds a picture",
        ("row", "AP", "95 %", "AP50", "95 %", "AP75", "mAP", "s", "multiply-adds"),
        [
            (
                result.row.name,
                result.figures["AP"],
                _range(result.intervals, "AP"),
                result.figures["AP50"],
                _range(result.intervals, "AP50"),
                result.figures["AP75"],
                result.figures["mAP"],
                f"{result.seconds:.2f}",
                f"{result.multiply_adds / 1e9:.1f}e9",
            )
            for result in results
        ],
    )
    compared = [result for result in results if result.less_before or result.less_plain]
    if not compared:
        return
    table(
        "Differences, 95 % intervals on the same resamples of the pictures",
        ("row", "less", *names),
        [
            (result.row.name, other, *(_range(found, name, "+") for name in names))
            for result in compared
            for other, found in (
                (result.row.before or "--against", result.less_before),
                ("plain", result.less_plain),
            )
            if found
        ],
    )


def _line(result: RowResult) -> str:
    figures = ", ".join(f"{name} {value:.3f}" for name, value in result.figures.items() if value is not None)
    return f"{result.row.name}: {figures}, {result.seconds:.2f} s a picture"


def _range(intervals: Mapping[str, tuple[float, float]], name: str, sign: str = "") -> str:
    if name not in intervals:
        return ""
    low, high = intervals[name]
    return f"{low:{sign}.3f} to {high:{sign}.3f}"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise UserError(
            f"--scales {text}: should be shorter sides in rising order, such as 400,600,800"
        ) from None
