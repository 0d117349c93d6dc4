"""`detres predict`: find objects in pictures and videos; drawn pictures and a COCO json come out."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detres.cli.common import add_common_arguments, tool_parser, write_json
from detres.cli.eval_common import parse_test_options
from detres.errors import DataError, UserError, listed
from detres.files import refuse_blocked

if TYPE_CHECKING:
    import numpy as np

    from detres.api import Detector

log = logging.getLogger("detres")

EXAMPLE = """
python3 tools/predict.py --weights runs/cells/model.safetensors --out found blood.jpg more_pictures/
python3 tools/predict.py --weights runs/cells/model.safetensors 'shots/*.png' --set test.score_thresh=0.3
python3 tools/predict.py --weights runs/cells/model.safetensors street.mp4 --no-pictures --json found.json
"""
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
USUAL_SCORE_THRESH = 0.5
SHOWN = 20


def main(argv: list[str]) -> None:
    """Parse, predict, write.

    Raises:
        UserError: Wrong input. Pictures and videos that cannot be read are named in the end; what was found in the
            others is written by then.
    """
    arguments = _parse(argv)
    out = arguments.out or Path("runs") / "predict"
    json_path = arguments.json or out / "detections.json"
    options = parse_test_options(arguments.set)
    inputs = find_inputs(arguments.inputs, leave_out=out)
    drawings = {} if arguments.no_images else drawing_paths(inputs, out)
    targets = [json_path, *drawings.values()]
    _check_targets(targets, [*inputs, *map(Path, arguments.weights)], arguments.overwrite)

    from detres.api import Detector, load
    from detres.console import progress

    detector = load(arguments.weights, device=arguments.device)
    if not isinstance(detector, Detector):
        raise UserError(f"{arguments.weights[0]}: weights for classification; predict needs a detector's")
    options.setdefault("score_thresh", max(detector.test.score_thresh, USUAL_SCORE_THRESH))
    detector.test_options(options)  # a wrong one is an error before the first picture
    results: list[dict[str, Any]] = []
    rows: list[tuple[str, int, str]] = []
    unreadable: list[str] = []
    for path in progress(inputs, "predict", quiet=arguments.quiet):
        predict = _predict_video if path.suffix.lower() in VIDEOS else _predict_image
        try:
            found = predict(detector, path, drawings.get(path), options)
        except DataError as error:
            unreadable.append(str(error))
            continue
        results += found
        rows.append((str(path), len(found), listed(_named(detector, found), 8)))
    if rows:
        write_json(json_path, results)
        _print(rows, len(results), out if drawings else json_path)
    if unreadable:
        others = f"; what was found in the other {len(rows)} is in {json_path}" if rows else ""
        raise DataError(
            f"{len(unreadable)} of {len(inputs)} inputs cannot be read: {listed(unreadable, 5)}{others}"
        )


def find_inputs(inputs: Iterable[str], leave_out: Path) -> list[Path]:
    """Pictures and videos that the arguments mean, each once, in order, as they are spelled first.

    Args:
        inputs: Files, folders (with all below them but what is hidden) and globs of both (`**` too).
        leave_out: The folder that results go to: where it lies in a folder that is searched, it is passed over.

    Raises:
        UserError: An argument means nothing that is there, or a file that is neither picture nor video.
    """
    from detres.data.files import IMAGE_SUFFIXES, search

    known = IMAGE_SUFFIXES | VIDEOS
    files: dict[Path, Path] = {}  # by where they are, however they are spelled
    unread: list[str] = []
    for text in inputs:
        path = Path(text)
        if path.is_file():
            if path.suffix.lower() not in known:
                raise UserError(
                    f"{text}: neither a picture ({listed(sorted(IMAGE_SUFFIXES), 20)}) nor a video"
                    f" ({listed(sorted(VIDEOS))})"
                )
            found = [path]
        else:
            listing = search(text)
            unread += [f"{name} ({why})" for _, name, why in listing.unread]
            results = leave_out if _is_below(leave_out, _root(path)) else None
            found = sorted(
                file
                for file in map(Path, listing.files)
                if file.suffix.lower() in known and not (results and _is_below(file, results))
            )
        if not found:
            raise UserError(f"{text}: no picture or video there")
        for file in found:
            files.setdefault(file.parent.resolve() / file.name, file)
    if unread:
        log.warning("not read: %s", listed(dict.fromkeys(unread), 5))
    return list(files.values())


def drawing_paths(inputs: Iterable[Path], out: Path) -> dict[Path, Path]:
    """Where what is drawn on each input goes: its name in `out`, numbered where several inputs share one."""
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


def _parse(argv: list[str]) -> Any:
    parser = tool_parser(
        "predict",
        "Find objects in pictures, folders, globs and videos. --out (default runs/predict) gets the inputs\n"
        "with what was found drawn on them, and detections.json: COCO's results form, where image_id is the\n"
        "picture's path as it was given (of a video path#frame, from 0). Detections that score over 0.5 count;\n"
        "--set test.score_thresh=0.3 changes that.",
        EXAMPLE,
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="pictures, folders, globs, videos")
    parser.add_argument(
        "--weights",
        required=True,
        nargs="+",
        metavar="FILE",
        help="a detector's weights; several: an ensemble",
    )
    parser.add_argument("--no-images", action="store_true", help="draw nothing, write the COCO json alone")
    add_common_arguments(parser, "set", "out", "overwrite", "device", "quiet")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="the COCO json (default: OUT/detections.json)"
    )
    return parser.parse_args(argv)


def _root(searched: Path) -> Path:
    """The folder that a folder or glob begins at."""
    return next(place for place in (searched, *searched.parents) if not glob.has_magic(str(place)))


def _is_below(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _check_targets(targets: list[Path], inputs: list[Path], overwrite: bool) -> None:
    """Before the work: no input is ever overwritten; earlier results only where the user says so."""
    sources = {path.resolve() for path in inputs}
    mixed = [path for path in targets if path.resolve() in sources]
    if mixed:
        raise UserError(
            f"{listed(mixed, 3)} would be written over: choose an --out other than the inputs' folder, and"
            " another --json"
        )
    twice = [path for path, count in Counter(path.resolve() for path in targets).items() if count > 1]
    if twice:
        raise UserError(
            f"{twice[0]} would be written twice, as --json and as a picture: choose another --json"
        )
    refuse_blocked(*targets)
    there = [path for path in targets if path.exists()]
    if there and not overwrite:
        raise UserError(
            f"{listed(there, 3)} already there: --overwrite replaces them, or choose another --out"
        )


def _predict_image(
    detector: Detector, path: Path, target: Path | None, options: dict[str, Any]
) -> list[dict[str, Any]]:
    from detres.data.decoding import read_image

    found = detector(read_image(path), **options)
    if target is not None:
        found.draw(target)
    return found.to_coco(str(path))


def _predict_video(
    detector: Detector, path: Path, target: Path | None, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Results of all frames; where `target` is given, a video with what was found drawn on it."""
    from detres.data.videos import open_video, write_video

    results: list[dict[str, Any]] = []
    with open_video(path) as video:

        def drawn() -> Iterator[np.ndarray]:
            for number, frame in enumerate(video.frames()):
                found = detector(frame, **options)
                results.extend(found.to_coco(f"{path}#{number}"))
                yield frame if target is None else found.draw()

        if target is None:
            for _ in drawn():
                pass
        else:
            write_video(target, drawn(), video.rate)
    return results


def _named(detector: Detector, results: list[dict[str, Any]]) -> list[str]:
    """Class names with their number of detections."""
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
        f"{detections} detections in {len(rows)} inputs: {place}", ("input", "found", "classes"), rows[:SHOWN]
    )
    if len(rows) > SHOWN:
        print(f"... and {len(rows) - SHOWN} more inputs")
