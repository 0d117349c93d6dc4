"""What a detector is trained and validated on: from the section `data` or `--data` to two sets of annotations.

Class names come from the training data and stay the same from then on. Validation images are never trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detres.data.config import DetectionDataConfig, Source
from detres.data.formats import list_splits, resolve_directory, select_classes
from detres.data.records import Annotations, ReadReport
from detres.data.shapes import is_shapes
from detres.data.sources import log_reports, read_sources
from detres.detection.config import DetectionConfig
from detres.errors import ConfigError, listed
from detres.tasks.hold_out import hold_out, hold_out_count

log = logging.getLogger("detres")

TRAIN = "train"
TRAIN_AND_VALIDATION = "trainval"
VALIDATION = ("val", "valid", "validation", "dev")


@dataclass(frozen=True)
class TrainingData:
    """What a detector is trained on and evaluated on while it trains.

    Attributes:
        train: Training images and their objects; its class names are the detector's.
        val: Validation images, None for none.
        reports: What readers dropped or mended (see `log_training_data`).
        held_out: Whether the validation images are held out of the named training images.
    """

    train: Annotations
    val: Annotations | None
    reports: tuple[ReadReport, ...] = ()
    held_out: bool = False


def with_data(
    config: DetectionConfig, directory: str | None, *, split: str | None = None, format: str | None = None
) -> DetectionConfig:
    """The configuration with its data taken from one folder (`--data`); None leaves it as it is.

    Configured splits stay. Where none are configured, the folder's splits are chosen by their names (`choose_splits`).

    Args:
        config: The configuration.
        directory: The folder, or `shapes`.
        split: The split to train on; it beats the configuration.
        format: Of the folder, where it holds two formats.

    Raises:
        ConfigError: The configuration unites several folders, which one cannot replace, or no split is for training.
        UserError: The folder is not there or holds no data set.
    """
    if directory is None:
        return config
    data = config.data
    folders = dict.fromkeys(source.dir for source in (*data.train, *data.val))
    if len(folders) > 1:
        raise ConfigError(
            f"--data {directory}: the configuration unites {listed(folders)}, which one folder cannot replace;"
            " use --set 'data.train=[{dir: ..., split: ...}]'"
        )
    if split is None and data.train:
        changed = {
            name: tuple(_moved(source, directory, format) for source in sources)
            for name, sources in (("train", data.train), ("val", data.val))
        }
        return _with(config, **changed)
    training, validation = choose_splits(directory, split, format)
    val = tuple(_moved(source, directory, format) for source in data.val)
    if not val and validation is not None:
        val = (Source(dir=directory, split=validation, format=format),)
    return _with(config, train=(Source(dir=directory, split=training, format=format),), val=val)


def with_init(config: DetectionConfig, weights: str | None) -> DetectionConfig:
    """The configuration starting from `weights` (`--init`); None leaves it as it is."""
    if weights is None:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"init": weights})})


def choose_splits(
    directory: str, split: str | None = None, format: str | None = None
) -> tuple[str, str | None]:
    """The split of a folder to train on, and the one to validate on (None: images are held out).

    Training: `split`, else `train`, else the only one whose name begins so (`train2017`), else `trainval`, else the
    only split there is. Validation: the split that goes with it (`val`, `valid`, `val2017`). It is never `test`, which
    is kept for the figures that are reported, and never a part of `trainval`.

    Raises:
        ConfigError: None or several could be meant.
        UserError: The folder is not there or holds no data set.
    """
    if is_shapes(directory):
        splits = ["train", "val", "test"]
    else:
        splits = list_splits(resolve_directory(directory), format=format)
    if split is None:
        split = _training_split(directory, splits)
    if split not in splits:
        raise ConfigError(f"{directory}: split '{split}' is not there; it has {listed(splits)}")
    if split.startswith(TRAIN) and not split.startswith(TRAIN_AND_VALIDATION):
        year = split.removeprefix(TRAIN)
        return split, next((word + year for word in VALIDATION if word + year in splits), None)
    return split, None


def _training_split(directory: str, splits: Sequence[str]) -> str:
    begin = [name for name in splits if name.startswith(TRAIN) and not name.startswith(TRAIN_AND_VALIDATION)]
    for meant in ([TRAIN] if TRAIN in splits else [], begin, [TRAIN_AND_VALIDATION], splits):
        if len(meant) == 1 and meant[0] in splits:
            return meant[0]
    raise ConfigError(
        f"{directory} has the splits {listed(splits)}: choose the one to train on with --split NAME"
    )


def read_training_data(data: DetectionDataConfig, seed: int) -> TrainingData:
    """Read what `data.train` and `data.val` name; nothing is logged yet (see `log_training_data`).

    Where no validation data is named, some of the training images are held out for it (`data.val_fraction`,
    `data.val_count`).

    Args:
        data: The section `data`.
        seed: Of the choice of held-out images.

    Raises:
        UserError: Anything wrong with the data; class names of `val` that `train` does not have.
    """
    if not data.train:
        raise ConfigError(
            "no training data is named: give --data DIR, or data.train=[{dir: ..., split: ...}]"
        )
    training, reports = read_sources(data.train)
    if data.val_count or not data.val:
        parts = hold_out(training, hold_out_count(data, len(training)), seed)
        return TrainingData(*parts, reports=tuple(reports), held_out=True)
    validation, more = read_sources(data.val)
    validation = select_classes(validation, training.class_names)
    return TrainingData(training, validation, (*reports, *more))


def log_training_data(data: TrainingData) -> None:
    """Log what readers dropped and what is validated on; in a run this comes once its folder's log is open."""
    log_reports(data.reports)
    if data.val is None:
        log.info("no validation data is named and none is held out: nothing is evaluated while training")
    elif data.held_out:
        held, total = len(data.val), len(data.train) + len(data.val)
        log.info("no validation data is named: %d of %d images are held out for it", held, total)
    else:
        _warn_of_shared_images(data.train, data.val)
    for name, part in (("train", data.train), ("val", data.val)):
        if part is not None:
            log.info(
                "%s: %d images (%d without objects), %d objects of %d classes (%s): %s",
                name,
                len(part),
                int((np.diff(part.offsets) == 0).sum()),
                len(part.labels),
                len(part.class_names),
                listed((f"{label} {count}" for label, count in part.objects_per_class().items()), 20),
                part.source,
            )


def _moved(source: Source, directory: str, format: str | None) -> Source:
    return source.model_copy(update={"dir": directory, **({"format": format} if format else {})})


def _with(config: DetectionConfig, **sources: tuple[Source, ...]) -> DetectionConfig:
    data: DetectionDataConfig = config.data.model_copy(update=sources)
    return config.model_copy(update={"data": data})


def _warn_of_shared_images(training: Annotations, validation: Annotations) -> None:
    """Warn, because figures on training images say little; a user may still want them (to overfit a few images)."""
    trained = {training.paths[index] for index in range(len(training))}
    shared = [path for index in range(len(validation)) if (path := validation.paths[index]) in trained]
    if shared:
        log.warning(
            "%d of %d validation images are training images too: %s",
            len(shared),
            len(validation),
            listed(shared, 3),
        )
