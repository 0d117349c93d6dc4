"""The configuration of a detector: its sections as users write them, and what a weights file keeps of them.

Every number of the detector has its home here, with its meaning. Functions of this room take the section that is
theirs. Defaults are the paper's and its sources' (He et al. 2015, Appendix A; Ren et al. 2015; Girshick 2015).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from detres.config import Length, Section
from detres.data.config import DetectionDataConfig
from detres.evaluation.config import EvaluationConfig
from detres.networks.config import NetworkConfig
from detres.training.config import TrainConfig

Positive = Annotated[float, Field(gt=0)]


class StageConfig(Section):
    """Keys of `train` that differ for one kind of alternating step; null takes the value of `train`."""

    length: Length | None = Field(default=None, description="length of this kind of step")
    milestones: tuple[Length, ...] | None = Field(
        default=None, description="where the learning rate is multiplied by `gamma`"
    )
    batch: int | None = Field(default=None, ge=1, description="images per micro-batch")
    accumulate: int | None = Field(default=None, ge=1, description="micro-batches per optimizer step")
    base_batch_size: int | None = Field(
        default=None, ge=1, description="images per step for which `lr` is given"
    )
    lr: float | None = Field(default=None, gt=0, description="learning rate at `base_batch_size`")

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if self.length is not None and self.length.unit == "%":
            raise ValueError(f"length is {self.length} of itself; write '12 epochs' or '240000 iterations'")
        return self


class DetectionTrainConfig(TrainConfig):
    """The keys of `train` for detectors."""

    mode: Literal["joint", "alternating"] = Field(
        default="joint",
        description="approximate joint training, or the four alternating steps of Ren et al. 2015",
    )
    rpn_stage: StageConfig = Field(
        default=StageConfig(), description="keys that differ in steps 1 and 3 of alternating training"
    )
    rcnn_stage: StageConfig = Field(
        default=StageConfig(), description="keys that differ in steps 2 and 4 of alternating training"
    )

    @model_validator(mode="after")
    def _check_mode(self) -> Self:
        if self.mode == "alternating" and self.schedule == "plateau":
            raise ValueError(
                "schedule plateau looks at evaluations, which steps 1 to 3 of mode alternating do not have; choose step"
                " or cosine"
            )
        return self

    def for_stage(self, kind: Literal["rpn", "rcnn"]) -> DetectionTrainConfig:
        """The keys of one kind of alternating step: its own, else those of `train`."""
        own = self.rpn_stage if kind == "rpn" else self.rcnn_stage
        changes = {name: value for name in own.model_fields_set if (value := getattr(own, name)) is not None}
        nothing = StageConfig()
        return self.model_copy(update={**changes, "rpn_stage": nothing, "rcnn_stage": nothing})


class DetectionModelConfig(Section):
    """The network and the weights it starts from."""

    network: NetworkConfig = Field(
        default=NetworkConfig(),
        description="depth and form; keys that the weights of `init` determine may be left out",
    )
    init: str | None = Field(
        default=None,
        description="weights to start from: a file, or torchvision:resnet18|34|50|101|152, torchvision:vgg16|19",
    )
    init_partial: bool = Field(
        default=False, description="allow weights that lack parts; layers that stay random are listed"
    )
    init_classes: dict[str, str] = Field(
        default={},
        description="classes that the detector `init` has under another name: `{aeroplane: airplane}`, name here first",
    )
    freeze_at: int = Field(
        default=2,
        ge=0,
        le=4,
        description="number of stages that are not trained: 2 means conv1 and conv2_x (VGG: conv1 and conv2)",
    )
    pooler: Literal["roi_pool", "roi_align"] = Field(
        default="roi_pool", description="RoI max pooling (the paper's) or RoIAlign"
    )
    sampling_ratio: int = Field(default=2, ge=1, description="RoIAlign: samples along each side of a cell")
    aligned: bool = Field(
        default=False, description="RoIAlign: shift by half a pixel (detectron2) or not (torchvision)"
    )
    global_context: bool = Field(
        default=False,
        description="classify each region with the whole image's feature beside its own (Appendix B)",
    )
    bbox_pred_init: Literal["per_class", "shared"] = Field(
        default="per_class",
        description="initial weights of the box layer. per_class: std 0.001, each class's own (Girshick 2015)."
        " shared: std 0.03, equal for all classes, so that boxes of many classes are learned in fewer steps",
    )


class RPNConfig(Section):
    """Anchors, proposals, and the RPN's loss."""

    channels: int = Field(default=512, ge=1, description="channels of the 3x3 convolution")
    anchor_sizes: tuple[Positive, ...] = Field(
        default=(128, 256, 512),
        min_length=1,
        description="square roots of the anchors' areas, in pixels of the resized image",
    )
    aspect_ratios: tuple[Positive, ...] = Field(
        default=(0.5, 1, 2), min_length=1, description="height divided by width of the anchors"
    )
    cross_boundary: bool = Field(
        default=False, description="whether anchors that cross the image boundary take part in the loss"
    )
    fg_iou_thresh: float = Field(
        default=0.7, gt=0, le=1, description="anchors with at least this IoU are positive"
    )
    bg_iou_thresh: float = Field(default=0.3, gt=0, le=1, description="anchors below this IoU are negative")
    batch_size_per_image: int = Field(default=256, ge=1, description="anchors per image in the loss")
    positive_fraction: float = Field(
        default=0.5, gt=0, le=1, description="largest fraction of positives among them"
    )
    smooth_l1_beta: float = Field(
        default=1 / 9, gt=0, description="smooth L1 is quadratic below this difference and linear above"
    )
    pre_nms_top_n: int = Field(
        default=12000,
        ge=1,
        description="anchors that are decoded before NMS, in training (at test: test.pre_nms_top_n)",
    )
    proposals: int = Field(
        default=2000, ge=1, description="proposals per image after NMS, in training (at test: test.proposals)"
    )
    nms_thresh: float = Field(
        default=0.7, gt=0, le=1, description="IoU above which a proposal with a lower score is dropped"
    )
    min_size: float = Field(
        default=16,
        ge=0,
        description="proposals with a shorter side are dropped; pixels of the original image",
    )


class RCNNConfig(Section):
    """Fast R-CNN's loss."""

    batch_size_per_image: int = Field(default=128, ge=1, description="regions per image in the loss")
    positive_fraction: float = Field(
        default=0.25, gt=0, le=1, description="largest fraction of positives among them"
    )
    fg_iou_thresh: float = Field(
        default=0.5, gt=0, le=1, description="regions with at least this IoU are positive"
    )
    bg_iou_thresh: float = Field(default=0.5, gt=0, le=1, description="regions below this IoU are negative")
    bg_iou_thresh_lo: float = Field(
        default=0.0, ge=0, lt=1, description="regions below this IoU are left out (VOC: 0.1)"
    )
    partial_bg_iou_thresh_lo: float = Field(
        default=0.1,
        ge=0,
        lt=0.3,
        description="the same, for regions and anchors of images whose objects are not all annotated (ImageNet DET)",
    )
    smooth_l1_beta: float = Field(
        default=1.0, gt=0, description="smooth L1 is quadratic below this difference and linear above"
    )
    target_stds: tuple[Positive, Positive, Positive, Positive] = Field(
        default=(0.1, 0.1, 0.2, 0.2),
        description="standard deviations by which the four box offsets are divided",
    )


class DetectionTestConfig(Section):
    """How a detector is tested; the keywords of the Python API have the same names."""

    __test__ = False  # pytest takes classes with this name for tests

    score_thresh: float = Field(
        default=0.05, ge=0, lt=1, description="detections must score above this (COCO evaluation may use 0)"
    )
    detections_per_img: int = Field(default=100, ge=1, description="detections kept per image")
    nms_thresh: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="IoU above which a detection of the same class with a lower score is dropped",
    )
    proposals: int = Field(default=300, ge=1, description="proposals per image; fewer are faster")
    pre_nms_top_n: int = Field(default=6000, ge=1, description="anchors that are decoded before NMS")
    refine: bool = Field(
        default=False,
        description="box refinement: pool and score the predicted boxes again, and keep both predictions",
    )
    box_voting: bool = Field(
        default=False,
        description="box voting: move each kept box to the score-weighted mean of the boxes around it",
    )
    voting_iou_thresh: float = Field(
        default=0.5, gt=0, lt=1, description="boxes vote for a kept box if their IoU with it is above this"
    )
    flip: bool = Field(default=False, description="average over the image and its mirror image")
    scales: tuple[int, ...] | None = Field(
        default=None,
        description="shorter sides of the image pyramid, e.g. [200, 400, 600, 800, 1000]; null: only data.short_side",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="type of the convolutions; bfloat16 is faster where the processor has it; scores differ from the"
        " third digit on",
    )

    @field_validator("scales")
    @classmethod
    def _check_scales(cls, scales: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if scales is not None and (not scales or scales[0] < 1 or list(scales) != sorted(set(scales))):
            shown = f"[{', '.join(map(str, scales))}]"
            raise ValueError(f"{shown} should be shorter sides in rising order, such as [400, 600, 800]")
        return scales


class DetectorArchitecture(Section):
    """What rebuilds a trained detector: the sections of the configuration that its weights file keeps."""

    model: DetectionModelConfig
    rpn: RPNConfig
    rcnn: RCNNConfig


class DetectionConfig(Section):
    """A whole run of `train_det`."""

    data: DetectionDataConfig = DetectionDataConfig()
    model: DetectionModelConfig = DetectionModelConfig()
    rpn: RPNConfig = RPNConfig()
    rcnn: RCNNConfig = RCNNConfig()
    train: DetectionTrainConfig = DetectionTrainConfig()
    test: DetectionTestConfig = DetectionTestConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _check_overlaps(self) -> Self:
        if self.rpn.bg_iou_thresh > self.rpn.fg_iou_thresh:
            raise ValueError("rpn.bg_iou_thresh must not exceed rpn.fg_iou_thresh")
        if not self.rcnn.bg_iou_thresh_lo < self.rcnn.bg_iou_thresh <= self.rcnn.fg_iou_thresh:
            raise ValueError("rcnn needs bg_iou_thresh_lo < bg_iou_thresh <= fg_iou_thresh")
        if self.model.network.name.startswith("cifar"):
            raise ValueError("model.network.name: a CIFAR network has no conv5_x; choose an ImageNet network")
        return self

    def architecture(self, network: NetworkConfig) -> DetectorArchitecture:
        """What rebuilds the detector on `network` (the configured one as its initial weights complete it)."""
        start = {"network": network, "init": None, "init_partial": False, "init_classes": {}}
        return DetectorArchitecture(model=self.model.model_copy(update=start), rpn=self.rpn, rcnn=self.rcnn)
