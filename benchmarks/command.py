"""`detres benchmark`: speed and memory beside torchvision's, each checked to compute the same."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detres.cli.common import add_common_arguments, tool_parser, write_json
from detres.errors import UserError

if TYPE_CHECKING:
    import torch

    from benchmarks.detectors import DetectorOptions

EXAMPLE = """
detres benchmark infer --peers onnxruntime,openvino
detres benchmark train --network resnet101 --precision bfloat16 --json train.json
detres benchmark infer --network resnet18 --size 64 96 --proposals 8 --rounds 1
"""
PRECISIONS = ("float32", "bfloat16")
DETECTOR = {"network", "width", "size", "precision", "device"}
# The options of each sub-command, and how many samples of each side are taken unless --rounds says otherwise.
OPTIONS = {
    "infer": DETECTOR | {"proposals", "batch", "peers", "same_allocator"},
    "train": DETECTOR | {"batch", "same_allocator"},
    "train-cls": {"network", "size", "precision", "batch", "device"},
    "pool": {"size", "proposals", "precision", "device"},
    "nms": {"size", "device"},
    "evaluate": {"images"},
    "growth": {"network", "width", "size", "precision", "device"},
    "loader": DETECTOR | {"data", "split", "workers", "images", "steps"},
}
CROP_SIDE = 128
ROUNDS = {
    "infer": 10,
    "train": 5,
    "train-cls": 20,
    "pool": 20,
    "nms": 20,
    "evaluate": 2,
    "growth": 3,
    "loader": 3,
}


def main(argv: list[str]) -> None:
    """Measure the cases of a sub-command, print a table of each, write `--json`."""
    arguments = _parsed(argv)

    from benchmarks.measuring import DisagreementError
    from detres.devices import select_device

    device = select_device(arguments.device or "auto")
    try:
        figures = _measured(arguments, device)
    except DisagreementError as error:
        raise SystemExit(f"error: {error}") from None
    write_json(arguments.json, figures)


def _parsed(argv: list[str]) -> argparse.Namespace:
    parser = tool_parser(
        "benchmark",
        "Ours against its peers on the same weights, in turns: that they agree, then medians, memory, share of the"
        " machine's ceiling. Without options each sub-command measures the cases of the project's tables.",
        EXAMPLE,
    )
    add = parser.add_argument
    add("what", choices=list(OPTIONS), metavar="|".join(OPTIONS), help="what to measure")
    add("--network", metavar="NAME", help="default: resnet50")
    add("--width", type=float, metavar="W", help="factor on the network's channels (default: 1)")
    add(
        "--size",
        type=int,
        nargs="+",
        metavar="N",
        help="height and width (default: 600 800); train-cls: the side; loader of an archive: the smaller is (128)",
    )
    add("--proposals", type=int, metavar="N", help="infer, pool: regions a picture (default: 300)")
    add("--batch", type=int, metavar="N", help="pictures at once (infer: 1, train: 2, train-cls: 32)")
    add("--precision", nargs="+", choices=PRECISIONS, help="default: both (growth, loader: float32)")
    add("--peers", metavar="NAMES", help="infer: onnxruntime,openvino beside torchvision")
    add(
        "--images",
        type=int,
        metavar="N",
        help="evaluate: pictures (5000); loader: of the annotation file (120000)",
    )
    add(
        "--split", metavar="NAME", help="loader: split of --data (default: train); a .zip or .tar gives crops"
    )
    add("--workers", type=int, nargs="+", metavar="N", help="loader: numbers of loading processes (0 1 2)")
    add("--steps", type=int, metavar="N", help="loader: training steps in which waiting is measured (20)")
    add("--rounds", type=int, metavar="N", help="samples of each side, taken in turns")
    add(
        "--same-allocator",
        action="store_true",
        default=None,
        help="infer, train: peers keep freed memory too, as our tools do; else they run as PyTorch's defaults have it",
    )
    add_common_arguments(parser, "data", "device", "json", "quiet")
    parser.set_defaults(device=None)
    arguments = parser.parse_args(argv)
    _check(arguments)
    return arguments


def _check(arguments: argparse.Namespace) -> None:
    everywhere = {"what", "rounds", "json", "quiet"}
    for name, value in vars(arguments).items():
        if value is not None and name not in everywhere | OPTIONS[arguments.what]:
            takers = ", ".join(what for what, names in OPTIONS.items() if name in names)
            raise UserError(f"--{name} is not for {arguments.what}; it is for {takers}")
    for name in ("rounds", "proposals", "batch", "images", "steps", "width"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise UserError(
                f"--{name} {value:g}: should be at least 1" if name != "width" else "--width: above 0"
            )
    if any(count < 0 for count in arguments.workers or ()):
        raise UserError("--workers: numbers of processes, 0 or more, such as 0 1 2")
    wanted = 1 if arguments.what == "train-cls" else 2
    if arguments.size is not None and (len(arguments.size) != wanted or min(arguments.size) < 32):
        form = "a side, such as 128" if wanted == 1 else "height and width, such as 600 800"
        raise UserError(f"--size {' '.join(map(str, arguments.size))}: should be {form}; 32 at least")


def _measured(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What `--json` holds."""
    from benchmarks import evaluating, growing, inferring, operators, training_steps
    from benchmarks.running import chosen_peers, measure_cases

    what = arguments.what
    shared = {"precisions": tuple(arguments.precision or PRECISIONS), "device": str(device)}
    if what == "infer":
        peers = chosen_peers([name for name in (arguments.peers or "").split(",") if name], device)
        make: Any = inferring.infer_cases
        options: Any = replace(_detector(arguments, device, batch=1), peers=peers)
    elif what == "train":
        make, options = training_steps.train_cases, _detector(arguments, device, batch=2)
    elif what == "train-cls":
        make, options = training_steps.train_cls_cases, _classifiers(arguments, shared)
    elif what == "pool":
        make = operators.pool_cases
        options = operators.OperatorOptions(
            size=_size(arguments), regions=arguments.proposals or 300, **shared
        )
    elif what == "nms":
        make, options = (
            operators.nms_cases,
            operators.OperatorOptions(size=_size(arguments), device=str(device)),
        )
    elif what == "evaluate":
        make = evaluating.evaluate_cases
        options = evaluating.EvaluationOptions(arguments.images or 5000)
    elif what == "loader":
        return _loader(arguments, device)
    else:
        make = growing.growth_cases
        detector = _detector(arguments, device, batch=1)
        options = growing.GrowthOptions(replace(detector, precisions=detector.precisions[:1]))
    return measure_cases(
        make,
        options,
        rounds=arguments.rounds or ROUNDS[what],
        device=device,
        together="How ours grows" if what == "growth" else "",
        same_allocator=bool(arguments.same_allocator),
        quiet=arguments.quiet,
    )


def _size(arguments: argparse.Namespace) -> tuple[int, int]:
    height, width = arguments.size or (600, 800)
    return height, width


def _detector(arguments: argparse.Namespace, device: torch.device, *, batch: int) -> DetectorOptions:
    from benchmarks.detectors import DetectorOptions
    from benchmarks.peers.composition import PEER_NETWORKS

    network = arguments.network or "resnet50"
    _known_network(network, PEER_NETWORKS)
    return DetectorOptions(
        network=network,
        width=arguments.width or 1.0,
        size=_size(arguments),
        proposals=arguments.proposals or 300,
        batch=arguments.batch or batch,
        precisions=tuple(arguments.precision or PRECISIONS),
        device=str(device),
    )


def _classifiers(arguments: argparse.Namespace, shared: dict[str, Any]) -> Any:
    from benchmarks.peers.composition import PEER_NETWORKS
    from benchmarks.training_steps import ClassifierOptions

    options = ClassifierOptions(batch=arguments.batch or 32, **shared)
    if not arguments.network and not arguments.size:
        return options
    network = arguments.network or "resnet50"
    _known_network(network, PEER_NETWORKS)
    sides = dict(options.networks)
    side = arguments.size[0] if arguments.size else sides.get(network, 224)
    return replace(options, networks=((network, side),))


def _known_network(name: str, known: tuple[str, ...]) -> None:
    from detres.errors import listed, nearest

    if name not in known:
        raise UserError(
            f"--network {name}: torchvision has none{nearest(name, known)}; choose {listed(known)}"
        )


def _loader(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The loader's cases, and the share of training spent waiting; of an archive (classes alone) its crops."""
    from benchmarks.loading import LoaderOptions, chosen_data, loader_cases, measure_waiting
    from benchmarks.loading_crops import CropLoaderOptions, crop_loader_cases
    from benchmarks.running import measure_cases
    from detres.data.archives import is_archive
    from detres.data.formats import resolve_directory

    rounds = arguments.rounds or ROUNDS["loader"]
    workers = tuple(arguments.workers or (0, 1, 2))
    if arguments.data and is_archive(resolve_directory(arguments.data)):
        for name in ("network", "width", "precision", "steps", "images"):
            if getattr(arguments, name) is not None:
                raise UserError(
                    f"--{name} is not for an archive, of which crops are loaded and nothing is trained"
                )
        side = min(arguments.size) if arguments.size else CROP_SIDE
        crops = CropLoaderOptions(arguments.data, arguments.split or "train", side, workers)
        return measure_cases(crop_loader_cases, crops, rounds=rounds, device=device, quiet=arguments.quiet)
    detector = _detector(arguments, device, batch=2)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data, split = chosen_data(arguments.data, arguments.split, folder / "drawn")
        options = LoaderOptions(
            data=data,
            split=split,
            sides=(min(detector.size), max(detector.size)),
            workers=workers,
            images=arguments.images or 120_000,
            folder=folder / "large",
            steps=arguments.steps or 20,
            detector=replace(detector, precisions=tuple(arguments.precision or PRECISIONS[:1])),
        )
        figures = measure_cases(loader_cases, options, rounds=rounds, device=device, quiet=arguments.quiet)
        return {**figures, "waiting_share": measure_waiting(options)}
