"""One training step: forward, losses, backward, SGD; of a detector and of a classifier, beside torchvision's.

Ren et al. 2015, §3.1.3; He et al. 2015, §3.4. The rate is zero: a step costs the same, and all see the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from benchmarks.cases import Agreement, Case, Prepared, autocast, torchvision_layouts, within
from benchmarks.detectors import (
    CLASSES,
    SEED,
    DetectorOptions,
    build_peer,
    draw_samples,
    random_detector,
    training_samples,
)
from benchmarks.peers.calling import same_samples, sample_losses, sample_targets
from detres.data.preprocessing import TORCHVISION as PREPROCESSING
from detres.data.preprocessing import normalize
from detres.detection.faster_rcnn import FasterRCNN
from detres.detection.losses import training_losses
from detres.networks.config import NetworkConfig
from detres.networks.resnet import Trunk, build_network, freeze_stages
from detres.training.optimizer import build_optimizer

FROZEN_STAGES = 2  # conv1 and conv2_x, as `model.freeze_at` has it
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}  # of a loss, relative to the sum of all
CLASSIFIERS = (("resnet18", 128), ("resnet50", 224))  # (name, side of the images) of each
Losses = Mapping[str, Tensor]


def train_cases(options: DetectorOptions) -> list[Case]:
    """One case for each precision; seconds a step."""
    return [
        Case(
            name=f"train {precision}",
            ours=partial(_prepare_step, options, precision == "bfloat16"),
            peers=torchvision_layouts(partial(_prepare_torchvision_step, options, precision == "bfloat16")),
            compare=partial(compare_losses, tolerance=TOLERANCES[precision]),
            precision=getattr(torch, precision),
            note="the losses compared are of the same sampled anchors and regions",
        )
        for precision in options.precisions
    ]


def train_cls_cases(
    precisions: Sequence[str],
    device: str,
    networks: Sequence[tuple[str, int]] = CLASSIFIERS,
    batch: int = 32,
) -> list[Case]:
    """One case for each network and precision; seconds a step.

    Args:
        precisions: `float32`, `bfloat16`.
        device: Where.
        networks: (name, side of the images) of each.
        batch: Images a step.
    """
    cases = []
    for name, side in networks:
        for precision in precisions:
            prepare = partial(_prepare_classifier_step, name, (batch, side), device, precision == "bfloat16")
            cases.append(
                Case(
                    name=f"train-cls {name} {side} {precision}",
                    ours=partial(prepare, True, True),  # channels-last, as training has it
                    peers=torchvision_layouts(partial(prepare, False)),
                    compare=partial(compare_losses, tolerance=TOLERANCES[precision]),
                    precision=getattr(torch, precision),
                )
            )
    return cases


def compare_losses(ours: Losses, theirs: Losses, *, tolerance: float) -> Agreement:
    """The largest difference of a loss, relative to the sum of ours."""
    a, b = ([losses[name].detach().double() for name in ours] for losses in (ours, theirs))
    differences = torch.stack(a) - torch.stack(b)
    difference = float(differences.abs().max() / torch.stack(a).sum().abs().clamp(min=1e-12))
    return within(difference, tolerance, "losses, relative to their sum,")


def _trained_detector(options: DetectorOptions) -> FasterRCNN:
    network = random_detector(options).train()
    assert isinstance(network.trunk, Trunk)
    freeze_stages(network.trunk, FROZEN_STAGES)
    return network


def _prepare_step(options: DetectorOptions, low: bool) -> Prepared:
    network, architecture = _trained_detector(options), options.architecture
    samples = training_samples(options)

    def losses() -> Losses:
        generator = torch.Generator().manual_seed(SEED)
        with autocast(options.device, low):
            return training_losses(network, samples, architecture.rpn, architecture.rcnn, generator)

    return Prepared(_step(network, losses), losses)


def _prepare_torchvision_step(options: DetectorOptions, low: bool, channels_last: bool) -> Prepared:
    peer = build_peer(_trained_detector(options), options, channels_last)
    architecture, samples = options.architecture, training_samples(options)

    def losses() -> Losses:
        with autocast(options.device, low):
            return sample_losses(peer, samples)

    def losses_of_our_samples() -> Losses:
        generator = torch.Generator().manual_seed(SEED)
        with autocast(options.device, low):
            given = _trained_detector(options), samples, architecture.rpn, architecture.rcnn
            targets = sample_targets(*given, generator)
        with same_samples(peer, *targets):
            return losses()

    return Prepared(_step(peer, losses), losses_of_our_samples)


def _prepare_classifier_step(
    name: str, shape: tuple[int, int], device: str, low: bool, ours: bool, channels_last: bool
) -> Prepared:
    """`shape`: images of a step, and their side."""
    batch, side = shape
    config = NetworkConfig.model_validate({"name": name, "stride_in": "3x3", "pool": "torchvision"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network: nn.Module = build_network(config, CLASSES)
    if not ours:
        weights = network.state_dict()
        network = torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
        network.load_state_dict(weights)
    network = network.to(device).train()
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    crops = draw_samples((side, side), batch, device)
    images = torch.stack([crop.image for crop in crops])
    labels = torch.stack([crop.labels[0] for crop in crops])

    def losses() -> Losses:
        with autocast(device, low):
            return {"class": F.cross_entropy(network(normalize(images, PREPROCESSING)), labels)}

    return Prepared(_step(network, losses), losses)


def _step(network: nn.Module, losses: Callable[[], Losses]) -> Callable[[], None]:
    """One step of the loop on the sum of the losses."""
    optimizer = build_optimizer(network, rate=0.0, momentum=0.9, weight_decay=1e-4)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.stack([loss.float() for loss in losses().values()]).sum().backward()
        optimizer.step()

    return run
