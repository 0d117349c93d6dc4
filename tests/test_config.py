"""Configuration: each fault is one line with file, line, key path and the nearest valid thing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from detres.config import (
    Length,
    Section,
    describe_keys,
    differences,
    find_recipe,
    load_config,
    recipes_folder,
    to_yaml,
)
from detres.errors import ConfigError


class Source(Section):
    dir: str = Field(description="folder")
    split: str | None = Field(default=None, description="split")


class Train(Section):
    lr: float = Field(default=0.1, gt=0, description="learning rate")
    length: Length = Field(default=Length(12, "epochs"), description="how long")
    milestones: tuple[Length, ...] = ()
    clip: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    nesterov: bool = False


class Root(Section):
    sources: tuple[Source, ...] = ()
    classes: tuple[str, ...] = ()
    sizes: tuple[float, float] = (600, 1000)
    jitter: tuple[tuple[int, int], ...] | None = None
    names: list[str] = []
    train: Train = Train()

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Root:
        if self.sizes[0] > self.sizes[1]:
            raise ValueError(f"sizes: {self.sizes[0]} is above {self.sizes[1]}")
        return self


@pytest.fixture
def write(tmp_path: Path):
    def write_file(text: str, name: str = "own.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def message(path: Path | None, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Root, path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_need_no_file(write):
    assert load_config(Root, None) == Root()
    assert load_config(Root, write("# nothing\n")) == Root()


def test_values_of_every_kind(write):
    path = write(
        "sources:\n- {dir: voc, split: null}\n- dir: coco\nclasses: [no, off, 'yes', on, y, '1e-4']\n"
        "sizes: [300, 500.5]\njitter: [[1, 2], [3, 4]]\nnames: [a]\n"
        "train:\n  lr: 1e-4\n  length: 240000 iterations\n  milestones: [1 epoch]\n"
        "  clip: 08\n  nesterov: true\n"
    )
    config = load_config(Root, path)
    assert config.sources == (Source(dir="voc"), Source(dir="coco"))
    assert config.classes == ("no", "off", "yes", "on", "y", "1e-4")
    assert config.sizes == (300, 500.5)
    assert config.jitter == ((1, 2), (3, 4))
    assert config.names == ["a"]
    assert config.train.lr == 1e-4
    assert config.train.length == Length(240000, "iterations")
    assert config.train.milestones == (Length(1, "epochs"),)
    assert config.train.clip == 8.0
    assert config.train.nesterov is True


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-4", 1e-4),
        ("1E+2", 100),
        (".5", 0.5),
        ("5.", 5),
        ("+3", 3),
        ("0x10", 16),
        ("0o10", 8),
        ("010", 10),
    ],
)
def test_numbers_as_yaml_1_2_has_them(text: str, number: float):
    assert load_config(Root, None, (f"train.lr={text}",)).train.lr == number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  lrr: 1\n", "{file}:2: unknown key 'train.lrr' (did you mean 'lr'?)"),
        ("milestones: []\n", "{file}:1: unknown key 'milestones' (did you mean 'train.milestones'?)"),
        (
            "qqq: 1\n",
            "{file}:1: unknown key 'qqq'; known here: sources, classes, sizes, jitter, names, train",
        ),
        (
            "sources:\n- dir: a\n- dri: b\n",
            "{file}:3: unknown key 'sources[1].dri' (did you mean 'dir'?) (and 1 more)",
        ),
        ("sources:\n- dir: a\n- split: b\n", "{file}:3: key 'sources[1].dir' is missing (folder)"),
        ("train:\n  lr: fast\n", "{file}:2: train.lr: should be a valid number, not 'fast'"),
        ("train:\n  lr: true\n", "{file}:2: train.lr: should be a valid number, not True"),
        ("train:\n\n  lr: -1\n", "{file}:3: train.lr: should be greater than 0, not -1"),
        ("train:\n  lr: .nan\n", "{file}:2: train.lr: should be a finite number, not nan"),
        ("train:\n  lr:\n", "{file}:2: train.lr: should be a valid number, not null"),
        (
            "train:\n  nesterov: yes\n",
            "{file}:2: train.nesterov: should be a valid boolean (true or false), not 'yes'",
        ),
        (
            "train:\n  precision: bfloat\n",
            "{file}:2: train.precision: should be 'float32' or 'bfloat16' (did you mean 'bfloat16'?), not",
        ),
        ("train: 3\n", "{file}:1: train: should be a mapping of keys, not 3"),
        (
            "train:\n  length: 12\n",
            "{file}:2: train.length: should be a length such as '12 epochs' or '240000 iterations'",
        ),
        (
            "train:\n  milestones:\n  - 12 apples\n",
            "{file}:3: train.milestones[0]: '12 apples' is not a length; write '12 epochs' or",
        ),
        ("sizes: [500, 300]\n", "{file}: sizes: 500.0 is above 300.0"),
        ("sizes: 500\n", "{file}:1: sizes: should be a list, not 500"),
        ("a: 1\nb: 2\na: 3\n", "{file}:3: duplicate key 'a' (first in line 1)"),
        ("train:\n  lr: [1\n", "{file}:3: malformed YAML: expected ',' or ']', but got '<stream end>'"),
        ("- 1\n", "{file}:1: a configuration is a mapping of keys, not [1]"),
        ("train: &a [*a]\n", "{file}:1: an alias stands inside what it names"),
        ("train: !!python/name:os.system x\n", "{file}:1: the tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("names: [\x07]\n", "{file}: malformed YAML: unacceptable character"),
    ],
)
def test_fault_names_file_line_key_and_nearest(write, text: str, expected: str):
    path = write(text)
    assert message(path).startswith(expected.format(file=path))


def test_missing_file_names_the_nearest(write):
    path = write("train: {}\n", "r50_c4.yaml")
    missing = path.with_name("r50_c5.yaml")
    assert message(missing).startswith(f"no such file or recipe: {missing} (did you mean 'r50_c4.yaml'?); ")


@pytest.mark.parametrize("name", ["finetune", "finetune.yaml", "voc/r101_c4", "voc/r101_c4.yaml"])
def test_a_recipe_is_found_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = recipes_folder() / f"{name.removesuffix('.yaml')}.yaml"
    assert found.is_file()
    assert find_recipe(name) == find_recipe(Path(name)) == found
    Path(name.removesuffix(".yaml")).mkdir(parents=True)
    assert find_recipe(name) == found, "a folder is no configuration"


def test_a_file_comes_before_a_recipe(write, monkeypatch: pytest.MonkeyPatch):
    path = write("train: {lr: 7}\n", "finetune.yaml")
    monkeypatch.chdir(path.parent)
    assert load_config(Root, "finetune.yaml").train.lr == 7
    assert find_recipe("finetune") == recipes_folder() / "finetune.yaml"


@pytest.mark.parametrize(
    ("name", "close"),
    [("finetun", "finetune"), ("voc/r101_c5", "voc/r101_c4"), ("configs/finetune.yaml", "finetune")],
)
def test_unknown_recipe_names_the_nearest(name: str, close: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    end = f"recipes are named as the files in {recipes_folder()}"
    assert message(Path(name)) == f"no such file or recipe: {name} (did you mean '{close}'?); {end}"
    assert message(Path("qqqqqq")) == f"no such file or recipe: qqqqqq; {end}"


def test_not_text(tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert message(path) == f"cannot read {path}: it is not UTF-8 text"
    assert message(tmp_path) == f"cannot read {tmp_path}: Is a directory"


def test_base_mappings_merge_and_lists_replace(write):
    write("classes: [a, b]\nsources: [{dir: x}, {dir: y}]\ntrain:\n  lr: 0.5\n  clip: 1\n", "below.yaml")
    path = write("base: below.yaml\nclasses: [c]\ntrain:\n  clip: null\n")
    config = load_config(Root, path, ("train.precision=bfloat16",))
    assert config.classes == ("c",)
    assert len(config.sources) == 2
    assert (config.train.lr, config.train.clip, config.train.precision) == (0.5, None, "bfloat16")


def test_base_is_relative_to_the_file(write):
    write("train: {lr: 7}\n", "configs/below.yaml")
    assert load_config(Root, write("base: below.yaml\n", "configs/own.yaml")).train.lr == 7


def test_fault_in_base_is_placed_in_base(write):
    below = write("train:\n  lr: 0\n", "below.yaml")
    assert message(write("base: below.yaml\n")).startswith(f"{below}:2: train.lr:")


def test_bases_are_chained(write):
    """Each is relative to the file that names it; the nearer one wins, key by key; faults are placed in their file."""
    write("classes: [a]\ntrain: {lr: 1, clip: 1, nesterov: true}\n", "lowest.yaml")
    middle = write("train: {lr: 2, clip: 2}\nbase: ../lowest.yaml\n", "room/middle.yaml")
    path = write("base: room/middle.yaml\ntrain: {lr: 3}\n")
    config = load_config(Root, path)
    assert config.classes == ("a",)
    assert (config.train.lr, config.train.clip, config.train.nesterov) == (3, 2, True)
    middle.write_text("base: ../lowest.yaml\ntrain:\n  clip: x\n")
    assert message(path).startswith(f"{middle}:3: train.clip:")


def test_a_circle_of_bases(write):
    path = write("base: below.yaml\n")
    below = write("train: {}\nbase: lowest.yaml\n", "below.yaml")
    lowest = write("base: below.yaml\n", "lowest.yaml")
    circle = f"{path}:1 -> {below}:2 -> {lowest}:1 -> {below}"
    assert message(path) == f"{lowest}:1: base: the bases form a circle: {circle}"
    lowest.write_text("base: lowest.yaml\n")
    assert message(lowest) == f"{lowest}:1: base: the bases form a circle: {lowest}:1 -> {lowest}"


def test_faulty_base(write):
    path = write("\nbase: belo.yaml\n")
    write("{}\n", "below.yaml")
    assert message(path).startswith(f"{path}:2: base: no such file: ")
    assert message(write("base: [a]\n")) == f"{path}:1: base: should be the name of one file, not ['a']"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lr=0", "--set train.lr=0: train.lr: should be greater than 0, not 0"),
        ("train.lrr=1", "--set train.lrr=1: unknown key 'train.lrr' (did you mean 'lr'?)"),
        ("train.lr", "--set train.lr: should be key.path=value"),
        ("train.=3", "--set train.=3: should be key.path=value"),
        ("train.lr.x=3", "--set train.lr.x=3: train.lr: should be a valid number, not {'x': 3}"),
        ("train={lr: 1, lr: 2}", "--set train={lr: 1, lr: 2}: duplicate key 'lr'"),
        ("sources=[{dir: 3}]", "--set sources=[{dir: 3}]: sources[0].dir: should be a valid string, not 3"),
        ("train.lr=[1", "--set train.lr=[1: malformed YAML: expected ',' or ']'"),
    ],
)
def test_fault_in_set(write, override: str, expected: str):
    assert message(write("sources: [{dir: a}]\n"), (override,)).startswith(expected)


def test_set_is_yaml_and_the_last_wins():
    config = load_config(Root, None, ("classes=[a, no]", "train.lr=1", "train={clip: 2}", "train.lr=1e-3"))
    assert config.classes == ("a", "no")
    assert (config.train.lr, config.train.clip) == (1e-3, 2.0)


def test_length():
    assert Length.parse("3 epochs") == Length(3, "epochs")
    assert Length.parse("1 iteration") == Length(1, "iterations")
    assert Length.parse("75 %") == Length(75, "%")
    assert str(Length(3, "epochs")) == "3 epochs"
    for text in ("0 epochs", "-1 epochs", "1.5 epochs", "epochs", "3", "", "3 epochss", "101 %", "0 %", "5%"):
        with pytest.raises(ConfigError, match="is not a length"):
            Length.parse(text)


def test_differences_are_against_the_defaults():
    config = load_config(
        Root, None, ("train.lr=0.1", "train.clip=2", "sources=[{dir: a}]", "sizes=[600.0, 900]")
    )
    assert differences(config) == {
        "sources": [{"dir": "a", "split": None}],
        "sizes": [600.0, 900.0],
        "train.clip": 2.0,
    }
    assert differences(Root()) == {}


words = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)
tricky = st.sampled_from(
    ["no", "1e-4", "null", "~", "", "08", "1:30", "2020-01-01", "<<", "=", "a: b", "# a", "é"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(words | tricky), st.floats(1e-300, 1e300), st.none() | st.floats(-1e9, 1e9))
def test_written_and_read_again_is_the_same(
    tmp_path_factory, classes: list[str], lr: float, clip: float | None
):
    config = Root(
        classes=tuple(classes),
        jitter=((1, 2),),
        train=Train(lr=lr, clip=clip, milestones=(Length(1, "epochs"), Length(5, "iterations"))),
    )
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(Root, path) == config


def test_describe_keys():
    rows = {key: rest for key, *rest in describe_keys(Root)}
    assert rows["train.lr"] == ["float > 0", "0.1", "learning rate"]
    assert rows["train.clip"] == ["float or null", "null", ""]
    assert rows["train.precision"] == ["'float32' or 'bfloat16'", "float32", ""]
    assert rows["sources"][:2] == ["list of Source", "[]"]
    assert rows["sources[].dir"] == ["str", "required", "folder"]
    assert rows["sizes"][:2] == ["list of 2 float", "[600, 1000]"]
    assert "train" not in rows

    class Bounded(Section):
        scales: tuple[Annotated[int, Field(gt=0)], ...] | None = None
        four: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (0, 1)

    kinds = {key: kind for key, kind, *_ in describe_keys(Bounded)}
    assert kinds["scales"] == "list of int > 0 or null"
    assert kinds["four"].startswith("list of ")
    assert "float >= 0 <= 1" in kinds["four"]
    assert "Annotated" not in kinds["four"]


def test_frozen_and_strict_in_python_too():
    with pytest.raises(pydantic.ValidationError):
        Train().lr = 3  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError):
        Train(lr="3")  # type: ignore[arg-type]
    assert Root(sizes=[1, 2]).sizes == (1.0, 2.0)  # type: ignore[arg-type]
