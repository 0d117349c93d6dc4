"""The configuration of a classifier's training, and what its weights file keeps of it.

He et al. 2015, §3.4.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from detres.classification.crops import Views
from detres.classification.mixing import MixingConfig
from detres.config import Section
from detres.data.config import CropConfig, Source
from detres.networks.config import NetworkConfig
from detres.training.config import TrainConfig


class ClassificationDataConfig(Section):
    """Pictures with one class each."""

    train: tuple[Source, ...] = Field(
        default=(),
        description="class-per-folder trees, a .zip or .tar of one, CIFAR-10's batches, or shapes; several are united",
    )
    val: tuple[Source, ...] = Field(
        default=(), description="data to evaluate on while training; may be empty"
    )
    val_count: int = Field(
        default=0,
        ge=0,
        description="training pictures, drawn once and for all, that are evaluated on instead of `val` and not trained"
        " on (CIFAR-10's 45k/5k split: 5000)",
    )
    crop: CropConfig = Field(default=CropConfig(), description="square crops that the network sees")
    mean: str | None = Field(
        default=None,
        description="what is subtracted: null, the initial weights' own, else torchvision's mean (and std) of each"
        " channel; pixel, the training pictures' mean of each pixel; or its file, .npy, (3, size, size) BGR 0..255",
    )
    mean_images: int | None = Field(
        default=None,
        ge=1,
        description="pictures over which that mean and the colors of `crop.pca_color` are computed; null: all",
    )
    mixing: MixingConfig = Field(
        default=MixingConfig(), description="soft targets and mixed pictures in training (not in the paper)"
    )
    unreadable: Literal["stop", "skip"] = Field(
        default="stop",
        description="a picture that cannot be read stops the run, or is left out, named and counted",
    )


class ModelConfig(Section):
    """The network and the weights it starts from."""

    network: NetworkConfig = Field(
        default=NetworkConfig(), description="what the weights of `init` settle need not be said"
    )
    init: str | None = Field(
        default=None,
        description="weights to start from: a file, or torchvision:resnet18|34|50|101|152, torchvision:vgg16|19",
    )
    init_partial: bool = Field(
        default=False, description="allow weights that lack parts; what stays random is listed"
    )
    freeze_at: int = Field(
        default=0,
        ge=0,
        le=4,
        description="stages not trained, BN included: 1 = conv1, ..., 4 = conv1 to conv4_x",
    )
    freeze_batch_norm: bool = Field(
        default=False, description="keep BN constant in the stages that are trained, too"
    )


class TestConfig(Section):
    """How a classifier is tested: on the central crop, ten crops, or whole pictures of several sizes."""

    batch: int = Field(default=64, ge=1, description="crops that go through the network at once")
    crops: Literal[1, 10] = Field(
        default=1, description="the central crop, or also the corners' and all mirrored; scores are averaged"
    )
    scales: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(),
        description="fully convolutional on whole pictures of these shorter sides instead of crops"
        " (the paper: [224, 256, 384, 480, 640]); scores are averaged",
    )
    flip: bool = Field(
        default=False, description="average with the mirrored view's scores (not in the paper)"
    )

    def views(self) -> Views:
        """What the network looks at."""
        return Views(self.crops, self.scales, self.flip)

    @model_validator(mode="after")
    def _check_views(self) -> Self:
        if self.scales and self.crops > 1:
            raise ValueError("crops and scales are two ways to test: give one of them")
        return self


class ClassificationConfig(Section):
    """A whole run of `train_cls`."""

    data: ClassificationDataConfig = ClassificationDataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    test: TestConfig = TestConfig()

    @model_validator(mode="after")
    def _check_frozen_stages(self) -> Self:
        if self.model.freeze_at and self.model.network.name.startswith("cifar"):
            raise ValueError("model.freeze_at: a CIFAR network has no conv1..conv4_x to freeze; use 0")
        if self.model.init and self.data.mean:
            raise ValueError("data.mean: the preprocessing comes with the weights of model.init; use null")
        return self


class Architecture(Section):
    """What rebuilds a trained classifier: the part of the configuration that its weights file keeps."""

    network: NetworkConfig
    frozen_stages: int = Field(default=0, ge=0, le=4, description="stages whose BN is constant")
    frozen_batch_norm: bool = Field(default=False, description="all BN is constant")
