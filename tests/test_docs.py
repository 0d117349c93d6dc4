"""The documentation is true: paths, names, keys, options and recipes that it speaks of are there and work.

Truths: the tree, the configuration models, each tool's own `--help`. Pages: README.md and docs/, with the comments of
configs/.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from detres import __all__ as public_names
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
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
EXAMPLES = [*sorted((ROOT / "detres" / "cli").glob("*.py")), ROOT / "benchmarks" / "train_peer.py"]
TOOLS = sorted(path for path in (ROOT / "tools").glob("*.py") if path.stem != "environment")
# Options of the two commands that have no parser of their own, and the file that defines each.
OTHER_OPTIONS = {"--slow": "tests/conftest.py", "--torch-index": "tools/environment.py"}

PATH = re.compile(r"(?<![\w/.-])(?:\.ci|configs|datasets|detres|docs|tests|tools)/[\w./*-]*\w")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
MODULE = re.compile(r"(?<![\w/.])detres\.([a-z_]+(?:\.[a-z_]+)*)")
KEY = re.compile(r"(?<![\w/.])((?:data|model|rpn|rcnn|train|test)\.[a-z_]+(?:\.[a-z_]+)*)(?![\w/])")
FILE_ENDINGS = (".yaml", ".safetensors", ".json", ".txt", ".py")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
CFG = re.compile(
    r"--cfg ([a-z][\w/.]*)(?![\w/.$])"
)  # what a shell would fill in, and `--cfg FILE`, are no names
RUN = re.compile(r"runs/(\w+/\w+?)(?:_seed\d)?/model\.safetensors")
COMMAND = re.compile(r"python3 ((?:tools|datasets)/\w+\.py)(.*)")
CODE = re.compile(r"```\w*\n(.*?)```|`([^`\n]+)`", re.DOTALL)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code_in(path: Path) -> str:
    """What a page sets as code, blocks and spans; of a recipe its comments."""
    if path.suffix == ".yaml":
        return "\n".join(line.partition("#")[2] for line in text_of(path).splitlines())
    return "\n".join(block or span for block, span in CODE.findall(text_of(path)))


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
        assert name in public_names or place.is_dir() or place.with_suffix(".py").is_file(), f"detres.{name}"


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
    code = code_in(page)
    for script, rest in COMMAND.findall(code):
        wrong = set(OPTION.findall(rest.partition("#")[0])) - options_of(script)
        assert not wrong, f"{script} has no {wrong}"
    everywhere = set(OTHER_OPTIONS).union(*(options_of(name_of(tool)) for tool in TOOLS))
    assert set(OPTION.findall(COMMAND.sub("", code))) - everywhere == set()


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS, *EXAMPLES], ids=name_of)
def test_recipes_and_their_run_folders_exist(page: Path):
    """`--cfg voc/r101_c4` is a recipe, and what trains it without `--out` writes `runs/voc/r101_c4`."""
    code = text_of(page) if page.suffix == ".py" else code_in(page)
    for name in [*CFG.findall(code), *RUN.findall(text_of(page))]:
        assert find_recipe(name).is_relative_to(ROOT / "configs"), name


def test_options_without_a_parser_are_defined_where_said():
    for option, place in OTHER_OPTIONS.items():
        assert f'"{option}"' in text_of(ROOT / place)


def test_readme_leads_to_everything():
    """Every tool, recipe and page is named in the README."""
    named = PATH.findall(text_of(README))
    wanted = [*TOOLS, *sorted((ROOT / "datasets").glob("*.py")), *CONFIGS, *PAGES[1:]]
    found = {path for path in wanted for pattern in named if path.relative_to(ROOT).match(pattern)}
    assert sorted(name_of(path) for path in set(wanted) - found) == []


def test_table_of_keys_is_the_generated_one():
    """docs/configuration.md is what `python3 tools/config_keys.py` prints, and that has every key of both tasks."""
    page = text_of(ROOT / "docs" / "configuration.md")
    assert page == config_keys.page(), "run: python3 tools/config_keys.py > docs/configuration.md"
    for model in (DetectionConfig, ClassificationConfig):
        rows = describe_keys(model)
        assert [row for row in rows if config_keys.table([row]).splitlines()[-1] not in page] == []


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The block under "In Python", on random weights, a drawn picture and a drawn data set."""
    (block,) = re.findall(r"```python\n(.*?)```", text_of(README), re.DOTALL)
    monkeypatch.delenv("DETRES_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    scenes = shapes_annotations("val", 2)
    WRITERS["coco"](scenes, Path("cells"), "val")
    write_image("blood.jpg", draw(scenes.paths[0]))
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
    weights = Path("runs/finetune/model.safetensors")
    weights.parent.mkdir(parents=True)
    save_weights(weights, network.state_dict(), metadata)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert Path("out.jpg").is_file()
    assert isinstance(names["figures"], dict)
    assert {"AP", "AP50", "ARl", "mAP"} <= names["figures"].keys()


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
