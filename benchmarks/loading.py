"""The data path: images a second of the loaders, the share of training spent waiting, a COCO-sized annotation file.

Ren et al. 2015, §3.3 (shorter side 600, flips); He et al. 2015, §3.4 (random square crops); Lin et al. 2014
(train2017: 118,287 images, 860,001 boxes).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Agreement, Case, Prepared
from benchmarks.detectors import SEED, DetectorOptions, draw_samples
from benchmarks.evaluating import OBJECTS_PER_IMAGE, random_objects
from detres.classification.data import scan_image_labels
from detres.config import Length
from detres.console import table
from detres.data.batching import KeyBatches, make_loader
from detres.data.classification_samples import ClassificationDataset, collate_classification
from detres.data.config import AugmentationConfig, CropConfig, DetectionDataConfig, Source
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
ANNOTATED_IMAGES = 120_000  # in the annotation file
IMAGE_FILES = 32
DRAWN_IMAGES = 256
SIDES = (600, 800)  # shorter side of the resized images, and limit of the longer
CROP_SIDE = 128
BATCH, CROP_BATCH = 2, 32
# Images of one run of a loader, at most: many crops, because the workers' start is counted.
COUNTED_IMAGES, COUNTED_CROPS = 128, 4096
SMALLEST_BOX_DIFFERENCE = 0.01  # pixels; the file has two decimals


def loader_cases(source: Source, workers: Sequence[int]) -> list[Case]:
    """Seconds an image of detection's loader with each number of workers."""
    images = min(COUNTED_IMAGES, max(BATCH, len(read_sources([source])[0])))
    return _worker_cases("loader", workers, images // BATCH * BATCH, partial(_prepare_loader, source))


def crop_cases(source: Source, workers: Sequence[int], side: int = CROP_SIDE) -> list[Case]:
    """Seconds a crop of classification's loader with each number of workers, e.g. out of a `.zip` read in place.

    Raises:
        UserError: The split has less images than a batch.
    """
    images = min(COUNTED_CROPS, len(scan_image_labels([source], side=side)[0]))
    if images < CROP_BATCH:
        raise UserError(
            f"--data {source.dir}: {images} images; should have {CROP_BATCH} at least, which is a batch"
        )
    name = f"loader {side} px crops"
    return _worker_cases(
        name, workers, images // CROP_BATCH * CROP_BATCH, partial(_prepare_crops, source, side)
    )


def _worker_cases(name: str, workers: Sequence[int], images: int, prepare: Any) -> list[Case]:
    """`prepare` takes the images and the number of workers."""
    return [
        Case(
            name=f"{name} {count} worker{'' if count == 1 else 's'}",
            ours=partial(prepare, images, count),
            units=images,
            note="seconds are of one image, workers' start included; memory is of the main process",
        )
        for count in workers
    ]


def reading_case(folder: Path, images: int) -> Case:
    """The reading of an annotation file with `images` images in `folder` (see `write_data_set`)."""
    return Case(
        name=f"loader annotations of {images} images",
        ours=partial(_prepare_reading, folder, images),
        peers={"pycocotools": {"": partial(_prepare_their_reading, folder, images)}},
        compare=compare_objects,
    )


def measure_waiting(
    sources: Iterable[Source], workers: int, steps: int, detector: DetectorOptions
) -> dict[str, float]:
    """Share of a training run's time, 0..1, in which it waited for data; printed and given, by the data's name.

    Args:
        sources: On each of which a run is made.
        workers: Processes that load images.
        steps: Of a run.
        detector: What is trained; its first precision is the run's.
    """
    shares = {Path(source.dir).name: _waiting_share(source, workers, steps, detector) for source in sources}
    rows = [(name, f"{100 * share:.2f} %") for name, share in shares.items()]
    title = f"Time of {steps} training steps spent waiting for data, workers: {workers}"
    table(title, ("data", "share of the time"), rows)
    return shares


def _waiting_share(source: Source, workers: int, steps: int, detector: DetectorOptions) -> float:
    config = DetectionConfig(
        data=DetectionDataConfig(
            train=(source,), val_fraction=0.0, short_side=min(detector.size), long_side=max(detector.size)
        ),
        model=DetectionModelConfig(network=detector.network_config, pooler="roi_align"),
        train=DetectionTrainConfig.model_validate(
            {
                "batch": BATCH,
                "workers": workers,
                "lr": 1e-6,  # random weights would diverge
                "precision": detector.precisions[0],
                "length": Length.parse(f"{steps} iterations"),
                "evaluate_every": None,
                "log_every": steps,
            }
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        with (
            RunFolder.open(Path(folder) / "run", config, resume=False, overwrite=False) as run,
            _only_errors(),
        ):
            device = torch.device(detector.device)
            training, start = read_training(config, device)
            train_detector(config, training, start, run, device, quiet=True)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(json.loads(lines[-1])["data/wait_share"])


def compare_objects(ours: tuple[int, np.ndarray], theirs: tuple[int, np.ndarray]) -> Agreement:
    """Pictures and boxes (M, 4) xyxy in the file's order: the largest difference of a corner, in pixels."""
    if ours[0] != theirs[0] or ours[1].shape != theirs[1].shape:
        return Agreement(1.0, f"{ours[0]} images, {len(ours[1])} boxes; theirs {theirs[0]}, {len(theirs[1])}")
    difference = float(np.abs(ours[1] - theirs[1]).max(initial=0.0))
    problem = f"a box differs by {difference:g} px" if difference > SMALLEST_BOX_DIFFERENCE else ""
    return Agreement(difference, problem)


def choose_data(data: str | None, folder: Path) -> Source:
    """The data set to load: the one named, else BCCD of `DETRES_DATA`, else drawn images written to `folder`.

    Raises:
        UserError: The data set is not there.
    """
    if data is None:
        bccd = Path(os.environ.get(DATA_VARIABLE, "")) / "bccd"
        data = str(bccd if bccd.is_dir() else write_data_set(folder, DRAWN_IMAGES))
    directory = resolve_directory(data)
    return Source(dir=str(directory), split=SPLIT if SPLIT in list_splits(directory) else None)


def write_data_set(folder: Path, images: int) -> Path:
    """A COCO folder with one split, `train`; made once in a place.

    As many objects an image as train2017 has; the images are some drawn ones of 640 x 480 in JPEG, and each
    stands for many.
    """
    if folder.exists():
        return folder
    names = [f"{number:02d}.jpg" for number in range(min(images, IMAGE_FILES))]
    (folder / SPLIT).mkdir(parents=True)
    for name, sample in zip(names, draw_samples((480, 640), len(names), "cpu"), strict=True):
        write_image(folder / SPLIT / name, sample.image.permute(1, 2, 0).numpy())
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


def _prepare_loader(source: Source, images: int, workers: int) -> Prepared:
    dataset = DetectionDataset(read_sources([source])[0], *SIDES, AugmentationConfig(), SEED)

    def run() -> int:
        keys = KeyBatches(len(dataset), BATCH, seed=SEED, stop=images // BATCH)
        return sum(len(batch) for batch in make_loader(dataset, keys, collate_detection, workers=workers))

    return Prepared(run)


def _prepare_crops(source: Source, side: int, images: int, workers: int) -> Prepared:
    """The recipe's proportions: the shorter side is 1 to 1.5 times the crop's."""
    crop = CropConfig(size=side, train_sides=(side, side * 3 // 2), test_side=None)
    labels, _ = scan_image_labels([source], side=side)
    dataset = ClassificationDataset(labels, crop, train=True, seed=SEED)

    def run() -> int:
        keys = KeyBatches(len(dataset), CROP_BATCH, seed=SEED, stop=images // CROP_BATCH)
        return sum(
            len(batch) for batch in make_loader(dataset, keys, collate_classification, workers=workers)
        )

    return Prepared(run)


def _prepare_reading(folder: Path, images: int) -> Prepared:
    write_data_set(folder, images)

    def answer() -> tuple[int, np.ndarray]:
        annotations, _ = read_annotations(folder, SPLIT)
        return len(annotations), annotations.boxes.astype(np.float64)

    return Prepared(lambda: read_annotations(folder, SPLIT), answer)


def _prepare_their_reading(folder: Path, images: int) -> Prepared:
    from pycocotools.coco import COCO

    write_data_set(folder, images)

    def run() -> COCO:
        with contextlib.redirect_stdout(io.StringIO()):
            return COCO(str(folder / ANNOTATION_FILE))

    def answer() -> tuple[int, np.ndarray]:
        coco = run()
        boxes = np.array([row["bbox"] for row in coco.dataset["annotations"]], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return len(coco.imgs), boxes

    return Prepared(run, answer)
