"""Batch normalization as the detector uses it: frozen, folded into convolutions, with exact statistics.

He et al. 2015, Appendix A: statistics over the training set, then a linear activation with constant offset and scale.

Glossary: N images, C channels, H and W the sides of a map. scale = weight / sqrt(running_var + eps),
offset = bias - running_mean * scale, so that norm(maps) = maps * scale + offset for each channel.
"""

# pyright: reportUnknownMemberType=false
# because torch leaves some methods of Tensor partly untyped.

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization whose statistics, weight and bias are constants (buffers, never trained).

    Args:
        channels: C.
        eps: Added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_and_offset(self) -> tuple[Tensor, Tensor]:
        """Scale (C,) and offset (C,) of the channels."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape and dtype."""
        scale, offset = (constant.to(maps.dtype)[:, None, None] for constant in self.scale_and_offset())
        return maps * scale + offset

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"

    def _load_from_state_dict(  # type: ignore[override]  # the arguments behind the prefix are only passed on
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # the counter of nn.BatchNorm2d has no use here
        super()._load_from_state_dict(state_dict, prefix, *args)


def freeze_batch_norm(module: AnyModule) -> AnyModule:
    """Replace every `nn.BatchNorm2d` in `module` by a `FrozenBatchNorm2d` of the same values, in place.

    Returns:
        `module`, or the frozen layer where `module` is itself a `nn.BatchNorm2d`.
    """
    if isinstance(module, nn.BatchNorm2d):
        frozen = FrozenBatchNorm2d(module.num_features, module.eps)
        frozen.to(module.weight.device, module.weight.dtype).load_state_dict(module.state_dict())
        return cast(AnyModule, frozen)  # a norm that is the root changes its class
    for name, child in module.named_children():
        setattr(module, name, freeze_batch_norm(child))
    return module


def unfreeze_batch_norm(module: AnyModule) -> AnyModule:
    """Replace every `FrozenBatchNorm2d` in `module` by a `nn.BatchNorm2d` of the same values, in place.

    In evaluation mode the module computes the same as before. Each layer takes the mode of the layer it replaces.

    Returns:
        `module`, or the new layer where `module` is itself a `FrozenBatchNorm2d`.
    """
    if isinstance(module, FrozenBatchNorm2d):
        norm = nn.BatchNorm2d(module.weight.numel(), module.eps).train(module.training)
        norm.to(module.weight.device, module.weight.dtype)
        norm.load_state_dict(module.state_dict(), strict=False)  # a frozen norm has no num_batches_tracked
        return cast(AnyModule, norm)
    for name, child in module.named_children():
        setattr(module, name, unfreeze_batch_norm(child))
    return module


def convolve(conv: nn.Conv2d, norm: nn.Module, maps: Tensor) -> Tensor:
    """`norm(conv(maps))`; a frozen norm is folded into the weights, so that it costs no pass over the activations.

    conv(maps, w) * scale + offset = conv(maps, w * scale) + offset. The gradients of `maps` and `w` are the same too,
    because scale is a constant.

    Args:
        conv: A convolution without bias.
        norm: The layer after it: `FrozenBatchNorm2d`, `nn.BatchNorm2d` or `nn.Identity`.
        maps: (N, C, H, W).
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(conv(maps))
    weight, offset = fold_norm(conv, norm)
    padding = cast("tuple[int, int]", conv.padding)  # no convolution here names its padding by a word
    stride, dilation = cast("tuple[int, int]", conv.stride), cast("tuple[int, int]", conv.dilation)
    return F.conv2d(maps, weight, offset, stride, padding, dilation, conv.groups)


def fold_norm(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the single convolution that is equal to `conv` followed by a constant norm.

    Args:
        conv: A convolution; its bias is used only if `norm` is an identity, because then the norm is folded already.
        norm: `FrozenBatchNorm2d` or `nn.Identity`.
    """
    if isinstance(norm, nn.Identity):
        return conv.weight, conv.bias
    assert isinstance(norm, FrozenBatchNorm2d)
    scale, offset = norm.scale_and_offset()
    weight = conv.weight * scale[:, None, None, None]
    return weight, offset.to(weight.dtype)


def fold_batch_norm(module: AnyModule) -> AnyModule:
    """A copy of `module` for inference, with each frozen norm folded into the convolution registered before it."""
    module = copy.deepcopy(module)
    for parent in module.modules():
        children = list(parent.named_children())
        for (_, conv), (name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d):
                weight, offset = fold_norm(conv, norm)
                assert offset is not None
                conv.weight, conv.bias = nn.Parameter(weight.detach()), nn.Parameter(offset)
                setattr(parent, name, nn.Identity())
    return module


def rescale_folded_convolutions(module: nn.Module) -> int:
    """Give convolutions with folded BN weights of the usual size, in place; the network's function does not change.

    A file with folded BN has frozen norms of scale 1 after convolutions w * scale. SGD then moves the product as if
    scale were 1, but in the original network it moved by scale^2, often a tenth, so that a usual learning rate is too
    high for such layers. Here w becomes w / r and the scale becomes r, with r = |w| / sqrt(2) of each filter, because
    sqrt(2) is the length that He et al. 2015b initialize a filter with.

    Args:
        module: A network without biases. A frozen norm counts as folded into the convolution registered before it if
            its scale is 1 in all channels (to 1e-3) and it has an offset.

    Returns:
        How many convolutions were rescaled.
    """
    rescaled = 0
    for parent in module.modules():
        for (_, conv), (_, norm) in itertools.pairwise(parent.named_children()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d) and _is_folded(norm):
                _rescale(conv, norm)
                rescaled += 1
    return rescaled


def _is_folded(norm: FrozenBatchNorm2d) -> bool:
    """Whether a norm consists of its offset alone; a newly initialized one has no offset either."""
    scale, offset = norm.scale_and_offset()
    return bool(((scale - 1).abs() < 1e-3).all() and offset.any())


@torch.no_grad()
def _rescale(conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> None:
    length = cast(Tensor, conv.weight.flatten(1).norm(dim=1)) / 2**0.5  # (C,)
    length[length == 0] = 1  # a filter of zeros
    conv.weight /= length[:, None, None, None]
    norm.weight *= length
    norm.running_mean /= length


class _StopForward(Exception):
    """Ends a forward pass at the layer whose statistics are computed."""


class _Moments:
    """First and second moments of the input of one layer, pooled over images in float64."""

    def __init__(self, stop: bool = False) -> None:
        self.count = 0
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0
        self.stop = stop

    def __call__(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        maps = inputs[0]
        values = maps.numel() // maps.shape[1]
        precision = torch.promote_types(maps.dtype, torch.float32)
        variance, mean = torch.var_mean(maps.to(precision), dim=(0, 2, 3), correction=0)  # (C,)
        mean, variance = mean.double(), variance.double()
        self.count += values
        self.first = self.first + mean * values
        self.second = self.second + (variance + mean**2) * values
        if self.stop:
            raise _StopForward

    def write(self, norm: nn.BatchNorm2d) -> None:
        if self.count == 0:
            return
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = torch.as_tensor(self.first) / self.count
        norm.running_mean.copy_(mean)
        norm.running_var.copy_((torch.as_tensor(self.second) / self.count - mean**2).clamp(min=0))


@torch.no_grad()
def update_batch_norm_statistics(
    network: nn.Module, batches: Iterable[Tensor], *, exact: bool = False
) -> int:
    """Write the statistics of the images in `batches` into every `nn.BatchNorm2d` of `network`, in place.

    In one pass (the default) each batch is normalized by itself, and the first and second moments of each layer's input
    are pooled over all batches in float64. The exact form goes layer by layer, with the statistics of the layers before
    already final. It equals one batch of all images, takes one pass for each layer, and is computed in float64. The
    variance is the moment about the mean (not the n - 1 estimate).

    Args:
        network: A network with `nn.BatchNorm2d`; its training or evaluation mode is left as it was.
        batches: Network inputs, (N, 3, H, W) each. The exact form iterates once for each layer, so that a generator
            does not do.
        exact: Whether to use the exact form.

    Returns:
        The number of images.

    Raises:
        ValueError: No batch, or no `nn.BatchNorm2d` in `network`.

    Source: He et al. 2015, Appendix A; the note on exact averages beside the published models.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        raise ValueError(
            "update_batch_norm_statistics: the network has no nn.BatchNorm2d layer (frozen already?)"
        )
    modes = {module: module.training for module in network.modules()}
    try:
        update = _update_layer_by_layer if exact else _update_in_one_pass
        images = update(network, norms, batches)
    finally:
        for module, training in modes.items():
            module.training = training
    if images == 0:
        raise ValueError("update_batch_norm_statistics: no images to compute the statistics from")
    return images


def _update_in_one_pass(network: nn.Module, norms: list[nn.BatchNorm2d], batches: Iterable[Tensor]) -> int:
    network.eval()
    momenta = {norm: norm.momentum for norm in norms}
    counters = {norm: copy.deepcopy(norm.num_batches_tracked) for norm in norms}
    moments = {norm: _Moments() for norm in norms}
    handles = [norm.register_forward_pre_hook(moments[norm]) for norm in norms]
    images = 0
    try:
        for norm in norms:
            norm.train()
            norm.momentum = 0.0  # the running statistics stay untouched until the end
        for batch in batches:
            network(batch)
            images += len(batch)
    finally:
        for handle in handles:
            handle.remove()
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = momenta[norm], counters[norm]
    for norm in norms:
        moments[norm].write(norm)
    return images


def _update_layer_by_layer(network: nn.Module, norms: list[nn.BatchNorm2d], batches: Iterable[Tensor]) -> int:
    # In float64, because float32's rounding errors grow to some 1e-4 of a deviation in the last layers of ResNet-50.
    double = copy.deepcopy(network).double().eval()
    twins = [module for module in double.modules() if isinstance(module, nn.BatchNorm2d)]
    images = 0
    for twin in _in_order_of_use(double, twins, batches):
        moments = _Moments(stop=True)
        handle = twin.register_forward_pre_hook(moments)
        images = 0
        try:
            for batch in batches:
                images += len(batch)
                with contextlib.suppress(_StopForward):
                    double(batch.double())
        finally:
            handle.remove()
        moments.write(twin)
    for norm, twin in zip(norms, twins, strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert twin.running_mean is not None
        assert twin.running_var is not None
        norm.running_mean.copy_(twin.running_mean)
        norm.running_var.copy_(twin.running_var)
    return images


def _in_order_of_use(
    network: nn.Module, norms: list[nn.BatchNorm2d], batches: Iterable[Tensor]
) -> list[nn.BatchNorm2d]:
    order: list[nn.Module] = []
    handles = [norm.register_forward_pre_hook(lambda norm, _: order.append(norm)) for norm in norms]
    try:
        for batch in batches:
            network(batch[:1].double())
            break
    finally:
        for handle in handles:
            handle.remove()
    return [norm for norm in dict.fromkeys(order) if isinstance(norm, nn.BatchNorm2d)]
