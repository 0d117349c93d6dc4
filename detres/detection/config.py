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
    """What an alternating step has of its own; where a key says nothing, that of `train` holds."""

    length: Length | None = Field(default=None, description="how long this kind of step trains")
    milestones: tuple[Length, ...] | None = Field(default=None, description="where the rate falls")
    batch: int | None = Field(default=None, ge=1, description="images of a micro-batch")
    accumulate: int | None = Field(default=None, ge=1, description="micro-batches of an optimizer step")
    base_batch_size: int | None = Field(default=None, ge=1, description="images for which `lr` is stated")
    lr: float | None = Field(default=None, gt=0, description="learning rate at the reference batch")

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
    rpn_stage: StageConfig = Field(default=StageConfig(), description="steps 1 and 3 of alternating training")
    rcnn_stage: StageConfig = Field(
        default=StageConfig(), description="steps 2 and 4 of alternating training"
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
        """The keys of one alternating step, its own put in the place of the common ones."""
        own = self.rpn_stage if kind == "rpn" else self.rcnn_stage
        changes = {name: value for name in own.model_fields_set if (value := getattr(own, name)) is not None}
        nothing = StageConfig()
        return self.model_copy(update={**changes, "rpn_stage": nothing, "rcnn_stage": nothing})


class DetectionModelConfig(Section):
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
    init_classes: dict[str, str] = Field(
        default={},
        description="classes that `init`, a detector, has under another name: `{aeroplane: airplane}`, name here first",
    )
    freeze_at: int = Field(
        default=2, ge=0, le=4, description="stages not trained: 2 = conv1 and conv2_x (VGG: conv1 and conv2)"
    )
    pooler: Literal["roi_pool", "roi_align"] = Field(
        default="roi_pool", description="RoI max pooling (the paper's) or RoIAlign"
    )
    sampling_ratio: int = Field(default=2, ge=1, description="RoIAlign's samples a side of a cell")
    aligned: bool = Field(
        default=False, description="RoIAlign shifted by half a pixel (detectron2) or not (torchvision)"
    )
    global_context: bool = Field(
        default=False, description="global context: the whole image's feature beside each region's"
    )
    bbox_pred_init: Literal["per_class", "shared"] = Field(
        default="per_class",
        description="fresh weights of the region head's box layer: each class's own, std 0.001 (Girshick 2015), or"
        " larger and the same for all classes, with which boxes are learnt in fewer steps where classes are many",
    )


class RPNConfig(Section):
    """Anchors, proposals, and the RPN's loss."""

    channels: int = Field(default=512, ge=1, description="channels of the 3x3 convolution")
    anchor_sizes: tuple[Positive, ...] = Field(
        default=(128, 256, 512), min_length=1, description="square roots of the anchors' areas"
    )
    aspect_ratios: tuple[Positive, ...] = Field(
        default=(0.5, 1, 2), min_length=1, description="heights over widths of the anchors"
    )
    cross_boundary: bool = Field(
        default=False, description="whether anchors that cross the border take part in the loss"
    )
    fg_iou_thresh: float = Field(
        default=0.7, gt=0, le=1, description="anchors are positive from this overlap on"
    )
    bg_iou_thresh: float = Field(
        default=0.3, gt=0, le=1, description="anchors are negative below this overlap"
    )
    batch_size_per_image: int = Field(default=256, ge=1, description="anchors in the loss, an image")
    positive_fraction: float = Field(
        default=0.5, gt=0, le=1, description="largest share of positives among them"
    )
    smooth_l1_beta: float = Field(
        default=1 / 9, gt=0, description="where smooth L1 turns from square to line"
    )
    pre_nms_top_n: int = Field(default=12000, ge=1, description="in training (testing: test.pre_nms_top_n)")
    proposals: int = Field(default=2000, ge=1, description="in training (testing: test.proposals)")
    nms_thresh: float = Field(
        default=0.7, gt=0, le=1, description="overlap above which a worse proposal is dropped"
    )
    min_size: float = Field(
        default=16, ge=0, description="proposals under this side are dropped; pixels of the original picture"
    )


class RCNNConfig(Section):
    """Fast R-CNN's loss."""

    batch_size_per_image: int = Field(default=128, ge=1, description="regions in the loss, an image")
    positive_fraction: float = Field(
        default=0.25, gt=0, le=1, description="largest share of positives among them"
    )
    fg_iou_thresh: float = Field(
        default=0.5, gt=0, le=1, description="regions are positive from this overlap on"
    )
    bg_iou_thresh: float = Field(
        default=0.5, gt=0, le=1, description="regions are negative below this overlap"
    )
    bg_iou_thresh_lo: float = Field(
        default=0.0, ge=0, lt=1, description="regions under this overlap are left out (VOC: 0.1)"
    )
    partial_bg_iou_thresh_lo: float = Field(
        default=0.1,
        ge=0,
        lt=0.3,
        description="the same, of regions and of anchors, where not all objects are annotated (ImageNet DET's train)",
    )
    smooth_l1_beta: float = Field(default=1.0, gt=0, description="where smooth L1 turns from square to line")
    target_stds: tuple[Positive, Positive, Positive, Positive] = Field(
        default=(0.1, 0.1, 0.2, 0.2), description="what the four box offsets are divided by"
    )


class DetectionTestConfig(Section):
    """How a detector is tested; the keywords of the Python API have the same names."""

    __test__ = False  # not a class of tests, whatever pytest thinks of its name

    score_thresh: float = Field(
        default=0.05, ge=0, lt=1, description="detections must score above this (COCO evaluation may use 0)"
    )
    detections_per_img: int = Field(default=100, ge=1, description="detections kept an image")
    nms_thresh: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="overlap above which a worse detection of the same class is dropped",
    )
    proposals: int = Field(default=300, ge=1, description="proposals an image: fewer are faster")
    pre_nms_top_n: int = Field(
        default=6000, ge=1, description="best anchors that become boxes before their suppression"
    )
    refine: bool = Field(
        default=False, description="pool and score the regressed boxes again and join both predictions"
    )
    box_voting: bool = Field(
        default=False, description="move kept boxes to the mean, weighted by score, of those around them"
    )
    voting_iou_thresh: float = Field(
        default=0.5, gt=0, lt=1, description="voters overlap a kept box by more than this"
    )
    flip: bool = Field(default=False, description="average over the picture and its mirror image")
    scales: tuple[int, ...] | None = Field(
        default=None,
        description="shorter sides that regions are pooled from, e.g. [200, 400, 600, 800, 1000]; "
        "null: the network's own alone",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of the convolutions; bfloat16: sooner where processors have it, scores differ in the third digit",
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
