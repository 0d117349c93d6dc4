"""The documentation is true: paths, names, keys, options and recipes that it names exist and work.

Truths: the tree, the configuration models, each tool's own `--help`. Pages: README.md, CONTRIBUTING.md, CHANGELOG.md,
and docs/, with the comments of configs/.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import shlex
import shutil
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

import detres
from detres import cli
from detres.classification.classifier import build_classifier
from detres.classification.config import ClassificationConfig, ClassifierArchitecture
from detres.cli import config_keys
from detres.config import describe_keys, find_recipe, load_config
from detres.data.drawing import write_image
from detres.data.preprocessing import TORCHVISION
from detres.data.shapes import draw, shapes_annotations
from detres.data.writers import WRITERS
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig
from detres.networks.config import NetworkConfig
from detres.weights.checkpoint import Metadata, save_weights
from detres.weights.foreign import TORCHVISION_NETWORKS, TORCHVISION_PREFIX

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
RECIPES = {path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in CONFIGS}
YAML_FILES = [ROOT / "CITATION.cff", *sorted((ROOT / ".github").rglob("*.yml"))]
LONGEST_LINE = 120  # of prose and commands; rows of tables are longer
EXAMPLES = [*sorted((ROOT / "detres" / "cli").glob("*.py")), ROOT / "benchmarks" / "train_peer.py"]
TOOLS = sorted(path for path in (ROOT / "tools").glob("*.py") if path.stem != "environment")
# Options that no tool's parser has, and the file that defines each.
OTHER_OPTIONS = {
    "--coverage": "tools/test.py",
    "--slow": "tests/conftest.py",
    "--torch-index": "tools/environment.py",
    "--version": "detres/cli/__init__.py",
}

PATH = re.compile(
    r"(?<![\w/.-])(?:\.ci|\.github|benchmarks|configs|datasets|detres|docs|tests|tools)/[\w./*-]*\w"
)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
MODULE = re.compile(r"(?<![\w/.])detres\.([a-z_]+(?:\.[a-z_]+)*)")
KEY = re.compile(r"(?<![\w/.])((?:data|model|rpn|rcnn|train|test)\.[a-z_]+(?:\.[a-z_]+)*)(?![\w/])")
FILE_ENDINGS = (".yaml", ".safetensors", ".json", ".txt", ".py")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
COMMAND = re.compile(
    r"(?:python3 ((?:tools|datasets)/\w+\.py)|(?<![\w./-])detres ([a-z]+(?:-[a-z]+)*)\b)(.*)"
)
CODE = re.compile(r"```\w*\n(.*?)```|`([^`\n]+)`", re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
CFG = re.compile(r"--cfg ([a-z][\w./*]*)(?![\w./*$])")  # not what a shell fills in
RUN = re.compile(r"runs/(\w+/\w+?)(?:_seed\d)?/model\.safetensors")
RECIPE = re.compile(
    rf"(?:{'|'.join(sorted({name.partition('/')[0] for name in RECIPES if '/' in name}))})/[\w*]+"
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code_in(path: Path) -> str:
    """What a page sets as code, blocks and spans; of a recipe its comments."""
    if path.suffix == ".yaml":
        return "\n".join(line.partition("#")[2] for line in text_of(path).splitlines())
    code = "\n".join(block or span for block, span in CODE.findall(text_of(path)))
    return code.replace("\\\n", " ")  # a command that goes on in the next line


def commands_in(code: str) -> list[tuple[str, str]]:
    """The script of each command, in tools/ or datasets/, and what follows it up to a comment."""
    found = [(script, tool, rest.partition("#")[0]) for script, tool, rest in COMMAND.findall(code)]
    return [(script or script_of(tool, rest), rest) for script, tool, rest in found]


def script_of(tool: str, rest: str) -> str:
    """The script that `detres TOOL` is; `detres prepare voc` is datasets/prepare_voc.py."""
    if tool == "prepare":
        return f"datasets/prepare_{(rest.split() or ['voc'])[0]}.py"
    folder = "datasets" if tool.startswith("prepare") else "tools"
    return f"{folder}/{tool.replace('-', '_')}.py"


def is_there(path: str) -> bool:
    """A path of the repository, or a pattern that some path fits; data below datasets/ is the user's own."""
    if path.startswith("datasets/") and not path.endswith(".py"):
        return True
    return any(ROOT.glob(path)) if "*" in path else (ROOT / path).exists()


@cache
def options_of(script: str) -> frozenset[str]:
    """The options that the `--help` of a script in tools/ or datasets/ lists."""
    if script in ("tools/test.py", "tools/environment.py"):
        return frozenset(OTHER_OPTIONS)
    stem = Path(script).stem
    outside = {"benchmark": "benchmarks.command", "train_peer": "benchmarks.train_peer"}
    module = importlib.import_module(
        outside.get(stem, "detres.cli." + ("prepare" if stem.startswith("prepare_") else stem))
    )
    help_text = io.StringIO()
    with contextlib.redirect_stdout(help_text), contextlib.suppress(SystemExit):
        module.main(["--help"])
    listed = frozenset(OPTION.findall(help_text.getvalue().partition("\nexample:")[0]))
    return listed | {"--torch-index"} if script == "tools/quickstart.py" else listed


def config_class(path: Path) -> type[DetectionConfig] | type[ClassificationConfig]:
    """Recipes for classification lie in folders of their own, but for the quickstart's pre-training."""
    folders = ("classification", "cifar10", "imagenet")
    is_classification = path.parent.name in folders or path.name == "pretrain.yaml"
    return ClassificationConfig if is_classification else DetectionConfig


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=name_of)
def test_paths_exist(page: Path):
    assert [path for path in PATH.findall(text_of(page)) if not is_there(path)] == []
    assert [link for link in LINK.findall(text_of(page)) if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_and_public_names_exist(page: Path):
    for name in MODULE.findall(text_of(page)):
        place = ROOT / "detres" / name.replace(".", "/")
        assert name in detres.__all__ or place.is_dir() or place.with_suffix(".py").is_file(), (
            f"detres.{name}"
        )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_stand_in_the_files_beside_them(page: Path):
    """In a table's row with files of the package, each name set as code is defined in one of them."""
    for row in text_of(page).splitlines():
        files = [path for path in PATH.findall(row) if path.startswith("detres/") and path.endswith(".py")]
        if row.startswith("|") and files:
            trees = [ast.parse(text_of(ROOT / path)) for path in files]
            defined = {getattr(node, "name", None) for tree in trees for node in tree.body}
            assert [name for name in re.findall(r"`([A-Za-z_]\w*)`", row) if name not in defined] == [], row


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=name_of)
def test_keys_exist(page: Path):
    keys = [key for model in (DetectionConfig, ClassificationConfig) for key, *_ in describe_keys(model)]
    known = {".".join(key.split(".")[:end]) for key in keys for end in range(2, key.count(".") + 2)}
    found = [key for key in KEY.findall(code_in(page)) if not key.endswith(FILE_ENDINGS)]
    assert [key for key in found if key not in known] == []


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=name_of)
def test_options_exist(page: Path):
    """Options of a command line belong to its tool; an option by itself belongs to some tool."""
    code = re.sub(r"^ruff .*", "", code_in(page), flags=re.MULTILINE)
    for script, rest in commands_in(code):
        wrong = set(OPTION.findall(rest)) - options_of(script)
        assert not wrong, f"{script} has no {wrong}"
    everywhere = set(OTHER_OPTIONS).union(*(options_of(name_of(tool)) for tool in TOOLS))
    assert set(OPTION.findall(COMMAND.sub("", code))) - everywhere == set()


def test_options_without_a_parser_are_defined_where_said():
    for option, place in OTHER_OPTIONS.items():
        assert f'"{option}"' in text_of(ROOT / place)


def test_pages_lead_to_everything():
    """Every page is linked in the README, every tool named in docs/tools.md, every recipe in docs/paper.md."""
    linked = {(ROOT / link).resolve() for link in LINK.findall(text_of(README))}
    assert [name_of(page) for page in PAGES[1:] if page not in linked] == []
    tools = text_of(ROOT / "docs" / "tools.md")
    named = {script for script, _ in commands_in(code_in(ROOT / "docs" / "tools.md"))} | set(
        PATH.findall(tools)
    )
    scripts = [*TOOLS, *sorted((ROOT / "datasets").glob("*.py"))]
    assert [name_of(script) for script in scripts if name_of(script) not in named] == []
    spans = {span for _, span in CODE.findall(text_of(ROOT / "docs" / "paper.md"))}
    assert [name for name in sorted(RECIPES) if not any(fnmatch(name, span) for span in spans)] == []


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS, *EXAMPLES], ids=name_of)
def test_recipes_and_their_run_folders_exist(page: Path):
    """`--cfg voc/r101_c4` is a recipe, and what trains it without `--out` writes `runs/voc/r101_c4`."""
    code = text_of(page) if page.suffix == ".py" else code_in(page)
    for name in [*CFG.findall(code), *RUN.findall(text_of(page))]:
        assert name.endswith(".yaml") or find_recipe(name).is_relative_to(ROOT / "configs"), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_spans_that_look_like_recipes_are_some(page: Path):
    spans = [span for _, span in CODE.findall(text_of(page)) if RECIPE.fullmatch(span)]
    assert [span for span in spans if not any(fnmatch(recipe, span) for recipe in RECIPES)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_are_short(page: Path):
    lines = [line for line in text_of(page).splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > LONGEST_LINE] == []


@pytest.mark.parametrize("path", YAML_FILES, ids=name_of)
def test_yaml_of_the_repository_parses(path: Path):
    content = yaml.safe_load(text_of(path))
    assert isinstance(content, dict)
    assert content.get("version", detres.__version__) == detres.__version__  # of CITATION.cff


def test_table_of_keys_is_the_generated_one():
    """docs/configuration.md is what `python3 tools/config_keys.py` prints, and that has every key of both tasks."""
    page = text_of(ROOT / "docs" / "configuration.md")
    assert page == config_keys.page(), "run: python3 tools/config_keys.py > docs/configuration.md"
    for model in (DetectionConfig, ClassificationConfig):
        rows = describe_keys(model)
        assert [row for row in rows if config_keys.markdown_table([row]).splitlines()[-1] not in page] == []


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in: a drawn data set `cells`, images, and the random weights that the pages speak of."""
    monkeypatch.delenv("DETRES_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    scenes = shapes_annotations("val", 2)
    for split in ("train", "val"):
        WRITERS["coco"](scenes, Path("cells"), split)
    for name in ("blood.jpg", "street.jpg", "new_images/1.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        write_image(name, draw(scenes.paths[0]))
    config = load_config(DetectionConfig, "quickstart/detect")
    architecture = config.architecture(NetworkConfig(name="resnet18", width=0.125))
    network = build_detector(architecture, len(scenes.class_names), TORCHVISION)
    metadata = Metadata(
        task="detection",
        architecture=architecture.model_dump(mode="json"),
        class_names=scenes.class_names,
        preprocessing=TORCHVISION,
        sizes={"short_side": 64, "long_side": 80},
    )
    for name in ("runs/finetune/model.safetensors", "a.safetensors", "b.safetensors"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        save_weights(Path(name), network.state_dict(), metadata)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in text_of(page)], ids=name_of)
def test_python_of_the_pages_runs(page: Path, cells: Path):
    """Each page's Python blocks in order, on random weights, a drawn image and a drawn data set."""
    names: dict[str, object] = {}
    for block in PYTHON.findall(text_of(page)):
        exec(compile(block, name_of(page), "exec"), names)
    if page == README:
        assert (cells / "out.jpg").is_file()
        assert isinstance(names["figures"], dict)
        assert {"AP", "AP50", "ARl", "mAP"} <= names["figures"].keys()


def test_commands_of_the_readme_run(cells: Path, capsys: pytest.CaptureFixture[str]):
    """The block under "Your own data"; training takes one step of a small network instead of ResNet-18."""
    (block,) = (block for block, _ in CODE.findall(text_of(README)) if block.startswith("detres check-data"))
    small = [
        "model.init=null", "model.network.name=resnet18", "model.network.width=0.125", "data.short_side=64",
        "data.long_side=80", "train.length=1 iterations", "train.workers=0",
    ]  # fmt: skip
    shutil.rmtree(cells / "runs")
    for line in block.splitlines():
        arguments = shlex.split(line, comments=True)[1:]
        if arguments[0] == "train-det":
            arguments += [word for key in small for word in ("--set", key)]
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0, (line, capsys.readouterr().err)
    assert (cells / "detections" / "1.jpg").is_file()


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_recipes_load_and_say_what_they_are(path: Path):
    load_config(config_class(path), path)
    assert text_of(path).startswith("# "), "no comment at the head: what it is, what differs from the paper"


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_recipes_build_their_network(path: Path):
    """Without the initial weights and without memory (on torch's `meta` device); torchvision's name the network."""
    config = load_config(config_class(path), path)
    network = config.model.network
    if config.model.init and config.model.init.startswith(TORCHVISION_PREFIX):
        name = config.model.init.removeprefix(TORCHVISION_PREFIX)
        assert name in TORCHVISION_NETWORKS
        network = network.model_copy(update={"name": name})
    with torch.device("meta"):
        if isinstance(config, ClassificationConfig):
            architecture = ClassifierArchitecture(network=network, frozen_stages=config.model.freeze_at)
            assert any(True for _ in build_classifier(architecture, 10).parameters())
            return
        detector = build_detector(config.architecture(network), 3, TORCHVISION)
    assert len(detector.cell_anchors) == len(config.rpn.anchor_sizes) * len(config.rpn.aspect_ratios)
    assert detector.rpn.cls_logits.out_channels == len(detector.cell_anchors)
    assert detector.roi_head.box_predictor.num_classes == 3
