"""`detres train-peer`: train torchvision's composition as ours is trained, to compare the two."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from detres.cli.common import add_common_arguments, tool_parser
from detres.cli.train_common import default_out, log_configuration
from detres.errors import UserError

if TYPE_CHECKING:
    import torch
    from torchvision.models.detection import FasterRCNN

    from detres.data.records import Annotations
    from detres.detection.config import DetectionConfig
    from detres.training.run_folder import RunFolder

EXAMPLE = """
python3 tools/train_peer.py --cfg voc/bccd_r18_c4 --test bccd test
python3 tools/train_peer.py --cfg voc/bccd_r18_c4 --same-samples 20 \
    --set rcnn.smooth_l1_beta=0.1111111111111111
"""


def main(argv: list[str]) -> None:
    """Parse, then train and test the composition, or compare losses step by step."""
    arguments = _parse(argv)

    from benchmarks.peers.training import build_peer, build_peer_task
    from detres.config import load_config
    from detres.console import table
    from detres.detection.config import DetectionConfig
    from detres.detection.data import read_training_data, with_init
    from detres.devices import select_device
    from detres.training.config import make_plan
    from detres.training.loop import train
    from detres.training.run_folder import RunFolder

    config = with_init(load_config(DetectionConfig, arguments.cfg, arguments.set), arguments.init)
    device = select_device(arguments.device)
    if arguments.same_samples is not None:
        _compare(config, arguments.same_samples, device)
        return
    # All that can be at fault comes before the training, and before a run that is replaced.
    data = read_training_data(config.data, config.train.seed)
    class_names = data.train.class_names
    truth = _read_test(arguments.test[0], arguments.test[1], class_names) if arguments.test else None
    peer = build_peer(config, class_names)
    make_plan(config.train, len(data.train))
    beside = default_out(arguments.cfg, "train_det")
    out = arguments.out or beside.with_name(f"{beside.name}_torchvision")
    with RunFolder.open(out, config, resume=arguments.resume, overwrite=arguments.overwrite) as run:
        log_configuration(config)
        task = build_peer_task(config, data, peer, device, quiet=arguments.quiet)
        figures = train(task, config.train, run, device, resume=arguments.resume, quiet=arguments.quiet)
        table("Best figures", ("figure", "value"), figures.items())
        if truth is not None:
            _test(config, truth, run, peer, quiet=arguments.quiet)


def _parse(argv: list[str]) -> argparse.Namespace:
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
    return parser.parse_args(argv)


def _read_test(directory: str, split: str, class_names: tuple[str, ...]) -> Annotations:
    from detres.data.config import Source
    from detres.data.formats import select_classes
    from detres.data.sources import log_reports, read_sources

    truth, reports = read_sources([Source(dir=directory, split=split)])
    log_reports(reports)
    return select_classes(truth, class_names)


def _test(
    config: DetectionConfig, truth: Annotations, run: RunFolder, peer: FasterRCNN, *, quiet: bool
) -> None:
    """Write the detections of the run's best weights."""
    from safetensors.torch import load_file

    from benchmarks.peers.training import detect_split_with_peer
    from detres.evaluation.results_files import write_coco_results

    peer.load_state_dict(load_file(run.weights))
    sizes = config.data.short_side, config.data.long_side
    found = detect_split_with_peer(peer.eval(), truth, sizes, quiet=quiet)
    write_coco_results(run.eval / "detections.json", truth, found)
    print(f"detections: {run.eval / 'detections.json'}")


def _compare(config: DetectionConfig, steps: int, device: torch.device) -> None:
    """Print the losses of ours and of the composition, step by step."""
    from benchmarks.peers.training import losses_side_by_side
    from detres.console import table
    from detres.detection.data import read_training_data

    if steps < 1:
        raise UserError(f"--same-samples {steps}: should be a number of steps, such as 20")
    if not math.isclose(config.rcnn.smooth_l1_beta, 1 / 9, rel_tol=1e-6):
        raise UserError(
            f"rcnn.smooth_l1_beta is {config.rcnn.smooth_l1_beta:g}: torchvision has 1/9 built in;"
            " set rcnn.smooth_l1_beta=0.1111111111"
        )
    sums = losses_side_by_side(config, read_training_data(config.data, config.train.seed), steps, device)
    rows = [
        (step, ours, theirs, f"{abs(ours - theirs) / theirs:.1e}")
        for step, (ours, theirs) in enumerate(sums, start=1)
    ]
    table("Sum of losses", ("step", "detres", "torchvision", "relative difference"), rows)
