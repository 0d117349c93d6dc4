"""Configuration of data: where images come from, how large they are made, how training changes them.

He et al. 2015, §3.4 (classification) and §4.3 with Ren et al. 2015, §3.3 (detection: shorter side 600).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator
from typing_extensions import Self

from detres.config import Section


class Source(Section):
    """One split of one data set."""

    dir: str = Field(
        description="data set folder; a relative one is looked up in DETRES_DATA, else datasets/"
    )
    split: str | None = Field(
        default=None, description="split to read; may be left out if the data set has only one"
    )
    format: str | None = Field(
        default=None,
        description="coco, voc, yolo or imagenet_det, if the folder holds more than one format",
    )


class AugmentationConfig(Section):
    """What training changes at random; all off where the values are 0 and null."""

    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a horizontal flip")
    brightness_contrast: float = Field(
        default=0.0, ge=0, lt=1, description="largest relative change of brightness and of contrast"
    )
    scale_jitter: tuple[float, float] | None = Field(
        default=None, description="range of a random factor on short_side and long_side, e.g. [0.8, 1.2]"
    )

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.scale_jitter and not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise ValueError("scale_jitter must be [smallest, largest] with 0 < smallest <= largest")
        return self


class DataConfig(Section):
    """What a task is trained on and evaluated on while training: the keys that all tasks have."""

    train: tuple[Source, ...] = Field(
        default=(), description="data to train on; several data sets are united"
    )
    val: tuple[Source, ...] = Field(
        default=(), description="data to evaluate on during training; may be empty"
    )
    val_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the training images that is held out for validation if `val` is empty",
    )
    val_count: int = Field(
        default=0,
        ge=0,
        description="number of training images that are held out for validation, instead of val (CIFAR-10's 45k/5k"
        " split: 5000)",
    )

    @model_validator(mode="before")
    @classmethod
    def _count_replaces_default_fraction(cls, values: Any) -> Any:
        return (
            {"val_fraction": 0.0, **values}
            if isinstance(values, dict) and values.get("val_count")
            else values
        )

    @model_validator(mode="after")
    def _check_one_hold_out(self) -> Self:
        if self.val_count and self.val_fraction:
            raise ValueError(
                "val_fraction and val_count both say how many images to hold out: give one of them"
            )
        return self


class DetectionDataConfig(DataConfig):
    """Images and boxes for detection."""

    val_fraction: float = Field(
        default=0.15,
        ge=0,
        lt=1,
        description="share of the training images that is held out for validation if `val` is empty",
    )
    short_side: int = Field(
        default=600, gt=0, description="images are resized so that their shorter side has this many pixels"
    )
    long_side: int = Field(
        default=1000,
        gt=0,
        description="if the longer side would exceed this, it gets this many pixels instead",
    )
    reduced_decoding: bool = Field(
        default=False,
        description="training: decode JPEGs at 1/2, 1/4 or 1/8 if they are shrunk that far; faster and smoother",
    )
    augmentation: AugmentationConfig = Field(
        default=AugmentationConfig(), description="random changes in training"
    )

    @model_validator(mode="after")
    def _check_sides(self) -> Self:
        if self.long_side < self.short_side:
            raise ValueError(f"long_side ({self.long_side}) must be at least short_side ({self.short_side})")
        return self


class CropConfig(Section):
    """Square crops for classification (§3.4; §4.2 for CIFAR-10, which pads by 4 and does not resize)."""

    size: int = Field(default=224, gt=0, description="side of the square crop the network sees")
    train_sides: tuple[int, int] | None = Field(
        default=(256, 480),
        description="training: the shorter side is drawn from this range; null: not resized",
    )
    test_side: int | None = Field(
        default=256, gt=0, description="testing: the shorter side; null: not resized"
    )
    pad: int = Field(
        default=0, ge=0, description="training: zero pixels put on every side before cropping (CIFAR-10: 4)"
    )
    flip: float = Field(default=0.5, ge=0, le=1, description="training: probability of a horizontal flip")
    pca_color: float = Field(
        default=0.0,
        ge=0,
        description="training: standard deviation of the random color shift along the principal components of the"
        " training images' colors (Krizhevsky et al. 2012: 0.1)",
    )

    @model_validator(mode="after")
    def _check_sides(self) -> Self:
        if self.train_sides and not self.size <= self.train_sides[0] <= self.train_sides[1]:
            raise ValueError(
                f"train_sides must be [smallest, largest] with size ({self.size}) <= smallest <= largest"
            )
        if self.test_side and self.test_side < self.size:
            raise ValueError(f"test_side ({self.test_side}) must be at least size ({self.size})")
        return self
