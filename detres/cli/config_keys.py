"""`detres config-keys`: every key of the configurations with type, default and meaning, as Markdown.

`docs/configuration.md` is what it prints; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterable

from detres.cli.common import tool_parser

EXAMPLE = "python3 tools/config_keys.py > docs/configuration.md"
Row = tuple[str, str, str, str]

INTRODUCTION = """\
# Configuration

A configuration is a YAML file, given with `--cfg FILE`, or a shipped recipe, given by its name: `--cfg finetune`,
`--cfg voc/r101_c4`. Recipes are named as their files in `configs/`, which are installed with the package; a file that
exists comes before a recipe. A configuration says only what differs from the defaults below. Those of `rpn`,
`rcnn` and `test` are the paper's or its sources'; those of `train` are a beginning, for which there are recipes.

* **Strict.** An unknown or doubled key, a wrong type or a value out of range is an error with file, line, key and the
  nearest name that exists. `1e-4` is a number; `yes`, `no`, `on` and `off` are words.
* **Bases.** `base: other.yaml` (relative to the file) is read first. Mappings merge, lists replace. A base may have a
  base itself; a circle is an error.
* **Command line.** `--set train.lr=0.002`, as often as needed, beats the file; the value is read as YAML. `--data`
  stands for `data.train` and `data.val`, `--init` for `model.init`.
* **Lengths** are written `12 epochs`, `240000 iterations` or, milestones and intervals, as a share of the run, `50 %`.
  An iteration is one step of the optimizer: `train.accumulate` times `train.batch` pictures.
* **Nothing that follows is asked for**: the classes come from the data; stride, max pool, `eps` and preprocessing from
  the weights of `model.init`; the learning rate of a batch from `train.lr` and `train.base_batch_size`.

A run prints how it differs from the defaults and saves the whole as `config.yaml`, from which it can be repeated. With
`--resume` only these may differ from it:
{free};
not `train.evaluate_every` where `train.schedule` is plateau, nor `train.log_every` with `train.warmup_until_error`, for
there they steer the rate. An alternating step that is done keeps its length.

These tables are made by `python3 tools/config_keys.py > docs/configuration.md`. `data.train[]` is each entry of a list.
"""


def main(argv: list[str]) -> None:
    """Print the page."""
    parser = tool_parser("config-keys", "All keys of configurations as a Markdown page.", EXAMPLE)
    parser.parse_args(argv)
    print(page(), end="")


def page() -> str:
    """The page: an introduction, the keys that both tasks have, and those of each."""
    from detres.classification.config import ClassificationConfig
    from detres.config import describe_keys
    from detres.detection.config import DetectionConfig
    from detres.training.config import FREE_AT_RESUME

    free = ", ".join(f"`train.{key}`" for key in sorted(FREE_AT_RESUME))
    detection, classification = describe_keys(DetectionConfig), describe_keys(ClassificationConfig)
    parts = {
        "Detection and classification alike": [row for row in detection if row in classification],
        "Detection: `train_det.py`": [row for row in detection if row not in classification],
        "Classification: `train_cls.py`": [row for row in classification if row not in detection],
    }
    tables = [f"## {title}\n\n{table(rows)}" for title, rows in parts.items()]
    return "\n".join([INTRODUCTION.format(free=free), *tables])


def table(rows: Iterable[Row]) -> str:
    """Rows of `describe_keys` as a Markdown table."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, kind, default, meaning in rows:
        lines.append(f"| `{key}` | {_cell(kind)} | `{_cell(default)}` | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
