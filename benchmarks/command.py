"""`detres benchmark`: speed and memory beside torchvision's, each checked to compute the same."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detres.cli.common import add_common_arguments, tool_parser, write_report
from detres.errors import UserError, listed, nearest

if TYPE_CHECKING:
    import torch

    from benchmarks.detectors import DetectorOptions

EXAMPLE = """
python3 tools/benchmark.py infer --peers onnxruntime,openvino
python3 tools/benchmark.py train --network resnet101 --precision bfloat16 --json train.json
python3 tools/benchmark.py infer --network resnet18 --size 64 96 --rounds 1
"""
PRECISIONS = ("float32", "bfloat16")
DETECTOR = {"network", "size", "precision", "device"}
# The options of each sub-command, and how many samples of each side are taken unless --rounds says otherwise.
OPTIONS = {
    "infer": (DETECTOR | {"peers", "same_allocator"}, 10),
    "train": (DETECTOR | {"same_allocator"}, 5),
    "train-cls": ({"precision", "device"}, 20),
    "pool": ({"precision", "device"}, 20),
    "evaluate": (set(), 2),
    "growth": (DETECTOR, 3),
    "loader": ({"data", "workers", "steps", "device"}, 3),
}


def main(argv: list[str]) -> None:
    """Measure the cases of a sub-command, print a table of each, write `--json`."""
    arguments = _parse(argv)

    from benchmarks.measuring import DisagreementError
    from detres.devices import select_device

    device = select_device(arguments.device or "auto")
    try:
        figures = _measure(arguments, device)
    except DisagreementError as error:
        raise SystemExit(f"error: {error}") from None
    write_report(arguments.json, figures)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = tool_parser(
        "benchmark",
        "Ours against its peers on the same weights, in turns: that they agree, then medians, memory, share of the"
        " machine's ceiling. Without options each sub-command measures the cases of docs/performance.md.",
        EXAMPLE,
    )
    add = parser.add_argument
    add("what", choices=list(OPTIONS), metavar="|".join(OPTIONS), help="what to measure")
    add("--network", metavar="NAME", help="default: resnet50")
    add("--size", type=int, nargs=2, metavar="N", help="height and width of the images (default: 600 800)")
    add("--precision", nargs="+", choices=PRECISIONS, help="default: both (growth: float32)")
    add("--peers", metavar="NAMES", help="infer: onnxruntime,openvino beside torchvision")
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
        if value is not None and name not in everywhere | OPTIONS[arguments.what][0]:
            takers = ", ".join(what for what, (names, _) in OPTIONS.items() if name in names)
            raise UserError(f"--{name.replace('_', '-')} is not for {arguments.what}; it is for {takers}")
    for name in ("rounds", "steps"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: should be at least 1")
    if min(arguments.workers or [0]) < 0:
        raise UserError(f"--workers {min(arguments.workers)}: should be numbers of processes, such as 0 1 2")
    if min(arguments.size or [32]) < 32:
        raise UserError(f"--size {min(arguments.size)}: should be 32 at least")


def _measure(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What `--json` holds."""
    from benchmarks import evaluating, growing, inferring, pooling, training_steps
    from benchmarks.measuring import measure_cases

    what, precisions = arguments.what, tuple(arguments.precision or PRECISIONS)
    options = {
        "rounds": arguments.rounds or OPTIONS[what][1],
        "device": device,
        "title": "How ours grows" if what == "growth" else "",
        "same_allocator": bool(arguments.same_allocator),
        "quiet": arguments.quiet,
    }
    if what == "loader":
        return _measure_loader(arguments, options)
    if what == "infer":
        peers = inferring.choose_peers(arguments.peers, device)
        cases = inferring.infer_cases(_detector(arguments, precisions, device), peers)
    elif what == "train":
        cases = training_steps.train_cases(replace(_detector(arguments, precisions, device), batch=2))
    elif what == "train-cls":
        cases = training_steps.train_cls_cases(precisions, str(device))
    elif what == "pool":
        cases = pooling.pool_cases(precisions, str(device))
    elif what == "evaluate":
        cases = evaluating.evaluate_cases()
    else:
        cases = growing.growth_cases(_detector(arguments, precisions[:1], device))
    return measure_cases(cases, **options)


def _detector(
    arguments: argparse.Namespace, precisions: tuple[str, ...], device: torch.device
) -> DetectorOptions:
    from benchmarks.detectors import DetectorOptions
    from benchmarks.peers.composition import PEER_NETWORKS

    network = arguments.network or "resnet50"
    if network not in PEER_NETWORKS:
        close = nearest(network, PEER_NETWORKS)
        raise UserError(f"--network {network}: torchvision has none{close}; choose {listed(PEER_NETWORKS)}")
    height, width = arguments.size or (600, 800)
    return DetectorOptions(network=network, size=(height, width), precisions=precisions, device=str(device))


def _measure_loader(arguments: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """The loader's cases, and the share of training spent waiting; of an archive (classes alone) its crops."""
    from benchmarks import loading
    from benchmarks.detectors import DetectorOptions
    from benchmarks.measuring import measure_cases
    from detres.data.archives import is_archive
    from detres.data.config import Source
    from detres.data.formats import resolve_directory

    workers = arguments.workers or [0, 1, 2]
    if arguments.data and is_archive(resolve_directory(arguments.data)):
        if arguments.steps:
            raise UserError("--steps is not for an archive, of which crops are loaded and nothing is trained")
        source = Source(dir=arguments.data, split=loading.SPLIT)
        return measure_cases(loading.crop_cases(source, workers), **options)
    with tempfile.TemporaryDirectory() as folder:
        source = loading.choose_data(arguments.data, Path(folder) / "drawn")
        large = Path(folder) / f"{loading.ANNOTATED_IMAGES} images"
        cases = [
            *loading.loader_cases(source, workers),
            loading.reading_case(large, loading.ANNOTATED_IMAGES),
        ]
        figures = measure_cases(cases, **options)
        sources = (
            source,
            Source(dir=str(loading.write_data_set(large, loading.ANNOTATED_IMAGES)), split=loading.SPLIT),
        )
        detector = DetectorOptions(precisions=("float32",), device=str(options["device"]))
        shares = loading.measure_waiting(sources, max(workers), arguments.steps or 20, detector)
        return {**figures, "waiting_share": shares}
