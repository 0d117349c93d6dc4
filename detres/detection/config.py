"""The configuration of a detector: its stages as users write them, and what a weights file keeps of them.

Defaults are the paper's (PAPER: Appendix A; Ren et al. 2015; Girshick 2015).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from detres.boxes.coding import Divisors
from detres.config import Length, Section
from detres.data.config import DetectionDataConfig
from detres.detection.inference import TestConfig
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
    accumulate: int | None = Field(default=None, ge=1, description="micro-batches of an optimiser step")
    reference_batch: int | None = Field(default=None, ge=1, description="images for which `lr` is stated")
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
    rpn_steps: AlternatingStepConfig = Field(
        default=AlternatingStepConfig(), description="steps 1 and 3 of alternating training"
    )
    region_steps: AlternatingStepConfig = Field(
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
        own = self.rpn_steps if kind == "rpn" else self.region_steps
        changes = {name: value for name in own.model_fields_set if (value := getattr(own, name)) is not None}
        nothing = AlternatingStepConfig()
        return self.model_copy(update={**changes, "rpn_steps": nothing, "region_steps": nothing})


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
    region_pooling: Literal["max", "align"] = Field(
        default="max", description="RoI max pooling (the paper's) or RoIAlign"
    )
    sampling_ratio: int = Field(default=2, ge=1, description="RoIAlign's samples a side of a cell")
    aligned: bool = Field(
        default=False, description="RoIAlign shifted by half a pixel (detectron2) or not (torchvision)"
    )
    context: bool = Field(
        default=False, description="global context: the whole image's feature beside each region's"
    )
    box_start: Literal["apart", "shared"] = Field(
        default="apart",
        description="fresh weights of the region head's box layer: each class's own, std 0.001 (Girshick 2015), or"
        " larger and the same for all classes, with which boxes are learnt in fewer steps where classes are many",
    )


class RPNConfig(Section):
    """Anchors, proposals, and the RPN's loss."""

    channels: int = Field(default=512, ge=1, description="channels of the 3x3 convolution")
    sizes: tuple[Positive, ...] = Field(
        default=(128, 256, 512), min_length=1, description="square roots of the anchors' areas"
    )
    ratios: tuple[Positive, ...] = Field(
        default=(0.5, 1, 2), min_length=1, description="heights over widths of the anchors"
    )
    cross_border: bool = Field(
        default=False, description="whether anchors that cross the border take part in the loss"
    )
    positive_iou: float = Field(
        default=0.7, gt=0, le=1, description="anchors are positive from this overlap on"
    )
    negative_iou: float = Field(
        default=0.3, gt=0, le=1, description="anchors are negative below this overlap"
    )
    samples: int = Field(default=256, ge=1, description="anchors in the loss, an image")
    positive_share: float = Field(
        default=0.5, gt=0, le=1, description="largest share of positives among them"
    )
    beta: float = Field(default=1 / 9, gt=0, description="where smooth L1 turns from square to line")
    proposals_before_nms: int = Field(
        default=12000, ge=1, description="in training (testing: test.proposals_before_nms)"
    )
    proposals: int = Field(default=2000, ge=1, description="in training (testing: test.proposals)")
    nms: float = Field(default=0.7, gt=0, le=1, description="overlap above which a worse proposal is dropped")
    min_side: float = Field(
        default=16, ge=0, description="proposals under this side are dropped; pixels of the original picture"
    )


class RegionConfig(Section):
    """Fast R-CNN's loss."""

    samples: int = Field(default=128, ge=1, description="regions in the loss, an image")
    positive_share: float = Field(
        default=0.25, gt=0, le=1, description="largest share of positives among them"
    )
    positive_iou: float = Field(
        default=0.5, gt=0, le=1, description="regions are positive from this overlap on"
    )
    negative_iou: float = Field(
        default=0.5, gt=0, le=1, description="regions are negative below this overlap"
    )
    lowest_iou: float = Field(
        default=0.0, ge=0, lt=1, description="regions under this overlap are left out (VOC: 0.1)"
    )
    partial_lowest_iou: float = Field(
        default=0.1,
        ge=0,
        lt=0.3,
        description="the same, of regions and of anchors, where not all objects are annotated (ImageNet DET's train)",
    )
    beta: float = Field(default=1.0, gt=0, description="where smooth L1 turns from square to line")
    divisors: tuple[Positive, Positive, Positive, Positive] = Field(
        default=(0.1, 0.1, 0.2, 0.2), description="what the four box offsets are divided by"
    )


class Architecture(Section):
    """What rebuilds a trained detector: the part of the configuration that its weights file keeps."""

    network: NetworkConfig
    region_pooling: Literal["max", "align"]
    sampling_ratio: int
    aligned: bool
    context: bool = False  # older files do not say
    rpn_channels: int
    anchor_sizes: tuple[float, ...]
    anchor_ratios: tuple[float, ...]
    proposal_nms: float
    proposal_min_side: float
    box_divisors: Divisors

    def proposal_options(self, test: TestConfig) -> ProposalOptions:
        """Proposals an image at test."""
        return ProposalOptions(
            test.proposals_before_nms, test.proposals, self.proposal_nms, self.proposal_min_side
        )


class DetectionConfig(Section):
    """A whole run of `train_det`."""

    data: DetectionDataConfig = DetectionDataConfig()
    model: ModelConfig = ModelConfig()
    rpn: RPNConfig = RPNConfig()
    rcnn: RegionConfig = RegionConfig()
    train: DetectorTrainConfig = DetectorTrainConfig()
    test: TestConfig = TestConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _check_overlaps(self) -> Self:
        if self.rpn.negative_iou > self.rpn.positive_iou:
            raise ValueError("rpn.negative_iou must not exceed rpn.positive_iou")
        if not self.rcnn.lowest_iou < self.rcnn.negative_iou <= self.rcnn.positive_iou:
            raise ValueError("rcnn needs lowest_iou < negative_iou <= positive_iou")
        if self.model.network.name.startswith("cifar"):
            raise ValueError("model.network.name: a CIFAR network has no conv5_x; choose an ImageNet network")
        return self

    def architecture(self, network: NetworkConfig) -> Architecture:
        """What rebuilds the detector on `network` (the configured one as its weights complete it)."""
        return Architecture(
            network=network,
            region_pooling=self.model.region_pooling,
            sampling_ratio=self.model.sampling_ratio,
            aligned=self.model.aligned,
            context=self.model.context,
            rpn_channels=self.rpn.channels,
            anchor_sizes=self.rpn.sizes,
            anchor_ratios=self.rpn.ratios,
            proposal_nms=self.rpn.nms,
            proposal_min_side=self.rpn.min_side,
            box_divisors=self.rcnn.divisors,
        )

    def step_options(self, num_classes: int) -> StepOptions:
        """The numbers of a training step."""
        return StepOptions(
            anchors=AnchorSampling(
                count=self.rpn.samples,
                positive_share=self.rpn.positive_share,
                positive_iou=self.rpn.positive_iou,
                negative_iou=self.rpn.negative_iou,
                cross_border=self.rpn.cross_border,
            ),
            proposals=ProposalOptions(
                self.rpn.proposals_before_nms, self.rpn.proposals, self.rpn.nms, self.rpn.min_side
            ),
            regions=RegionSampling(
                count=self.rcnn.samples,
                positive_share=self.rcnn.positive_share,
                positive_iou=self.rcnn.positive_iou,
                negative_iou=self.rcnn.negative_iou,
                lowest_iou=self.rcnn.lowest_iou,
                divisors=self.rcnn.divisors,
            ),
            num_classes=num_classes,
            anchor_beta=self.rpn.beta,
            region_beta=self.rcnn.beta,
            partial_lowest_iou=self.rcnn.partial_lowest_iou,
        )
