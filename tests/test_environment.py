"""The set-up of the two first commands: requirements of setup.cfg against what is installed, by hand-worked cases."""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def environment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", ROOT / "tools" / "environment.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def installed(monkeypatch) -> dict[str, str]:
    """A stand-in for the installed distributions, name to version."""
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    return versions


def test_version_key(environment):
    key = environment.version_key
    assert key("2.12.1+cpu") == key("2.12.1") == (2, 12, 1)
    assert key("2.0") == key("2") < key("2.0.8") < key("2.1") < key("10.0")
    assert key("2.6.0a0+git1") == key("2.6")


@pytest.mark.parametrize(
    ("requirement", "met"),
    [
        ("torch>=2.6", True),
        ("torch>=2.12.1", True),
        ("torch>=2.13", False),
        ("torch>=2.6,<2.12", False),
        ("torch == 2.12.1", True),
        ("torch!=2.12.1", False),
        ("torch[extra]<=3, >2", True),
        ("torch", True),
        ("numpy", False),
    ],
)
def test_is_met(environment, installed, requirement: str, met: bool):
    installed["torch"] = "2.12.1+cpu"
    assert environment.is_met(requirement) is met


def test_requirements_are_those_of_setup_cfg(environment):
    core, with_test = environment.requirements(), environment.requirements(("test",))
    assert "torch>=2.6" in core
    assert not any(line.startswith("pytest") for line in core)
    assert set(core) < set(with_test)
    assert any(line.startswith("pytest>=") for line in with_test)


def test_constraints_pin_every_requirement_within_its_range(environment, installed):
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        pin, _, marker = line.partition(";")
        if not line.startswith("#") and "<" not in marker:
            name, _, version = pin.strip().partition("==")
            assert version, line
            installed[name] = version
    assert environment.unsatisfied(("test", "coverage")) == []


def test_an_active_environment_that_satisfies_is_used(environment, installed, monkeypatch):
    monkeypatch.setattr(environment, "unsatisfied", lambda extras: [])
    monkeypatch.setattr(environment, "install", lambda index: pytest.fail("installed again"))
    monkeypatch.setattr(sys, "argv", ["test.py", "--torch-index", "https://example.org", "--slow", "-k", "x"])
    monkeypatch.setattr(sys, "path", ["tools", *sys.path])
    assert environment.ensure(("test",)) == ["--slow", "-k", "x"]
    assert sys.path[0] == str(ROOT)


def test_a_complete_venv_is_not_installed_again(environment, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(environment, "FOLDER", tmp_path)
    monkeypatch.setattr(environment, "STAMP", tmp_path / "installed")
    assert not environment.is_installed()
    environment.venv_python().parent.mkdir()
    environment.venv_python().touch()
    environment.STAMP.write_text(environment.fingerprint())
    assert environment.is_installed()
    environment.STAMP.write_text("of another setup.cfg")
    assert not environment.is_installed()


def test_an_old_python_gets_one_line(environment, monkeypatch):
    monkeypatch.setattr(environment.sys, "version_info", (3, 9, 0))
    with pytest.raises(SystemExit, match=r"^error: .*3\.10 or newer is needed"):
        environment.ensure()


def test_a_python_without_venv_gets_one_line(environment, monkeypatch):
    monkeypatch.setattr(
        environment.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else name
    )
    with pytest.raises(SystemExit, match=r"^error: .* has no venv: install it"):
        environment.install(None)
