"""The configuration of a classifier's training, and the part of it that a weights file keeps (He et al. 2015, §3.4)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from detres.classification.crops import EvalCrops
from detres.classification.mixing import MixingConfig
from detres.config import Section
from detres.data.config import CropConfig, DataConfig
from detres.networks.config import NetworkConfig
from detres.training.config import TrainConfig


class ClassificationDataConfig(DataConfig):
    """Images with one class each: class-per-folder trees, a .zip or .tar of one, CIFAR-10's batches, or shapes."""

    crop: CropConfig = Field(default=CropConfig(), description="square crops that the network sees")
    mean: str | None = Field(
        default=None,
        description="what is subtracted. null: what the initial weights ask for, or without any torchvision's mean and"
        " std of each channel; pixel: the mean of each pixel over the training images; or a .npy file with such a"
        " mean, (3, size, size), BGR in 0..255",
    )
    mean_images: int | None = Field(
        default=None,
        ge=1,
        description="number of images over which that mean and the colors of `crop.pca_color` are computed; null: all",
    )
    mixing: MixingConfig = Field(
        default=MixingConfig(), description="soft targets and mixed images in training (not in the paper)"
    )
    unreadable: Literal["stop", "skip"] = Field(
        default="stop",
        description="whether an image that cannot be read stops the run, or is left out, named and counted",
    )


class ClassificationModelConfig(Section):
    """The network and its initial weights."""

    network: NetworkConfig = Field(
        default=NetworkConfig(), description="keys that the weights of `init` decide may be left out"
    )
    init: str | None = Field(
        default=None,
        description="weights to start from: a file, or torchvision:resnet18|34|50|101|152, torchvision:vgg16|19",
    )
    init_partial: bool = Field(
        default=False, description="allow weights that lack tensors; those that stay random are listed"
    )
    freeze_at: int = Field(
        default=0,
        ge=0,
        le=4,
        description="stages that are not trained, with their BN: 1 = conv1, ..., 4 = conv1 to conv4_x",
    )
    freeze_batch_norm: bool = Field(default=False, description="keep BN constant in the trained stages too")


class ClassificationTestConfig(Section):
    """How a classifier is tested: on the central crop, ten crops, or whole images of several sizes."""

    batch: int = Field(default=64, ge=1, description="crops that go through the network at once")
    crops: Literal[1, 10] = Field(
        default=1,
        description="1: the central crop; 10: also the four corners, and all of them mirrored; scores are averaged",
    )
    scales: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(),
        description="test fully convolutionally on whole images with these shorter sides instead of crops"
        " (the paper: [224, 256, 384, 480, 640]); scores are averaged",
    )
    flip: bool = Field(
        default=False, description="average with the scores of the mirror image (not in the paper)"
    )

    def eval_crops(self) -> EvalCrops:
        """The crops that the network scores."""
        return EvalCrops(self.crops, self.scales, self.flip)

    @model_validator(mode="after")
    def _check_crops(self) -> Self:
        if self.scales and self.crops > 1:
            raise ValueError("crops and scales are two ways to test: give one of them")
        return self


class ClassificationConfig(Section):
    """A whole run of `train_cls`."""

    data: ClassificationDataConfig = ClassificationDataConfig()
    model: ClassificationModelConfig = ClassificationModelConfig()
    train: TrainConfig = TrainConfig()
    test: ClassificationTestConfig = ClassificationTestConfig()

    @model_validator(mode="after")
    def _check_frozen_stages(self) -> Self:
        if self.model.freeze_at and self.model.network.name.startswith("cifar"):
            raise ValueError("model.freeze_at: a CIFAR network has no conv1..conv4_x to freeze; use 0")
        if self.model.init and self.data.mean:
            raise ValueError("data.mean: the preprocessing comes with the weights of model.init; use null")
        return self


class ClassifierArchitecture(Section):
    """The part of the configuration that rebuilds a trained classifier; its weights file keeps it."""

    network: NetworkConfig
    frozen_stages: int = Field(default=0, ge=0, le=4, description="stages whose BN is constant")
    frozen_batch_norm: bool = Field(default=False, description="all BN is constant")
