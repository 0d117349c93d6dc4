"""Configuration of evaluation: which program takes COCO's measure."""

from __future__ import annotations

from pydantic import Field

from detres.config import Section
from detres.evaluation.engines import Engine


class EvaluationConfig(Section):
    """How detections are measured; the figures do not depend on it."""

    engine: Engine = Field(
        default="auto",
        description="pycocotools; hotcoco (extra `fast`), the same figures faster; auto: hotcoco if installed",
    )
