"""Training and test error of several runs over their iterations, as in Figures 1, 4 and 6.

He et al. 2015, §4.1 and §4.2: thin and dashed for training error, bold for test error.
"""

from __future__ import annotations

from pathlib import Path

from detres.cli.common import add_common_arguments, tool_parser, write_json

EXAMPLE = "detres plot-runs runs/cifar_plain20 runs/cifar_plain56 runs/cifar_resnet20 --out figure6.png"
IMAGES = (".png", ".svg", ".pdf")


def main(argv: list[str]) -> int | None:
    """Run `detres plot-runs`."""
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
    arguments = parser.parse_args(argv)

    import logging

    from detres.console import table
    from detres.errors import UserError
    from detres.report.runs import plot_errors, read_curves

    labels = arguments.labels or [folder.resolve().name for folder in arguments.runs]
    if len(labels) != len(arguments.runs) or len(set(labels)) != len(labels):
        raise UserError(f"--labels: {len(set(labels))} different names for {len(arguments.runs)} runs")
    if arguments.smooth < 1 or (arguments.highest is not None and arguments.highest <= 0):
        raise UserError("--smooth must be at least 1, --highest more than 0")
    if arguments.out and arguments.out.suffix not in IMAGES:
        raise UserError(f"--out {arguments.out}: a picture ends in {', '.join(IMAGES)}")
    runs = {
        label: read_curves(
            folder, train=arguments.train_key, test=arguments.test_key, smooth=arguments.smooth
        )
        for label, folder in zip(labels, arguments.runs, strict=True)
    }
    for label, curves in runs.items():
        for points, key in ((curves.train, arguments.train_key), (curves.test, arguments.test_key)):
            if not points:
                logging.getLogger("detres").warning("%s has no %s: that curve is left out", label, key)
    final = {
        label: {
            "train": curves.train[-1][1] if curves.train else None,
            "test": curves.test[-1][1] if curves.test else None,
            "best_test": min(error for _, error in curves.test) if curves.test else None,
            "iterations": max(points[-1][0] for points in (curves.train, curves.test) if points),
        }
        for label, curves in runs.items()
    }
    columns = ("run", "iterations", "training error", "test error", "best test error")
    rows = [
        (label, found["iterations"], found["train"], found["test"], found["best_test"])
        for label, found in final.items()
    ]
    table("Last errors", columns, rows)
    if arguments.out:
        plot_errors(runs, arguments.out, highest=arguments.highest)
        print(f"{arguments.out}: training error thin and dashed, test error bold")
    write_json(
        arguments.json,
        {
            "runs": {
                label: {"final": final[label], "train": curves.train, "test": curves.test}
                for label, curves in runs.items()
            }
        },
    )
    return None
