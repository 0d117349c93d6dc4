"""Configuration of evaluation: the program that computes COCO's metrics."""

from __future__ import annotations

from pydantic import Field

from detres.config import Section
from detres.evaluation.engines import Engine


class EvaluationConfig(Section):
    """How detections are evaluated; the figures do not depend on it."""

    engine: Engine = Field(
        default="auto",
        description="pycocotools; hotcoco (extra `fast`), the same figures faster; auto: hotcoco if installed",
    )
