"""`detres plot-runs`: training and test error of several runs over their iterations, as in Figures 1, 4 and 6.

He et al. 2015, §4.1 and §4.2: thin and dashed for training error, bold for test error.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from detres.cli.common import add_common_arguments, tool_parser, write_report
from detres.errors import UserError

if TYPE_CHECKING:
    import argparse

    from detres.report.runs import RunCurves

EXAMPLE = "detres plot-runs runs/cifar_plain20 runs/cifar_plain56 runs/cifar_resnet20 --out figure6.png"
PLOT_SUFFIXES = (".png", ".svg", ".pdf")

log = logging.getLogger("detres")


def main(argv: list[str]) -> None:
    """Plot as the command line says."""
    options = _parse(argv)
    from detres.console import table
    from detres.report.runs import plot_errors, read_curves

    runs = {
        label: read_curves(folder, train=options.train_key, test=options.test_key, smooth=options.smooth)
        for label, folder in zip(options.labels, options.runs, strict=True)
    }
    for label, curves in runs.items():
        for points, key in ((curves.train, options.train_key), (curves.test, options.test_key)):
            if not points:
                log.warning("%s has no %s: that curve is left out", label, key)
    final = {label: _last_errors(curves) for label, curves in runs.items()}
    table(
        "Last errors",
        ("run", "iterations", "training error", "test error", "best test error"),
        [
            (label, *(errors[key] for key in ("iterations", "train", "test", "best_test")))
            for label, errors in final.items()
        ],
    )
    if options.out:
        plot_errors(runs, options.out, highest=options.highest)
        print(f"{options.out}: training error thin and dashed, test error bold")
    report = {
        label: {"final": final[label], "train": curves.train, "test": curves.test}
        for label, curves in runs.items()
    }
    write_report(options.json, {"runs": report})


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = tool_parser("plot-runs", "Error curves of runs, from their metrics.jsonl.", EXAMPLE)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    add("--out", type=Path, metavar="IMAGE", help="the plot to write (.png, .svg, .pdf)")
    add("--labels", nargs="+", metavar="NAME", help="names of the runs (default: their folders')")
    add("--train-key", default="train/top1_error", metavar="KEY", help="(default: train/top1_error)")
    add("--test-key", default="val/top1_error", metavar="KEY", help="(default: val/top1_error)")
    add("--smooth", type=int, default=1, metavar="N", help="training error: mean of N lines (default: 1)")
    add("--highest", type=float, metavar="PERCENT", help="upper end of the error axis (default: as needed)")
    add_common_arguments(parser, "json", "quiet")
    options = parser.parse_args(argv)
    options.labels = options.labels or [folder.resolve().name for folder in options.runs]
    names, runs = len(set(options.labels)), len(options.runs)
    if len(options.labels) != runs or names != runs:
        raise UserError(f"--labels: {names} different names for {runs} runs")
    if options.smooth < 1 or (options.highest is not None and options.highest <= 0):
        raise UserError("--smooth must be at least 1, --highest more than 0")
    if options.out and options.out.suffix not in PLOT_SUFFIXES:
        raise UserError(f"--out {options.out}: the file name should end in {', '.join(PLOT_SUFFIXES)}")
    return options


def _last_errors(curves: RunCurves) -> dict[str, float | int | None]:
    return {
        "train": curves.train[-1][1] if curves.train else None,
        "test": curves.test[-1][1] if curves.test else None,
        "best_test": min(error for _, error in curves.test) if curves.test else None,
        "iterations": max(points[-1][0] for points in (curves.train, curves.test) if points),
    }
