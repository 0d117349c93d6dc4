"""Figure 7 for any networks, with the forward variances and gradient norms of §4.1 below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from detres.classification.responses import LayerResponse
from detres.files import atomic_path


def plot_responses(networks: Mapping[str, Sequence[LayerResponse]], path: Path) -> None:
    """Four plots: deviations by layer and sorted; forward variances and gradient norms (logarithmic).

    Args:
        networks: From the label of each network to its layers in order; plain networks are dashed as in the paper.
        path: The image to write (.png, .svg or .pdf).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    (in_order, ranked), (forward, backward) = figure.subplots(2, 2)
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
    forward.set(title="variance of the input", xlabel="layer", yscale="log")
    backward.set(title="norm of the loss's gradient by the response", xlabel="layer", yscale="log")
    for axes in (in_order, ranked, forward, backward):
        axes.grid(alpha=0.3)
    in_order.legend()
    with atomic_path(path) as beside:
        figure.savefig(beside, dpi=100)
