"""The configuration of a detector: its stages as users write them, and what a weights file keeps of them.

Defaults are the paper's (PAPER: Appendix A; Ren et al. 2015; Girshick 2015).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from detres.boxes.coding import TargetStds
from detres.config import Length, Section
from detres.data.config import DetectionDataConfig
from detres.detection.detect import TestConfig
from detres.detection.losses import StepOptions
from detres.detection.rpn import ProposalOptions
from detres.detection.targets import AnchorSampling, RegionSampling
from detres.evaluation.config import EvaluationConfig
from detres.networks.config import NetworkConfig
from detres.training.config import TrainConfig

Positive = Annotated[float, Field(gt=0)]


class AlternatingStepConfig(Section):
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


class DetectorTrainConfig(TrainConfig):
    """The keys of `train` for detectors."""

    mode: Literal["joint", "alternating"] = Field(
        default="joint",
        description="approximate joint training, or the four alternating steps of Ren et al. 2015",
    )
    rpn_stage: AlternatingStepConfig = Field(
        default=AlternatingStepConfig(), description="steps 1 and 3 of alternating training"
    )
    rcnn_stage: AlternatingStepConfig = Field(
        default=AlternatingStepConfig(), description="steps 2 and 4 of alternating training"
    )

    @model_validator(mode="after")
    def _check_mode(self) -> Self:
        if self.mode == "alternating" and self.schedule == "plateau":
            raise ValueError(
                "schedule plateau looks at evaluations, which steps 1 to 3 of mode alternating do not have; choose step"
                " or cosine"
            )
        return self

    def of_step(self, kind: Literal["rpn", "regions"]) -> DetectorTrainConfig:
        """The keys of one alternating step, its own put in the place of the common ones."""
        own = self.rpn_stage if kind == "rpn" else self.rcnn_stage
        changes = {name: value for name in own.model_fields_set if (value := getattr(own, name)) is not None}
        nothing = AlternatingStepConfig()
        return self.model_copy(update={**changes, "rpn_stage": nothing, "rcnn_stage": nothing})


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


class Architecture(Section):
    """What rebuilds a trained detector: the part of the configuration that its weights file keeps."""

    network: NetworkConfig
    pooler: Literal["roi_pool", "roi_align"]
    sampling_ratio: int
    aligned: bool
    global_context: bool = False  # older files do not say
    rpn_channels: int
    anchor_sizes: tuple[float, ...]
    anchor_ratios: tuple[float, ...]
    proposal_nms: float
    proposal_min_size: float
    target_stds: TargetStds

    def proposal_options(self, test: TestConfig) -> ProposalOptions:
        """Proposals an image at test."""
        return ProposalOptions(test.pre_nms_top_n, test.proposals, self.proposal_nms, self.proposal_min_size)


class DetectionConfig(Section):
    """A whole run of `train_det`."""

    data: DetectionDataConfig = DetectionDataConfig()
    model: ModelConfig = ModelConfig()
    rpn: RPNConfig = RPNConfig()
    rcnn: RCNNConfig = RCNNConfig()
    train: DetectorTrainConfig = DetectorTrainConfig()
    test: TestConfig = TestConfig()
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

    def architecture(self, network: NetworkConfig) -> Architecture:
        """What rebuilds the detector on `network` (the configured one as its weights complete it)."""
        return Architecture(
            network=network,
            pooler=self.model.pooler,
            sampling_ratio=self.model.sampling_ratio,
            aligned=self.model.aligned,
            global_context=self.model.global_context,
            rpn_channels=self.rpn.channels,
            anchor_sizes=self.rpn.anchor_sizes,
            anchor_ratios=self.rpn.aspect_ratios,
            proposal_nms=self.rpn.nms_thresh,
            proposal_min_size=self.rpn.min_size,
            target_stds=self.rcnn.target_stds,
        )

    def step_options(self, num_classes: int) -> StepOptions:
        """The numbers of a training step."""
        return StepOptions(
            anchors=AnchorSampling(
                count=self.rpn.batch_size_per_image,
                positive_fraction=self.rpn.positive_fraction,
                fg_iou_thresh=self.rpn.fg_iou_thresh,
                bg_iou_thresh=self.rpn.bg_iou_thresh,
                cross_boundary=self.rpn.cross_boundary,
            ),
            proposals=ProposalOptions(
                self.rpn.pre_nms_top_n, self.rpn.proposals, self.rpn.nms_thresh, self.rpn.min_size
            ),
            regions=RegionSampling(
                count=self.rcnn.batch_size_per_image,
                positive_fraction=self.rcnn.positive_fraction,
                fg_iou_thresh=self.rcnn.fg_iou_thresh,
                bg_iou_thresh=self.rcnn.bg_iou_thresh,
                bg_iou_thresh_lo=self.rcnn.bg_iou_thresh_lo,
                target_stds=self.rcnn.target_stds,
            ),
            num_classes=num_classes,
            anchor_beta=self.rpn.smooth_l1_beta,
            region_beta=self.rcnn.smooth_l1_beta,
            partial_bg_iou_thresh_lo=self.rcnn.partial_bg_iou_thresh_lo,
        )
