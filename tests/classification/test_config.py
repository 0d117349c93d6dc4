"""The shipped recipes of classification are valid, and what they say of frozen stages holds together."""

from __future__ import annotations

from pathlib import Path

import pytest

from detres.classification.config import ClassificationConfig
from detres.config import load_config
from detres.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "classification").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_recipe_is_valid(path):
    config = load_config(ClassificationConfig, path)
    assert config.data.train
    assert config.data.val


def test_cifar_network_cannot_freeze_stages(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {network: {name: cifar_resnet20}, freeze_at: 2}\n")
    with pytest.raises(ConfigError, match=r"model\.freeze_at: a CIFAR network has no conv1"):
        load_config(ClassificationConfig, tmp_path / "c.yaml")
