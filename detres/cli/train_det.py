"""`detres train-det`: train a Faster R-CNN."""

from __future__ import annotations

from pathlib import Path

from detres.cli.common import add_common_arguments, run, tool_parser, write_json
from detres.devices import select_device

EXAMPLE = """
python3 tools/train_det.py --cfg configs/finetune.yaml --data path/to/pictures_and_boxes
python3 tools/train_det.py --cfg configs/voc/bccd_r18_c4.yaml --out runs/cells --set train.lr=0.002
python3 tools/train_det.py --cfg configs/voc/bccd_r18_c4.yaml --out runs/cells --resume
"""


def main(argv: list[str]) -> None:
    """Parse, train, print the best figures."""
    parser = tool_parser(
        "train-det", "Train a Faster R-CNN detector; --out gets weights, metrics and pictures.", EXAMPLE
    )
    add_common_arguments(
        parser, "cfg", "set", "data", "init", "out", "resume", "overwrite", "device", "json", "quiet"
    )
    arguments = parser.parse_args(argv)

    from detres.config import differences, load_config
    from detres.console import log, table
    from detres.detection.config import DetectionConfig
    from detres.detection.train import train_detector, with_data, with_init
    from detres.training.run_folder import RunFolder

    config = load_config(DetectionConfig, arguments.cfg, arguments.set)
    config = with_init(with_data(config, arguments.data), arguments.init)
    device = select_device(arguments.device)
    name = arguments.cfg.stem if arguments.cfg else "train_det"
    out = arguments.out or Path("runs") / name
    with RunFolder.open(out, config, resume=arguments.resume, overwrite=arguments.overwrite) as folder:
        for key, value in differences(config).items():
            log.info("%s: %s", key, value)
        figures = train_detector(config, folder, device, resume=arguments.resume, quiet=arguments.quiet)
    table(f"{out}: best figures", ("figure", "value"), figures.items())
    write_json(arguments.json, {"figures": figures, "run": str(out)})
