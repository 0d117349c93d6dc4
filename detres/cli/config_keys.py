"""`detres config-keys`: every key of the configurations with type, default and meaning, as Markdown.

`docs/configuration.md` is its output, which a test checks.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from detres.cli.common import tool_parser

LINE = 118  # characters of a line of prose, before its full stop
EXAMPLE = "python3 tools/config_keys.py > docs/configuration.md"
KeyRow = tuple[str, str, str, str]  # key, type, default, meaning

INTRODUCTION = """\
# Configuration

A configuration is a YAML file, `--cfg FILE`, or a shipped recipe, which is given by its name: `--cfg finetune`,
`--cfg voc/r101_c4`. Recipes are the files of `configs/`, which are installed with the package. A file that exists comes
before a recipe. A configuration holds only what differs from the defaults below. The defaults of `rpn`, `rcnn` and
`test` are those of the paper or its sources. The defaults of `train` are a starting point, which recipes change.

* **Strict.** Unknown keys, duplicate keys, wrong types and values out of range are errors. The message names the file,
  the line, the key and the nearest valid name. `1e-4` is a number; `yes`, `no`, `on` and `off` are words.
* **Bases.** `base: other.yaml` (relative to the file) is read first. Mappings merge, lists replace. A base may have a
  base itself; a circle is an error.
* **Command line.** `--set train.lr=0.002` changes one key and can be repeated. It beats the file, and its value is read
  as YAML. `--data` replaces `data.train` and `data.val`, and `--init` replaces `model.init`.
* **Lengths** are written `12 epochs` or `240000 iterations`. Milestones and intervals can also be a share of the run,
  `50 %`. An iteration is one step of the optimizer, with `train.accumulate` times `train.batch` images.
* **Derived values have no keys.** Classes come from the data. Stride, max pool, `eps` and preprocessing come from the
  weights of `model.init`. The learning rate of a batch follows from `train.lr` and `train.base_batch_size`.

A run prints how its configuration differs from the defaults, and saves the whole configuration as `config.yaml`, from
which it can be repeated. With `--resume`, only these keys may differ from it:
{free}.
There are exceptions. `train.evaluate_every` must stay if `train.schedule` is plateau, and `train.log_every` must stay
if `train.warmup_until_error` is set, because they decide when the rate changes. An alternating step that is done keeps
its length.

`python3 tools/config_keys.py > docs/configuration.md` makes these tables. `data.train[]` means each entry of a list.
"""


def main(argv: list[str]) -> None:
    """Print the page."""
    parser = tool_parser("config-keys", "All keys of configurations as a Markdown page.", EXAMPLE)
    parser.parse_args(argv)
    print(page(), end="")


def page() -> str:
    """The page: an introduction, the keys that both tasks share, and the keys of each task."""
    from detres.classification.config import ClassificationConfig
    from detres.config import describe_keys
    from detres.detection.config import DetectionConfig
    from detres.training.config import FREE_AT_RESUME

    free = textwrap.fill(", ".join(f"`train.{key}`" for key in sorted(FREE_AT_RESUME)), LINE)
    detection, classification = describe_keys(DetectionConfig), describe_keys(ClassificationConfig)
    parts = {
        "Detection and classification alike": [row for row in detection if row in classification],
        "Detection: `train_det.py`": [row for row in detection if row not in classification],
        "Classification: `train_cls.py`": [row for row in classification if row not in detection],
    }
    tables = [f"## {title}\n\n{markdown_table(rows)}" for title, rows in parts.items()]
    return "\n".join([INTRODUCTION.format(free=free), *tables])


def markdown_table(rows: Iterable[KeyRow]) -> str:
    """Rows of `describe_keys` as a Markdown table."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, kind, default, meaning in rows:
        lines.append(f"| `{key}` | {_cell(kind)} | `{_cell(default)}` | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
