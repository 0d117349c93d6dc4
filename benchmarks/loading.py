"""The data path: pictures a second of the loader, the share of training spent waiting, a COCO-sized annotation file.

Ren et al. 2015, §3.3 (shorter side 600, flips); Lin et al. 2014 (train2017: 118,287 pictures, 860,001 boxes).
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases import OURS, Agreement, Case, Prepared, one_form
from benchmarks.detectors import SEED, DetectorOptions, drawn_images
from benchmarks.evaluating import OBJECTS_PER_IMAGE, random_objects
from detres.config import Length
from detres.console import table
from detres.data.batching import KeyBatches, make_loader
from detres.data.config import AugmentationConfig, DetectionDataConfig, Source
from detres.data.detection_samples import DetectionDataset, collate_detection
from detres.data.drawing import write_image
from detres.data.formats import DATA_VARIABLE, list_splits, read_annotations, resolve_directory
from detres.data.sources import read_sources
from detres.detection.config import DetectionConfig, DetectionModelConfig, DetectionTrainConfig
from detres.detection.train import read_training, train_detector
from detres.errors import UserError
from detres.files import write_json
from detres.training.run_folder import RunFolder

SPLIT = "train"  # of the data sets written here
ANNOTATION_FILE = Path("annotations") / "instances_train.json"
IMAGE_FILES = 32
DRAWN_IMAGES = 256
BATCH = 2
COUNTED_IMAGES = 128  # of one run of the loader, at most
SMALLEST_BOX_DIFFERENCE = 0.01  # pixels; the file has two decimals


@dataclass(frozen=True)
class LoaderOptions:
    """What is measured.

    Attributes:
        data: A data set's folder.
        split: Its split.
        sides: Shorter side of the resized pictures, and limit of the longer.
        workers: Numbers of loader processes.
        images: Pictures in the annotation file.
        folder: Where its data set is written (see `write_data_set`).
        steps: Training steps over which waiting is measured.
        detector: What is trained in them.
    """

    data: str
    split: str | None
    sides: tuple[int, int]
    workers: tuple[int, ...]
    images: int
    folder: Path
    steps: int
    detector: DetectorOptions


def loader_cases(options: LoaderOptions) -> list[Case]:
    """Seconds a picture with each number of workers, then the reading of the annotation file."""
    images = min(COUNTED_IMAGES, max(BATCH, len(_annotations(options)))) // BATCH * BATCH
    cases = [
        Case(
            name=f"loader {workers} worker{'' if workers == 1 else 's'}",
            ours=one_form(OURS, partial(_prepare_loader, options, workers, images)),
            units=images,
            note="seconds are of one picture, workers' start included; memory is of the main process",
        )
        for workers in options.workers
    ]
    reading = Case(
        name=f"loader annotations of {options.images} pictures",
        ours=one_form(OURS, partial(_prepare_reading, options)),
        peers=(one_form("pycocotools", partial(_prepare_their_reading, options)),),
        compare=compare_objects,
    )
    return [*cases, reading]


def measure_waiting(options: LoaderOptions) -> dict[str, float]:
    """`waiting_share` with the most workers, on the data and on the large annotation file; printed and given."""
    workers = max(options.workers)
    write_data_set(options.folder, options.images)
    shares = {
        Path(options.data).name: waiting_share(options, options.data, options.split, workers),
        f"{options.images} pictures": waiting_share(options, str(options.folder), SPLIT, workers),
    }
    rows = [(name, f"{100 * share:.2f} %") for name, share in shares.items()]
    title = f"Time of {options.steps} training steps spent waiting for data, workers: {workers}"
    table(title, ("data", "share of the time"), rows)
    return shares


def waiting_share(options: LoaderOptions, data: str, split: str | None, workers: int) -> float:
    """Share of a training run's time, 0..1, in which it waited for data; a run of `options.steps` steps is made.

    Args:
        options: Steps and detector (its first precision is the run's).
        data: A data set's folder.
        split: Its split.
        workers: Processes that load pictures.
    """
    short_side, long_side = options.sides
    config = DetectionConfig(
        data=DetectionDataConfig(
            train=(Source(dir=data, split=split),),
            val_fraction=0.0,
            short_side=short_side,
            long_side=long_side,
        ),
        model=DetectionModelConfig(network=options.detector.network_config, pooler="roi_align"),
        train=DetectionTrainConfig.model_validate(
            {
                "batch": BATCH,
                "workers": workers,
                "lr": 1e-6,  # random weights would diverge
                "precision": options.detector.precisions[0],
                "length": Length.parse(f"{options.steps} iterations"),
                "evaluate_every": None,
                "log_every": options.steps,
            }
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        with (
            _only_errors(),
            RunFolder.open(Path(folder) / "run", config, resume=False, overwrite=False) as run,
        ):
            device = torch.device(options.detector.device)
            training, start = read_training(config, device)
            train_detector(config, training, start, run, device, quiet=True)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(json.loads(lines[-1])["data/wait_share"])


def compare_objects(ours: tuple[int, np.ndarray], theirs: tuple[int, np.ndarray]) -> Agreement:
    """Pictures and boxes (M, 4) xyxy in the file's order: the largest difference of a corner, in pixels."""
    if ours[0] != theirs[0] or ours[1].shape != theirs[1].shape:
        return Agreement(
            1.0, f"{ours[0]} pictures, {len(ours[1])} boxes; theirs {theirs[0]}, {len(theirs[1])}"
        )
    difference = float(np.abs(ours[1] - theirs[1]).max(initial=0.0))
    problem = f"a box differs by {difference:g} px" if difference > SMALLEST_BOX_DIFFERENCE else ""
    return Agreement(difference, problem)


def chosen_data(data: str | None, split: str | None, folder: Path) -> tuple[str, str | None]:
    """The data set and split to load: those named, else BCCD of `DETRES_DATA`, else drawn pictures written to `folder`.

    Raises:
        UserError: The data set is not there.
    """
    if data is None:
        bccd = Path(os.environ.get(DATA_VARIABLE, "")) / "bccd"
        data = str(bccd if bccd.is_dir() else write_data_set(folder, DRAWN_IMAGES))
    directory = resolve_directory(data)
    if split is None and SPLIT in list_splits(directory):
        split = SPLIT
    return str(directory), split


def write_data_set(folder: Path, images: int) -> Path:
    """A COCO folder with one split, `train`; made once in a place.

    As many objects a picture as train2017 has; the pictures are some drawn ones of 640 x 480 in JPEG, and each
    stands for many.
    """
    if folder.exists():
        return folder
    names = [f"{number:02d}.jpg" for number in range(min(images, IMAGE_FILES))]
    for name, image in zip(names, drawn_images((480, 640), len(names), "cpu").images, strict=True):
        (folder / "train").mkdir(parents=True, exist_ok=True)
        write_image(folder / "train" / name, image.permute(1, 2, 0).numpy())
    objects = random_objects(images, OBJECTS_PER_IMAGE)
    boxes = objects.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    of_image = np.repeat(np.arange(1, images + 1), np.diff(objects.offsets)).tolist()
    columns = zip(
        of_image, (objects.labels + 1).tolist(), boxes.round(2).tolist(), objects.areas.tolist(), strict=True
    )
    content: dict[str, Any] = {
        "images": [
            {"id": i + 1, "file_name": names[i % len(names)], "height": 480, "width": 640}
            for i in range(images)
        ],
        "annotations": [
            {"id": i, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": 0}
            for i, (image, label, box, area) in enumerate(columns, start=1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(objects.class_names, start=1)],
    }
    (folder / "annotations").mkdir(exist_ok=True)
    write_json(folder / ANNOTATION_FILE, content)
    return folder


@contextmanager
def _only_errors() -> Iterator[None]:
    """Without training's own lines: that its weights are random is meant here."""
    log = logging.getLogger("detres")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _annotations(options: LoaderOptions) -> Any:
    annotations, _ = read_sources([Source(dir=options.data, split=options.split)])
    if not len(annotations):
        raise UserError(f"--data {options.data}: the split has no pictures; choose another with --split")
    return annotations


def _prepare_loader(options: LoaderOptions, workers: int, images: int) -> Prepared:
    dataset = DetectionDataset(_annotations(options), *options.sides, AugmentationConfig(), SEED)

    def run() -> int:
        keys = KeyBatches(len(dataset), BATCH, seed=SEED, stop=images // BATCH)
        loader = make_loader(dataset, keys, collate_detection, workers=workers)
        return sum(len(batch) for batch in loader)

    return Prepared(run, lambda: None)


def _prepare_reading(options: LoaderOptions) -> Prepared:
    folder = write_data_set(options.folder, options.images)

    def answer() -> tuple[int, np.ndarray]:
        annotations, _ = read_annotations(folder, SPLIT)
        return len(annotations), annotations.boxes.astype(np.float64)

    return Prepared(lambda: read_annotations(folder, SPLIT), answer)


def _prepare_their_reading(options: LoaderOptions) -> Prepared:
    import contextlib
    import io

    from pycocotools.coco import COCO

    folder = write_data_set(options.folder, options.images)

    def run() -> COCO:
        with contextlib.redirect_stdout(io.StringIO()):
            return COCO(str(folder / ANNOTATION_FILE))

    def answer() -> tuple[int, np.ndarray]:
        coco = run()
        boxes = np.array([row["bbox"] for row in coco.dataset["annotations"]], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return len(coco.imgs), boxes

    return Prepared(run, answer)
