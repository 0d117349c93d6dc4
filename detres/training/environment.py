"""The environment of a run for environment.json: versions, machine, commit and command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

PACKAGES = (
    "detres",
    "torch",
    "torchvision",
    "numpy",
    "opencv-python-headless",
    "albumentations",
    "pycocotools",
    "pydantic",
)


def describe_environment() -> dict[str, object]:
    """Versions of Python and packages, machine, CPUs, GPUs, git commit, command line, folder and time."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [sys.executable, *sys.argv],
        "folder": os.getcwd(),
        "commit": git_commit(Path(__file__).resolve().parents[1]),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "licenses": {"albumentations": _license("albumentations")},
        "machine": {
            "system": platform.platform(),
            "cpu": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "cuda": torch.version.cuda,
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        },
    }


def git_commit(package: Path) -> str | None:
    """The commit of the checkout that holds `package` at its top, with `+changes` where files differ; else None."""
    try:
        top = _git(package, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != package.resolve().parent:
            return None
        changes = _git(package, "status", "--porcelain", "--untracked-files=no")
        return _git(package, "rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _license(package: str) -> str | None:
    """The license's name (the first line of its text); recorded because albumentations' successor has another one."""
    try:
        metadata = importlib.metadata.metadata(package).json
    except importlib.metadata.PackageNotFoundError:
        return None
    stated = str(metadata.get("license_expression") or metadata.get("license") or "")
    return stated.strip().split("\n")[0] or None
