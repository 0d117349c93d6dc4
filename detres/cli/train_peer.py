"""`detres train-peer`: train torchvision's composition as ours is trained, to compare the two."""

from __future__ import annotations

import math
from pathlib import Path

from detres.cli.common import add_common_arguments, tool_parser
from detres.cli.train_common import log_configuration
from detres.errors import UserError

EXAMPLE = """
python3 tools/train_peer.py --cfg configs/voc/bccd_r18_c4.yaml --test bccd test
python3 tools/train_peer.py --cfg configs/voc/bccd_r18_c4.yaml --same-samples 20 --set rcnn.beta=0.1111111111111111
"""


def main(argv: list[str]) -> None:
    """Parse, then train and test the composition, or compare losses step by step."""
    parser = tool_parser(
        "train-peer",
        "Train Faster R-CNN C4 as torchvision's classes compose it, on a configuration of ours.",
        EXAMPLE,
    )
    parser.add_argument(
        "--test", nargs=2, metavar=("DIR", "SPLIT"), help="after training, write detections of this split"
    )
    parser.add_argument(
        "--same-samples", type=int, metavar="STEPS", help="only compare the losses of both over STEPS steps"
    )
    add_common_arguments(parser, "cfg", "set", "init", "out", "resume", "overwrite", "device", "quiet")
    arguments = parser.parse_args(argv)

    from detres.config import load_config
    from detres.console import table
    from detres.data.config import Source
    from detres.data.discover import select_classes
    from detres.data.sources import read_sources
    from detres.detection.config import DetectionConfig
    from detres.detection.training_data import read_training_data, with_init
    from detres.devices import select_device
    from detres.evaluation.results_files import write_coco_results
    from detres.peers.training import build_peer_task, detect_split_with_peer, losses_side_by_side, read_peer
    from detres.training.loop import train
    from detres.training.run_folder import RunFolder

    config = with_init(load_config(DetectionConfig, arguments.cfg, arguments.set), arguments.init)
    data = read_training_data(config)
    if arguments.same_samples is not None:
        if arguments.same_samples < 1:
            raise UserError(
                f"--same-samples {arguments.same_samples}: should be a number of steps, such as 20"
            )
        if not math.isclose(config.rcnn.beta, 1 / 9, rel_tol=1e-6):
            raise UserError(
                f"rcnn.beta is {config.rcnn.beta:g}: torchvision has 1/9 built in; set rcnn.beta=0.1111111111"
            )
        rows = [
            (step, ours, theirs, f"{abs(ours - theirs) / theirs:.1e}")
            for step, (ours, theirs) in enumerate(
                losses_side_by_side(config, data, arguments.same_samples), start=1
            )
        ]
        table("Sum of losses", ("step", "detres", "torchvision", "relative difference"), rows)
        return
    device = select_device(arguments.device)
    out = (
        arguments.out or Path("runs") / f"{arguments.cfg.stem if arguments.cfg else 'train_det'}_torchvision"
    )
    with RunFolder.open(out, config, resume=arguments.resume, overwrite=arguments.overwrite) as run:
        log_configuration(config)
        task = build_peer_task(config, data, device, quiet=arguments.quiet)
        figures = train(task, config.train, run, device, resume=arguments.resume, quiet=arguments.quiet)
        table("Best figures", ("figure", "value"), figures.items())
        if arguments.test:
            directory, split = arguments.test
            truth, _ = read_sources([Source(dir=directory, split=split)])
            truth = select_classes(truth, data.train.class_names)
            peer = read_peer(config, len(truth.class_names), run.weights).to(device)
            sizes = config.data.short_side, config.data.long_side
            found = detect_split_with_peer(peer, truth, sizes, quiet=arguments.quiet)
            write_coco_results(run.eval / "detections.json", truth, found)
            print(f"detections: {run.eval / 'detections.json'}")
