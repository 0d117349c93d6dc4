"""`detres eval-tta`: what refinement, voting, several scales and flip give on a data set, and what they cost."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detres.cli.common import add_common_arguments, tool_parser, write_json
from detres.cli.eval_common import (
    DATA_HELP,
    add_format,
    check_bootstrap,
    parse_test_options,
    read_detector,
)
from detres.errors import UserError
from detres.files import refuse_blocked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from detres.report.eval_tta import Intervals, RowResult

log = logging.getLogger("detres")

EXAMPLE = """
detres eval-tta --weights runs/cells/model.safetensors --data data/cells --split test
detres eval-tta --weights a.safetensors b.safetensors --data coco --split val --rows plain,refine_vote,all_four
detres eval-tta --weights context.safetensors --data coco --split val --against rows/plain.json
"""


def main(arguments: list[str]) -> None:
    """Measure as the command line says."""
    parser = tool_parser(
        "eval-tta",
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
    add(
        "--rows",
        type=_names,
        metavar="NAME,NAME,...",
        help="of plain, vote, refine, refine_vote, scales, flip, refine_vote_scales, all_four (default: every row)",
    )
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
    check_bootstrap(options)
    from detres.evaluation.results_files import read_results, write_coco_results
    from detres.report.eval_tta import ROWS, measure_rows, rows_named

    rows = rows_named(options.rows) if options.rows else list(ROWS)
    targets = {}
    if options.save_results is not None:
        targets = {row.name: options.save_results / f"{row.name}.json" for row in rows}
    _check_targets([options.json, *targets.values()], options.against)
    detector, truth = read_detector(options)
    if truth.crowd.all():
        raise UserError(f"{truth.source}: no objects are annotated, so that no row has a figure")
    against = read_results(options.against, truth, options.split) if options.against is not None else None
    written: dict[str, Any] = {
        "rows": {},
        "complete": False,
        "images": len(truth),
        "weights": options.weights,
        "ground_truth": truth.source,
        "against": None if options.against is None else str(options.against),
        "resamples": options.bootstrap,
    }
    results = []
    try:
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
            written["rows"][result.row.name] = result.to_json()
            written["complete"] = len(results) == len(rows)
            write_json(options.json, written)
            log.info("%s", _line(result))
    finally:  # what is measured is shown, though a later row is stopped
        if results:
            _print(results)
            print(f"{len(truth)} pictures: {truth.source}")


def _check_targets(targets: Sequence[Path | None], against: Path | None) -> None:
    """Before the work: what is written takes no place of what is read, and none of each other."""
    places = [path.resolve() for path in targets if path is not None]
    if against is not None and against.resolve() in places:
        raise UserError(f"{against} would be written over: choose another --save-results, or another --json")
    twice = [path for path in places if places.count(path) > 1]
    if twice:
        raise UserError(f"{twice[0]} would be written twice: choose another --json")
    refuse_blocked(*places)


def _print(results: Sequence[RowResult]) -> None:
    from detres.console import table
    from detres.report.eval_tta import AGAINST

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
                f"{result.seconds:.3f}",
                f"{result.multiply_adds / 1e9:.1f}e9",
            )
            for result in results
        ],
    )
    compared = [
        (
            result.row.name,
            f"--{other}" if other == AGAINST else other,
            *(_range(found, name, "+") for name in names),
        )
        for result in results
        for other, found in result.differences.items()
    ]
    if compared:
        table(
            "Differences, 95 % intervals on the same resamples of the pictures",
            ("row", "less", *names),
            compared,
        )


def _line(result: RowResult) -> str:
    figures = ", ".join(f"{name} {value:.3f}" for name, value in result.figures.items() if value is not None)
    return f"{result.row.name}: {figures}, {result.seconds:.3f} s a picture"


def _range(intervals: Intervals, name: str, sign: str = "") -> str:
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
