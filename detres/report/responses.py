"""Figure 7 for any networks, and §4.1's forward variances and gradient norms below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from detres.classification.responses import LayerResponse
from detres.files import atomic_path


def plot_responses(networks: Mapping[str, Sequence[LayerResponse]], path: Path) -> None:
    """Four plots: deviations in the order of layers and sorted; forward variances and gradient norms (logarithmic).

    Args:
        networks: A label for each network, and its layers in their order; plain ones are dashed as in the paper.
        path: The picture to write (.png, .svg or .pdf).
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(11, 8), layout="constrained")
    (in_order, ranked), (forward, backward) = drawn.subplots(2, 2)
    for label, layers in networks.items():
        style = {"label": label, "ls": "--" if "plain" in label else "-", "marker": ".", "ms": 4, "lw": 1}
        places = range(1, len(layers) + 1)
        deviations = [layer.deviation for layer in layers]
        in_order.plot(places, deviations, **style)  # type: ignore[arg-type]
        ranked.plot(places, sorted(deviations, reverse=True), **style)  # type: ignore[arg-type]
        forward.plot(places, [layer.forward_variance for layer in layers], **style)  # type: ignore[arg-type]
        backward.plot(places, [layer.gradient_norm for layer in layers], **style)  # type: ignore[arg-type]
    in_order.set(title="layer responses", xlabel="layer", ylabel="std", ylim=(0, None))
    ranked.set(title="the same, sorted by magnitude", xlabel="rank", ylabel="std", ylim=(0, None))
    forward.set(title="variance of the signal that enters", xlabel="layer", yscale="log")
    backward.set(title="norm of the loss's gradient by the response", xlabel="layer", yscale="log")
    for axes in (in_order, ranked, forward, backward):
        axes.grid(alpha=0.3)
    in_order.legend()
    with atomic_path(path) as beside:
        drawn.savefig(beside, dpi=100)
