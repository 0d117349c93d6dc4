"""Layer responses of a trained network (Figure 7), with forward variances and gradient norms (§4.1).

He et al. 2015, §4.2, "Analysis of Layer Responses": the standard deviation of each layer's output after BN and before
the nonlinearity or the addition. §4.1 verifies that neither forward nor backward signals vanish in plain networks.

N images, C channels, h and w the sides of a map. The network is in test mode, so that images are independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detres.classification.classifier import crop_of, read_classifier
from detres.classification.data import relabel_images
from detres.classification.evaluate import network_input
from detres.console import progress
from detres.data.batching import make_loader
from detres.data.classification_samples import ClassificationDataset, collate_classification
from detres.data.records import ImageLabels
from detres.networks.norm import unfreeze_batch_norm
from detres.training.feed import plain_errors


@dataclass(frozen=True)
class LayerResponse:
    """A convolution with the BN after it.

    Attributes:
        layer: The convolution's name.
        kernel: Side of its kernel.
        deviation: Standard deviation of the response over images, positions and channels.
        forward_variance: Variance of the signal that enters the convolution, over the same.
        gradient_norm: Mean over images of the norm of the gradient of the image's loss by its response.
    """

    layer: str
    kernel: int
    deviation: float
    forward_variance: float
    gradient_norm: float


def responses_of_weights(
    weights: str | Path,
    images: ImageLabels,
    *,
    num_images: int = 1000,
    batch: int = 64,
    workers: int = 2,
    device: torch.device | None = None,
    quiet: bool = False,
) -> tuple[str, list[LayerResponse]]:
    """The network's name, and its layers' responses on central crops.

    Args:
        weights: A classifier's weights file.
        images: Labeled images of the network's classes.
        num_images: At most this many of them, evenly spread.
        batch: Crops at once.
        workers: Processes that decode.
        device: Where to compute; None: the CPU.
        quiet: No progress on standard error.

    Raises:
        WeightsError: Not a classifier's file.
        DataError: Other classes than the network's, or an image that cannot be read.
    """
    network, architecture, metadata = read_classifier(weights)
    # A constant norm is folded into its convolution, so that the signal between the two does not exist.
    network = unfreeze_batch_norm(network).requires_grad_()
    crops = ClassificationDataset(
        relabel_images(images, metadata.class_names), crop_of(metadata), train=False
    )
    count = min(num_images, len(crops))
    chosen = [place * len(crops) // count for place in range(count)]
    batches = [chosen[start : start + batch] for start in range(0, count, batch)]
    device = device or torch.device("cpu")

    def inputs() -> Iterator[tuple[Tensor, Tensor]]:
        loader = make_loader(crops, batches, collate_classification, workers=workers)
        with plain_errors():
            for read in progress(loader, architecture.network.name, total=len(batches), quiet=quiet):
                yield network_input(read, metadata.preprocessing, device), read.labels.to(device)

    return architecture.network.name, layer_responses(network.to(device), inputs())


def layer_responses(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> list[LayerResponse]:
    """Responses of all convolutions on the residual or plain path, in the order of use; projections are left out.

    Args:
        network: In test mode, with BN not folded; VGG's responses are its convolutions' outputs. Its parameters are not
            changed and get no gradients.
        batches: Network inputs (N, 3, H, W) and labels (N,).

    Raises:
        ValueError: No batch.
    """
    pairs = _response_layers(network)
    signals = {name: _LayerSignals() for name, _, _ in pairs}
    handles = []
    for name, conv, response in pairs:
        handles.append(conv.register_forward_pre_hook(signals[name].enters))
        handles.append(response.register_forward_hook(signals[name].leaves))
    required = {parameter: parameter.requires_grad for parameter in network.parameters()}
    network.requires_grad_(False)
    seen = 0
    try:
        for images, labels in batches:
            logits = network(images.detach().requires_grad_(True))
            F.cross_entropy(logits, labels, reduction="sum").backward()
            seen += len(images)
    finally:
        for handle in handles:
            handle.remove()
        for parameter, requires_grad in required.items():
            parameter.requires_grad_(requires_grad)
    if seen == 0:
        raise ValueError("layer_responses: no images")
    return [
        LayerResponse(
            layer=name,
            kernel=conv.kernel_size[0],
            deviation=signals[name].response.variance() ** 0.5,
            forward_variance=signals[name].signal.variance(),
            gradient_norm=signals[name].gradients / seen,
        )
        for name, conv, _ in pairs
    ]


def _response_layers(network: nn.Module) -> list[tuple[str, nn.Conv2d, nn.Module]]:
    """Name, convolution, and the module whose output is the response: the BN registered after it, or itself."""
    pairs: list[tuple[str, nn.Conv2d, nn.Module]] = []
    for parent_name, parent in network.named_modules():
        if parent_name.endswith("downsample"):
            continue
        children = list(parent.named_children())
        for place, (name, child) in enumerate(children):
            if isinstance(child, nn.Conv2d):
                behind = children[place + 1][1] if place + 1 < len(children) else None
                response = behind if isinstance(behind, nn.BatchNorm2d) else child
                pairs.append((f"{parent_name}.{name}".lstrip("."), child, response))
    return pairs


class _Pooled:
    """Mean and variance of all values of a signal, pooled over batches in float64."""

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, 0.0, 0.0

    def add(self, maps: Tensor) -> None:
        variance, mean = torch.var_mean(maps.detach().float(), correction=0)
        average = float(mean)
        self.count += maps.numel()
        self.first += average * maps.numel()
        self.second += (float(variance) + average**2) * maps.numel()

    def variance(self) -> float:
        return max(0.0, self.second / self.count - (self.first / self.count) ** 2)


class _LayerSignals:
    """The signals of one layer."""

    def __init__(self) -> None:
        self.signal, self.response, self.gradients = _Pooled(), _Pooled(), 0.0

    def enters(self, conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.signal.add(inputs[0])

    def leaves(self, layer: nn.Module, inputs: tuple[Tensor, ...], response: Tensor) -> None:
        self.response.add(response)
        # Before the ReLU or the addition changes the tensor in place, so that the gradient is that of the response.
        response.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        self.gradients += float(gradient.flatten(1).norm(dim=1).double().sum())
