"""What an installed wheel has: every module and recipe. With --slow a wheel is built, installed and used."""

from __future__ import annotations

import configparser
import os
import shutil
import signal
import site
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("detres", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_setup_lists_every_package_and_recipe():
    """Truth: the folders themselves."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "detres").rglob("*.py")}
    modules = [".".join(folder.parts) for folder in folders]
    assert lines_of(setup["options"]["packages"]) == sorted([*modules, "detres.recipes"])
    assert lines_of(setup["options"]["package_dir"]) == ["detres.recipes = configs"]
    patterns = lines_of(setup["options.package_data"]["detres.recipes"])
    shipped = {path for pattern in patterns for path in (ROOT / "configs").glob(pattern)}
    assert shipped == {path for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert all(
        (ROOT / "detres" / name).is_file() for name in lines_of(setup["options.package_data"]["detres"])
    )


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """`bin` of an environment that has the wheel, and the running environment's packages for what it requires."""
    source, home = tmp_path / "source", tmp_path / "venv"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip"]
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / "bin" / "python"
    (wheel,) = tmp_path.glob("*.whl")
    into = ["--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run([*pip, *into], check=True, capture_output=True)
    (packages,) = (home / "lib").glob("*/site-packages")
    (packages / "requirements.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    shutil.rmtree(source)
    return home / "bin"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="paths of a POSIX environment")
def test_a_wheel_works_without_the_checkout(installed: Path, tmp_path: Path):
    """Help, a step of training by a recipe's name, detections, and the start of the quickstart."""
    work = tmp_path / "work"
    work.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DETRES_DATA")
    }

    def detres(*arguments: object) -> str:
        command = [str(word) for word in (installed / "detres", *arguments)]
        ended = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, timeout=300
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    code = "from detres.config import find_recipe; print(find_recipe('finetune'))"
    found = subprocess.check_output([installed / "python", "-c", code], cwd=work, env=environment, text=True)
    assert Path(found.strip()).is_relative_to(installed.parent), "the checkout's package, not the wheel's"
    assert "train-det" in detres("--help")
    for split in ("train", "val"):
        detres(
            "convert-data",
            "--data",
            "shapes:4",
            "--split",
            split,
            "--to",
            "coco",
            "--out",
            "drawn",
            "--overwrite",
        )
    small = (
        "model.init=null",
        "model.network={name: resnet18, width: 0.125}",
        "data.short_side=96",
        "data.long_side=160",
    )
    sets = [word for key in (*small, "train.length=1 iterations") for word in ("--set", key)]
    detres("train-det", "--cfg", "finetune", "--data", "drawn", "--device", "cpu", *sets)
    weights = work / "runs" / "finetune" / "model.safetensors"
    (image, *_) = (work / "drawn").rglob("*.png")
    detres("predict", image, "--weights", weights, "--out", "found", "--device", "cpu")
    assert (work / "found" / f"{image.stem}.jpg").is_file()
    start_quickstart(installed, work, environment)


def start_quickstart(installed: Path, work: Path, environment: dict[str, str]) -> None:
    """Both recipes are read before the run folder of the pre-training is opened; then it is stopped."""
    command = [installed / "detres", "quickstart", "--device", "cpu", "--precision", "float32", "--quiet"]
    process = subprocess.Popen(command, cwd=work, env=environment, stderr=subprocess.PIPE, text=True)
    saved, deadline = work / "runs" / "quickstart" / "pretrain" / "config.yaml", time.monotonic() + 120
    while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert saved.is_file(), errors
    assert process.returncode == 130, errors
