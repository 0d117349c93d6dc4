"""The package keeps its design: one-way imports, one definition per thing, short files and functions, quick `--help`.

The source is read with `ast`; modules are imported only in separate processes.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "detres"
MODULES = sorted(PACKAGE.rglob("*.py"))
TOOLS = sorted(
    path for path in (PACKAGE / "cli").glob("[a-z]*.py") if "\ndef main(" in path.read_text("utf-8")
)

# From top to bottom: a room imports only from lower levels.
LEVELS = [
    {"cli"},
    {"report"},
    {"api"},
    {"localization"},
    {"detection", "classification"},
    {"tasks"},
    {"training", "evaluation", "weights"},
    {"data", "networks"},
    {"boxes"},
    {"config", "console", "devices", "errors", "files", "strict_yaml", "unpickling"},
]
GROUND = len(LEVELS) - 1
LEVEL_OF = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}

# What each tool, each reader and each layout of weights has, under one name.
FORMS_OF_MODULES = {"main", "recognize", "scan", "scan_unlabeled", "splits", "read", "fits"}
MAX_FILE_LINES = 400
MAX_CODE_LINES = 60  # of a function, without docstring, comments and blank lines
MAX_MAIN_LINES = 40  # of a tool's main
# Functions that are still longer, with their length today; entries may only shrink or go.
LONG_FUNCTIONS = {"detres/cli/prepare_imagenet_det.py:main": 52}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(node: ast.AST, path: Path) -> list[str]:
    """The modules that an import statement names, absolute (`from detres import x` counts as `detres.x`)."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import"
        if node.module == "detres":
            return [f"detres.{alias.name}" for alias in node.names]
        return [node.module or ""]
    return []


def at_import_time(tree: ast.Module) -> list[ast.stmt]:
    """The statements that run when a module is imported, without those for the type checker."""
    statements: list[ast.stmt] = []
    waiting = list(tree.body)
    while waiting:
        statement = waiting.pop()
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        statements.append(statement)
        waiting += [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]
    return statements


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path: Path):
    room = room_of(path)
    if room == "__init__":
        return
    assert room in LEVEL_OF, f"{name_of(path)}: the room is not in LEVELS"
    for node in ast.walk(tree_of(path)):
        for target in imported(node, path):
            if not target.startswith("detres.") or target.split(".")[1] not in LEVEL_OF:
                continue
            other = target.split(".")[1]
            on_ground = LEVEL_OF[room] == LEVEL_OF[other] == GROUND
            assert other == room or on_ground or LEVEL_OF[other] > LEVEL_OF[room], (
                f"{name_of(path)}:{getattr(node, 'lineno', 0)}: {room} must not import {other}"
            )


def test_a_public_name_stands_for_one_thing():
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in tree_of(path).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name in FORMS_OF_MODULES:
                continue
            if not node.name.startswith("_"):
                places.setdefault(node.name, []).append(f"{name_of(path)}:{node.lineno}")
    assert {"nms", "FrozenBatchNorm2d", "evaluate_coco"} <= places.keys()
    assert {name: lines for name, lines in places.items() if len(lines) > 1} == {}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_are_short_and_say_what_they_are_for(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    assert ast.get_docstring(tree_of(path))


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    return sum(
        bool(line.partition("#")[0].strip()) for line in lines[body[0].lineno - 1 : function.end_lineno]
    )


def test_functions_are_short():
    """No tool's main over 40 lines of code, no function over 60; `LONG_FUNCTIONS` has the exceptions."""
    too_long = {}
    for path in MODULES:
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                is_main = node.name == "main" and room_of(path) == "cli"
                count = code_lines(node, lines)
                if count > (MAX_MAIN_LINES if is_main else MAX_CODE_LINES):
                    too_long[f"{name_of(path)}:{node.name}"] = count
    grown = {name: count for name, count in too_long.items() if count > LONG_FUNCTIONS.get(name, 0)}
    assert grown == {}, "split these functions"
    assert set(LONG_FUNCTIONS) <= set(too_long), "these are short now: remove them from LONG_FUNCTIONS"


def test_tests_mirror_the_package():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    folders = {
        path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert folders - rooms <= {"system", "benchmarks", "faults"}
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_networks_are_pure():
    """No Module samples, matches, suppresses or logs, because networks know neither boxes nor losses."""
    for path in MODULES:
        if room_of(path) == "networks":
            targets = [target for node in ast.walk(tree_of(path)) for target in imported(node, path)]
            assert not [target for target in targets if target.startswith(("detres.boxes", "logging"))], (
                name_of(path)
            )


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=name_of)
def test_tools_import_nothing_heavy_at_once(path: Path):
    light = {"cli", "console", "devices", "errors", "files"}
    for statement in at_import_time(tree_of(path)):
        for target in imported(statement, path):
            package, _, rest = target.partition(".")
            allowed = rest.partition(".")[0] in light or not rest
            assert package in sys.stdlib_module_names or (package == "detres" and allowed), (
                f"{name_of(path)}:{statement.lineno}: import {target} inside main, after parsing the arguments"
            )


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_import_loads_no_torch():
    heavy = "[name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules]"
    code = f"import sys, detres; print(detres.__version__, {heavy})"
    assert run_python(code).stdout == "0.1.0 []\n"


def test_public_names_are_there():
    names = ast.literal_eval(
        next(
            ast.unparse(node.value)
            for node in tree_of(PACKAGE / "__init__.py").body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
    )
    done = run_python(f"import detres; print([n for n in {names!r} if getattr(detres, n) is None])")
    assert done.stdout == "[]\n", done.stderr


def test_every_help_answers_without_torch():
    """In one process: each tool's `--help` ends with status 0 and shows an example, and torch is not loaded."""
    names = [path.stem for path in TOOLS]
    code = f"""
import contextlib, importlib, io, sys
for name in {names!r}:
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            importlib.import_module("detres.cli." + name).main(["--help"])
    except SystemExit as end:
        assert end.code in (0, None), (name, end.code)
    else:
        raise AssertionError(name + ": --help returned")
    assert "example" in text.getvalue().lower(), name
    heavy = [module for module in ("torch", "numpy", "cv2", "pydantic") if module in sys.modules]
    assert not heavy, (name, heavy)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")), ids=name_of)
def test_every_script_in_tools_is_a_few_lines(path: Path):
    if path.stem in ("environment", "test", "quickstart", "benchmark", "train_peer"):
        return
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 12
    assert PACKAGE / "cli" / path.name in TOOLS, f"detres.cli.{path.stem} is missing"


def test_every_tool_has_its_script():
    """The scripts are in tools/, or in datasets/ for the tools that fetch data."""
    scripts = {path.stem for folder in ("tools", "datasets") for path in (ROOT / folder).glob("*.py")}
    assert [path.stem for path in TOOLS if path.stem not in scripts and path.stem != "prepare"] == []


def test_a_script_in_tools_runs_from_anywhere(tmp_path: Path):
    script = ROOT / "tools" / f"{TOOLS[0].stem}.py"
    command = [sys.executable, str(script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: detres {script.stem.replace('_', '-')}")
