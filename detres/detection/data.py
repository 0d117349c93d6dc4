"""What a detector is trained and validated on: from the user's words (`data`, `--data`) to two sets of annotations.

Class names come from the training data and are the same everywhere after; validation pictures are never trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from detres.data.config import DetectionDataConfig, Source
from detres.data.formats import list_splits, resolve_directory, select_classes
from detres.data.records import Annotations, ReadReport
from detres.data.shapes import is_shapes
from detres.data.sources import log_reports, read_sources
from detres.detection.config import DetectionConfig
from detres.errors import ConfigError, listed
from detres.evaluation.engines import chosen_engine

log = logging.getLogger("detres")

TRAIN = "train"
TRAIN_AND_VALIDATION = "trainval"
VALIDATION = ("val", "valid", "validation", "dev")


@dataclass(frozen=True)
class TrainingData:
    """What a detector is trained on and evaluated on while it trains.

    Attributes:
        train: Objects of the training pictures; its class names are the detector's.
        val: The same of the validation pictures, None for none.
        reports: What readers dropped or mended (see `log_training_data`).
    """

    train: Annotations
    val: Annotations | None
    reports: tuple[ReadReport, ...] = ()


def with_data(
    config: DetectionConfig, directory: str | None, *, split: str | None = None, format: str | None = None
) -> DetectionConfig:
    """The configuration with its data taken from one folder (`--data`); None leaves it as it is.

    Splits that are configured stay. Where none are, the folder's own are chosen by their names (`choose_splits`).

    Args:
        config: The configuration.
        directory: The folder, or `shapes`.
        split: The split to train on, whatever is configured.
        format: Of the folder, where it holds two.

    Raises:
        ConfigError: The configuration unites several folders, which one cannot replace; no split is for training.
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
    """The split to train on and the one to validate on (None: pictures are to be held out) of a folder.

    Training: `split`, else `train`, else the only one whose name begins so (`train2017`), else `trainval`, else the
    only split there is. Validation: the one that goes with it (`val`, `valid`, `val2017`); never `test`, which is left
    for the figures that are reported, and never a part of `trainval`.

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


def read_training_data(config: DetectionConfig) -> TrainingData:
    """Read what `data.train` and `data.val` name; nothing is logged yet (see `log_training_data`).

    Where no validation data is named, a share `data.val_fraction` of the training pictures is kept for it.

    Raises:
        UserError: Anything wrong with the data; class names of `val` that `train` does not have; an engine of the
            measure that is not installed, which would else be told at the first evaluation.
    """
    if config.data.val or config.data.val_fraction:
        chosen_engine(config.evaluation.engine)
    if not config.data.train:
        raise ConfigError(
            "no training data is named: give --data DIR, or data.train=[{dir: ..., split: ...}]"
        )
    training, reports = read_sources(config.data.train)
    if not config.data.val:
        parts = hold_out(training, config.data.val_fraction, config.train.seed)
        return replace(parts, reports=tuple(reports))
    validation, more = read_sources(config.data.val)
    validation = select_classes(validation, training.class_names)
    return TrainingData(training, validation, (*reports, *more))


def log_training_data(config: DetectionConfig, data: TrainingData) -> None:
    """Log what readers dropped and what is validated on; in a run this comes once its folder's log is open."""
    log_reports(data.reports)
    if config.data.val and data.val is not None:
        _warn_of_shared_images(data.train, data.val)
    elif data.val is not None:
        held, total = len(data.val), len(data.train) + len(data.val)
        log.info("no validation data is named: %d of %d pictures are held out for it", held, total)
    else:
        log.info("no validation data is named and none is held out: nothing is evaluated while training")


def hold_out(annotations: Annotations, share: float, seed: int) -> TrainingData:
    """Keep a share of the pictures, drawn with `seed`, for validation; at least one stays to train on."""
    count = min(round(len(annotations) * share), len(annotations) - 1)
    if count <= 0:
        return TrainingData(annotations, None)
    order = np.random.default_rng(seed).permutation(len(annotations))
    training, validation = sorted(order[count:].tolist()), sorted(order[:count].tolist())
    return TrainingData(annotations.select(training), annotations.select(validation))


def _moved(source: Source, directory: str, format: str | None) -> Source:
    return source.model_copy(update={"dir": directory, **({"format": format} if format else {})})


def _with(config: DetectionConfig, **sources: tuple[Source, ...]) -> DetectionConfig:
    data: DetectionDataConfig = config.data.model_copy(update=sources)
    return config.model_copy(update={"data": data})


def _warn_of_shared_images(training: Annotations, validation: Annotations) -> None:
    """Figures on pictures that were trained on say little; a user may want them all the same (overfitting a few)."""
    trained = {training.paths[index] for index in range(len(training))}
    shared = [path for index in range(len(validation)) if (path := validation.paths[index]) in trained]
    if shared:
        log.warning(
            "%d of %d validation pictures are training pictures too: %s",
            len(shared),
            len(validation),
            listed(shared, 3),
        )
