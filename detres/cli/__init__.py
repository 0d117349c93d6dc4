"""The command-line tools, one module each: parse, call, print. `detres NAME` runs `detres.cli.<name>`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from detres.cli.common import run
from detres.devices import tune_malloc
from detres.errors import UserError, nearest


def main(argv: Sequence[str] | None = None) -> None:
    """Run `detres NAME ...` and end the program with the tool's exit status.

    Args:
        argv: The arguments after `detres`; those of the command line if None.
    """
    tune_malloc()
    run(_dispatch, sys.argv[1:] if argv is None else argv)


def tool_names() -> list[str]:
    """The names of all tools, as they follow `detres`."""
    modules = sorted(Path(__file__).parent.glob("[a-z]*.py"))
    return [
        path.stem.replace("_", "-") for path in modules if "\ndef main(" in path.read_text(encoding="utf-8")
    ]


def _dispatch(argv: list[str]) -> int | None:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(import_module("detres").__version__)
        return 0
    name = name.replace("_", "-")
    if name not in tool_names():
        raise UserError(f"no tool named '{name}'{nearest(name, tool_names())}; `detres --help` lists them")
    return import_module(f"detres.cli.{name.replace('-', '_')}").main(argv[1:])


def _overview() -> str:
    """All tools with the first line of their docstrings, read without importing them."""
    names = tool_names()
    width = max(map(len, names), default=0)
    lines = ["usage: detres TOOL [options]", "", "tools (`detres TOOL --help` shows an example):"]
    for name in names:
        source = (Path(__file__).parent / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
        summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        lines.append(f"  {name:{width}}  {summary}")
    return "\n".join(lines)
