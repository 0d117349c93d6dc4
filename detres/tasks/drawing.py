"""The image of a run's first training batch, drawn as the network sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def draw_first_batch(images: Sequence[np.ndarray], folder: Path, columns: int | None = None) -> None:
    """Draw a batch into `folder/first_batch.jpg`; nothing is written for an empty one.

    Args:
        images: (H, W, 3) uint8 RGB each.
        folder: The run's `images/`.
        columns: Images in a row; None: about as many as rows.
    """
    from detres.data.drawing import write_sheet

    if images:
        write_sheet(folder / "first_batch.jpg", images, columns or max(1, round(len(images) ** 0.5)))
