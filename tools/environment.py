"""Makes, once, the environment that the two first commands run in. Standard library only.

An active environment that satisfies setup.cfg is used as it is; else `.venv` is made with the versions of
constraints.txt, and the script starts again in it. Written so that an old Python reads as far as the line that
tells it so: no `from __future__`, annotations in quotes.
"""

import argparse
import configparser
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv"
STAMP = FOLDER / "installed"
OLDEST = (3, 10)


def ensure(extras: "tuple[str, ...]" = ()) -> "list[str]":
    """Come back in an environment that has everything; ends the program with one line where that cannot be.

    Args:
        extras: Extras of setup.cfg that the script needs besides the requirements.

    Returns:
        The command line's arguments less those that were for the set-up (`--torch-index URL`).
    """
    if sys.version_info < OLDEST:
        sys.exit(
            f"error: Python {sys.version.split()[0]} is too old: 3.10 or newer is needed (this is {sys.executable})"
        )
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--torch-index")
    options, arguments = parser.parse_known_args()
    sys.path[0] = str(ROOT)
    inside = Path(sys.prefix).resolve() == FOLDER.resolve()
    if (inside and is_installed()) or (not inside and not unsatisfied(extras)):
        return arguments
    if not is_installed():
        install(options.torch_index)
    command = [str(venv_python()), os.path.abspath(sys.argv[0]), *arguments]
    if os.name == "nt":
        sys.exit(subprocess.call(command))
    sys.stdout.flush()
    os.execv(command[0], command)


def unsatisfied(extras: "tuple[str, ...]" = ()) -> "list[str]":
    """The requirements of setup.cfg that the running interpreter's environment does not meet."""
    return [requirement for requirement in requirements(extras) if not is_met(requirement)]


def requirements(extras: "tuple[str, ...]" = ()) -> "list[str]":
    """The requirement lines of setup.cfg, with those of `extras`."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [
        config["options"]["install_requires"],
        *(config["options.extras_require"][extra] for extra in extras),
    ]
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]


def is_met(requirement: str) -> bool:
    """Whether an installed distribution meets a line such as `name[extra]>=1.2,<2`."""
    from importlib import metadata

    parsed = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(.*)", requirement)
    assert parsed, requirement
    name, specifiers = parsed.groups()
    try:
        installed = version_key(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False
    compare = {
        ">=": lambda a, b: a >= b,
        "<=": lambda a, b: a <= b,
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        "<": lambda a, b: a < b,
        ">": lambda a, b: a > b,
    }
    pairs = re.findall(r"(>=|<=|==|!=|<|>)\s*([^,\s]+)", specifiers)
    return all(compare[operator](installed, version_key(version)) for operator, version in pairs)


def version_key(version: str) -> "tuple[int, ...]":
    """The release numbers of a version for comparison: `2.12.1+cpu` is (2, 12, 1); trailing zeros do not count."""
    numbers = [int(number) for number in re.findall(r"\d+", re.split(r"[+a-zA-Z]", version)[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def fingerprint() -> str:
    """What `.venv` was made from: a change of setup.cfg or constraints.txt makes it be installed again."""
    files = [ROOT / "setup.cfg", ROOT / "constraints.txt"]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def is_installed() -> bool:
    """Whether `.venv` is complete and made from the present files."""
    return venv_python().exists() and STAMP.exists() and STAMP.read_text() == fingerprint()


def venv_python() -> Path:
    """The interpreter of `.venv`."""
    return FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(torch_index: "str | None") -> None:
    """Make `.venv` and install detres with its test tools; the stamp comes last: a broken try counts for nothing."""
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        sys.exit(
            f"error: {sys.executable} has no venv: install it (Debian and Ubuntu: apt install python3-venv)"
        )
    print(f"Installing into {FOLDER} (once; PyTorch is large)", file=sys.stderr, flush=True)
    if STAMP.exists():
        STAMP.unlink()
    make = [sys.executable, "-m", "venv", *([] if venv_python().exists() else ["--clear"]), str(FOLDER)]
    pip = [
        str(venv_python()),
        "-m",
        "pip",
        "install",
        "-e",
        f"{ROOT}[test,coverage]",
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    if torch_index:
        pip += ["--extra-index-url", torch_index]
    for step in (make, pip):
        if subprocess.call(step, stdout=sys.stderr) != 0:
            sys.exit(f"error: installing failed at: {' '.join(step)}")
    STAMP.write_text(fingerprint())
