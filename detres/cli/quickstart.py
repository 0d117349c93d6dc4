"""`detres quickstart`: the main job on drawn pictures: pre-train, freeze BN, train a Faster R-CNN, evaluate, draw."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from detres.cli.common import add_common_arguments, tool_parser
from detres.devices import select_device, select_precision
from detres.errors import UserError

if TYPE_CHECKING:
    import torch

    from detres.classification.config import ClassificationConfig
    from detres.detection.config import DetectionConfig

EXAMPLE = """
python3 tools/quickstart.py
python3 tools/quickstart.py --out runs/again
"""
TEST_IMAGES = "shapes:200"
PRETRAINING_STATISTICS = 2000
DRAWN_IMAGES = 8


def main(argv: list[str]) -> None:
    """Run the whole job; a run that is there is replaced."""
    parser = tool_parser(
        "quickstart", "Train and test a Faster R-CNN on drawn pictures, in minutes on a CPU.", EXAMPLE
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="run folder (default: runs/quickstart, which is replaced)"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of training (default: auto, the faster one here, found by trying)",
    )
    add_common_arguments(parser, "overwrite", "device", "quiet")
    arguments = parser.parse_args(argv)
    out = arguments.out or Path("runs") / "quickstart"
    if arguments.out and (out / "environment.json").exists() and not arguments.overwrite:
        raise UserError(f"{out} holds another run: --overwrite replaces it, or choose another --out")
    begun = time.monotonic()

    from detres.classification.config import ClassificationConfig
    from detres.config import load_config
    from detres.console import log
    from detres.detection.config import DetectionConfig

    device = select_device(arguments.device)
    chosen = select_precision(device) if arguments.precision == "auto" else arguments.precision
    log.info("precision of training: %s", chosen)
    precision = [f"train.precision={chosen}"]
    pretraining = load_config(ClassificationConfig, "quickstart/pretrain", precision)
    config = load_config(DetectionConfig, "quickstart/detect", precision)
    _train(pretraining, config, out, device, arguments.quiet)
    log.info("4 of 4: testing on pictures it has not seen")
    _evaluate(out, str(device), arguments.quiet)
    minutes = (time.monotonic() - begun) / 60
    print(
        f"{minutes:.1f} minutes; {out}: model.safetensors, detections.png, curves.png, eval/coco.json, eval/voc.json"
    )


def _train(
    pretraining: ClassificationConfig, config: DetectionConfig, out: Path, device: torch.device, quiet: bool
) -> None:
    """Backbone in `out`/pretrain, its BN statistics, then the detector in `out`."""
    from detres.classification.bn_statistics import write_statistics
    from detres.classification.data import read_image_labels
    from detres.classification.task import prepare_classifier, train_classifier
    from detres.console import log
    from detres.detection.data import with_init
    from detres.detection.train import read_training, train_detector
    from detres.training.run_folder import RunFolder

    log.info("1 of 4: pre-training a backbone on drawn forms")
    setup = prepare_classifier(pretraining, device)
    with RunFolder.open(out / "pretrain", setup.config, overwrite=True) as run:
        train_classifier(setup, run, device, quiet=quiet)
    log.info("2 of 4: BN statistics over the training pictures, frozen")
    frozen = out / "pretrain" / "frozen.safetensors"
    images = read_image_labels(pretraining.data.train, side=pretraining.data.crop.size)
    write_statistics(
        run.weights, images, frozen, num_images=PRETRAINING_STATISTICS, device=device, quiet=quiet
    )
    log.info("3 of 4: training the detector")
    config = with_init(config, str(frozen))
    data, start = read_training(config, device)
    with RunFolder.open(out, config, overwrite=True) as run:
        train_detector(config, data, start, run, device, quiet=quiet)


def _evaluate(out: Path, device: str, quiet: bool) -> None:
    """Tables of COCO and VOC figures, their JSON, a picture with detections, the curves."""
    from detres.cli import eval_coco, eval_voc
    from detres.data.shapes import read_shapes
    from detres.detection.visualize import draw_split
    from detres.evaluation.results_files import read_coco_results
    from detres.report.plots import plot_curves

    data = ["--data", TEST_IMAGES, "--split", "test", *(["--quiet"] if quiet else [])]
    found = out / "eval" / "detections.json"
    weights = ["--weights", str(out / "model.safetensors"), "--save-results", str(found), "--device", device]
    eval_coco.main([*weights, *data, "--json", str(out / "eval" / "coco.json")])
    eval_voc.main(["--results", str(found), *data, "--json", str(out / "eval" / "voc.json")])
    truth = read_shapes(TEST_IMAGES, "test")
    draw_split(out / "detections.png", truth, read_coco_results(found, truth), limit=DRAWN_IMAGES)
    plot_curves(out / "metrics.jsonl", out / "curves.png")
