"""Train a classifier, from scratch or from a backbone.

He et al. 2015, §3.4. Its weights are what a detector starts from, after `bn-stats`.
"""

from __future__ import annotations

import json
from pathlib import Path

from detres.cli.common import add_common_arguments, tool_parser, write_json
from detres.cli.train_common import log_configuration
from detres.devices import select_device

EXAMPLE = """
detres train-cls --cfg configs/classification/tiny_r18.yaml
detres train-cls --data my_pictures --init torchvision:resnet18 --set train.lr=0.01 --out runs/mine
"""


def main(argv: list[str]) -> int | None:
    """Run `detres train-cls`."""
    parser = tool_parser("train-cls", "Train a classifier (paper: §3.4).", EXAMPLE)
    add_common_arguments(
        parser, "cfg", "set", "data", "init", "out", "resume", "overwrite", "device", "json", "quiet"
    )
    arguments = parser.parse_args(argv)

    from detres.classification.config import ClassificationConfig
    from detres.classification.data import sources_of
    from detres.classification.task import read_training_images, train_classifier
    from detres.config import load_config
    from detres.console import table
    from detres.training.run_folder import RunFolder
    from detres.weights.starting import with_network

    overrides = []
    if arguments.data:
        for key, sources in zip(("train", "val"), sources_of(arguments.data), strict=True):
            overrides.append(f"data.{key}={json.dumps([source.model_dump() for source in sources])}")
    if arguments.init:
        overrides.append(f"model.init={json.dumps(arguments.init)}")
    config = load_config(ClassificationConfig, arguments.cfg, [*overrides, *arguments.set])
    config = with_network(config)
    device = select_device(arguments.device)
    out = arguments.out or Path("runs") / (arguments.cfg.stem if arguments.cfg else "classification")
    # Data at fault must not cost the run that is replaced.
    data = read_training_images(config) if arguments.overwrite else None
    with RunFolder.open(out, config, resume=arguments.resume, overwrite=arguments.overwrite) as run:
        log_configuration(config)
        figures = train_classifier(
            config, run, device, data=data, resume=arguments.resume, quiet=arguments.quiet
        )
        table("Best figures", ("figure", "value"), figures.items())
        print(f"weights: {run.weights}")
    write_json(arguments.json, {"figures": figures, "weights": str(run.weights)})
    return None
