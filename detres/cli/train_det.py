"""`detres train-det`: train a Faster R-CNN."""

from __future__ import annotations

from detres.cli.common import add_common_arguments, tool_parser, write_report
from detres.cli.train_common import default_out, log_configuration

EXAMPLE = """
python3 tools/train_det.py --cfg finetune --data path/to/pictures_and_boxes
python3 tools/train_det.py --cfg voc/bccd_r18_c4 --out runs/cells --set train.lr=0.002
python3 tools/train_det.py --cfg voc/bccd_r18_c4 --out runs/cells --resume
"""


def main(argv: list[str]) -> None:
    """Parse, train, print the best figures."""
    parser = tool_parser(
        "train-det", "Train a Faster R-CNN detector; --out gets weights, metrics and pictures.", EXAMPLE
    )
    add_common_arguments(
        parser, "cfg", "set", "data", "init", "out", "resume", "overwrite", "device", "json", "quiet"
    )
    parser.add_argument(
        "--split", metavar="NAME", help="split of --data to train on (default: train, or its only one)"
    )
    parser.add_argument(
        "--format", metavar="coco|voc|yolo|imagenet_det", help="format of --data, where the folder holds two"
    )
    arguments = parser.parse_args(argv)
    if not arguments.data and (arguments.split or arguments.format):
        parser.error("--split and --format say how to read --data DIR, which is not given")

    from detres.config import load_config
    from detres.console import table
    from detres.detection.config import DetectionConfig
    from detres.detection.data import with_data, with_init
    from detres.detection.train import read_training, train_detector
    from detres.devices import select_device
    from detres.tasks.start import with_network
    from detres.training.run_folder import RunFolder

    config = load_config(DetectionConfig, arguments.cfg, arguments.set)
    config = with_data(config, arguments.data, split=arguments.split, format=arguments.format)
    config = with_init(config, arguments.init)
    device, quiet, resume = select_device(arguments.device), arguments.quiet, arguments.resume
    out = arguments.out or default_out(arguments.cfg, "train_det")
    data, start = read_training(config, device, out if resume else None)
    config = with_network(config, start.network)
    with RunFolder.open(out, config, resume=resume, overwrite=arguments.overwrite) as run:
        log_configuration(config)
        figures = train_detector(config, data, start, run, device, resume=resume, quiet=quiet)
    table("Best figures", ("figure", "value"), figures.items())
    print(f"weights: {run.weights}")
    write_report(arguments.json, {"figures": figures, "weights": str(run.weights)})
