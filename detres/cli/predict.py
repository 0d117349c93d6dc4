"""`detres predict`: detect objects in images and videos; writes images with the detections drawn and a COCO json."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detres.cli.common import add_common_arguments, tool_parser, write_report
from detres.cli.eval_common import parse_test_options
from detres.errors import DataError, UserError, listed
from detres.files import check_outputs

if TYPE_CHECKING:
    import argparse

    import numpy as np

    from detres.api import Detector

log = logging.getLogger("detres")

EXAMPLE = """
python3 tools/predict.py --weights runs/cells/model.safetensors --out detected blood.jpg more_images/
python3 tools/predict.py --weights runs/cells/model.safetensors 'shots/*.png' --set test.score_thresh=0.3
python3 tools/predict.py --weights runs/cells/model.safetensors street.mp4 --no-images --json street.json
"""
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
DEFAULT_SCORE_THRESH = 0.5
TABLE_ROWS = 20


def main(argv: list[str]) -> None:
    """Predict as the command line says.

    Raises:
        UserError: Wrong input. Images and videos that cannot be read are named at the end, after the detections in the
            others have been written.
    """
    arguments = _parse(argv)
    out = arguments.out or Path("runs") / "predict"
    json_path = arguments.json or out / "detections.json"
    options = parse_test_options(arguments.set)
    inputs = find_inputs(arguments.inputs, leave_out=out)
    drawings = {} if arguments.no_images else drawing_paths(inputs, out)
    targets = [json_path, *drawings.values()]
    check_outputs(targets, [*inputs, *arguments.weights], overwrite=arguments.overwrite)
    detector = _load_detector(arguments)
    options.setdefault("score_thresh", max(detector.test.score_thresh, DEFAULT_SCORE_THRESH))
    detector.test_options(options)  # a wrong option is refused before the first image

    from detres.console import progress

    results: list[dict[str, Any]] = []
    rows: list[tuple[str, int, str]] = []
    unreadable: list[str] = []
    for path in progress(inputs, "predict", quiet=arguments.quiet):
        predict = _predict_video if path.suffix.lower() in VIDEOS else _predict_image
        try:
            entries = predict(detector, path, drawings.get(path), options)
        except DataError as error:
            unreadable.append(str(error))
            continue
        results += entries
        rows.append((str(path), len(entries), listed(_class_counts(detector, entries), 8)))
    if rows:
        write_report(json_path, results)
        _print(rows, len(results), out if drawings else json_path)
    if unreadable:
        others = f"; the detections in the other {len(rows)} are in {json_path}" if rows else ""
        raise DataError(
            f"{len(unreadable)} of {len(inputs)} inputs cannot be read: {listed(unreadable, 5)}{others}"
        )


def find_inputs(inputs: Iterable[str], leave_out: Path) -> list[Path]:
    """Images and videos that the arguments name, in order, each once and under its first spelling.

    Args:
        inputs: Files, folders (searched with their subfolders, but not what is hidden) and globs of both (`**` too).
        leave_out: The folder of the results, which is skipped if it lies in a folder that is searched.

    Raises:
        UserError: An argument that names nothing, or a file that is neither image nor video.
    """
    from detres.data.files import IMAGE_SUFFIXES, search

    known = IMAGE_SUFFIXES | VIDEOS
    files: dict[Path, Path] = {}  # from the resolved path to its first spelling
    unread: list[str] = []
    for text in inputs:
        path = Path(text)
        if path.is_file():
            if path.suffix.lower() not in known:
                raise UserError(
                    f"{text}: neither an image ({listed(sorted(IMAGE_SUFFIXES), 20)}) nor a video"
                    f" ({listed(sorted(VIDEOS))})"
                )
            matches = [path]
        else:
            listing = search(text)
            unread += [f"{name} ({why})" for _, name, why in listing.unread]
            results = leave_out if _is_below(leave_out, _root(path)) else None
            matches = sorted(
                file
                for file in map(Path, listing.files)
                if file.suffix.lower() in known and not (results and _is_below(file, results))
            )
        if not matches:
            raise UserError(f"{text}: no image or video there")
        for file in matches:
            files.setdefault(file.parent.resolve() / file.name, file)
    if unread:
        log.warning("not read: %s", listed(dict.fromkeys(unread), 5))
    return list(files.values())


def drawing_paths(inputs: Iterable[Path], out: Path) -> dict[Path, Path]:
    """The file in `out` that each input is drawn to: the input's own name, with a number if several share it."""
    targets: dict[Path, Path] = {}
    used: set[str] = set()
    for path in inputs:
        suffix = ".mp4" if path.suffix.lower() in VIDEOS else ".jpg"
        name, number = path.stem + suffix, 1
        while name.lower() in used:
            number += 1
            name = f"{path.stem}_{number}{suffix}"
        used.add(name.lower())
        targets[path] = out / name
    return targets


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = tool_parser(
        "predict",
        "Detect objects in images, folders, globs and videos. --out (default runs/predict) gets the inputs with\n"
        "the detections drawn on them, and detections.json in the format of COCO results: image_id is the\n"
        "image's path as it was given (path#frame for a video, frames from 0). Only detections that score\n"
        "above 0.5 are kept; --set test.score_thresh=0.3 changes that.",
        EXAMPLE,
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="images, folders, globs, videos")
    parser.add_argument(
        "--weights",
        required=True,
        nargs="+",
        metavar="FILE",
        help="a detector's weights; several form an ensemble",
    )
    parser.add_argument("--no-images", action="store_true", help="draw nothing, write the COCO json alone")
    add_common_arguments(parser, "set", "out", "overwrite", "device", "quiet")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="the COCO json (default: OUT/detections.json)"
    )
    return parser.parse_args(argv)


def _load_detector(arguments: argparse.Namespace) -> Detector:
    from detres.api import Detector, load

    detector = load(arguments.weights, device=arguments.device)
    if not isinstance(detector, Detector):
        raise UserError(f"{arguments.weights[0]}: weights for classification; predict needs a detector's")
    return detector


def _root(searched: Path) -> Path:
    """The folder that the search of a folder or glob starts at."""
    return next(place for place in (searched, *searched.parents) if not glob.has_magic(str(place)))


def _is_below(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _predict_image(
    detector: Detector, path: Path, target: Path | None, options: dict[str, Any]
) -> list[dict[str, Any]]:
    from detres.data.decoding import read_image

    result = detector(read_image(path), **options)
    if target is not None:
        result.draw(target)
    return result.to_coco(str(path))


def _predict_video(
    detector: Detector, path: Path, target: Path | None, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Results of all frames; `target`, if given, gets the video with the detections drawn on it."""
    from detres.data.videos import open_video, write_video

    results: list[dict[str, Any]] = []
    with open_video(path) as video:

        def run_frames() -> Iterator[np.ndarray]:
            for number, frame in enumerate(video.frames()):
                result = detector(frame, **options)
                results.extend(result.to_coco(f"{path}#{number}"))
                yield frame if target is None else result.draw()

        if target is None:
            for _ in run_frames():
                pass
        else:
            write_video(target, run_frames(), video.rate)
    return results


def _class_counts(detector: Detector, results: list[dict[str, Any]]) -> list[str]:
    """The names of the classes that occur, each with its number of detections."""
    ids = detector.category_ids or tuple(range(1, len(detector.class_names) + 1))
    counts = Counter(row["category_id"] for row in results)
    return [
        f"{name} {counts[number]}"
        for name, number in zip(detector.class_names, ids, strict=True)
        if counts[number]
    ]


def _print(rows: list[tuple[str, int, str]], detections: int, place: Path) -> None:
    from detres.console import table

    table(
        f"{detections} detections in {len(rows)} inputs: {place}",
        ("input", "detections", "classes"),
        rows[:TABLE_ROWS],
    )
    if len(rows) > TABLE_ROWS:
        print(f"... and {len(rows) - TABLE_ROWS} more inputs")
