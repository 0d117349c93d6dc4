"""Train a classifier, from scratch or from a backbone.

He et al. 2015, §3.4. After `bn-stats`, a detector can start from its weights.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from detres.cli.common import add_common_arguments, tool_parser, write_report
from detres.cli.train_common import default_out, log_configuration
from detres.devices import select_device

if TYPE_CHECKING:
    from detres.classification.config import ClassificationConfig

EXAMPLE = """
detres train-cls --cfg classification/tiny_r18 --out runs/tiny_r18
detres train-cls --data my_pictures --init torchvision:resnet18 --set train.lr=0.01 --out runs/mine
"""


def main(argv: list[str]) -> int | None:
    """Run `detres train-cls`."""
    parser = tool_parser("train-cls", "Train a classifier (paper: §3.4).", EXAMPLE)
    add_common_arguments(
        parser, "cfg", "set", "data", "init", "out", "resume", "overwrite", "device", "json", "quiet"
    )
    arguments = parser.parse_args(argv)

    from detres.classification.task import prepare_classifier, train_classifier
    from detres.console import table
    from detres.training.run_folder import RunFolder

    device = select_device(arguments.device)
    setup = prepare_classifier(_read_config(arguments), device)
    out = arguments.out or default_out(arguments.cfg, "classification")
    with RunFolder.open(out, setup.config, resume=arguments.resume, overwrite=arguments.overwrite) as run:
        log_configuration(setup.config)
        figures = train_classifier(setup, run, device, resume=arguments.resume, quiet=arguments.quiet)
        table("Best figures", ("figure", "value"), figures.items())
        print(f"weights: {run.weights}")
    write_report(arguments.json, {"figures": figures, "weights": str(run.weights)})
    return None


def _read_config(arguments: argparse.Namespace) -> ClassificationConfig:
    """The configuration with `--data`, `--init` and `--set`, in order of rising precedence."""
    from detres.classification.config import ClassificationConfig
    from detres.classification.data import sources_of
    from detres.config import load_config

    overrides = []
    if arguments.data:
        for key, sources in zip(("train", "val"), sources_of(arguments.data), strict=True):
            overrides.append(f"data.{key}={json.dumps([source.model_dump() for source in sources])}")
    if arguments.init:
        overrides.append(f"model.init={json.dumps(arguments.init)}")
    return load_config(ClassificationConfig, arguments.cfg, [*overrides, *arguments.set])
