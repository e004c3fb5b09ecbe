"""Which part of artkv may import which, and where third-party libraries are allowed."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "artkv"

# A part imports itself and lower numbers. The lowest, and the top, may import one another, in no circle.
LAYERS = {
    "errors": 0, "config": 0, "files": 0, "reading": 0, "distributed": 0, "devices": 0, "launcher_variables": 0,
    "single_rank": 0, "batch": 0, "file_kinds": 0, "parent_process": 0,
    "datasets": 1, "kv_modulation": 1, "frozen": 1, "monitoring": 1, "run_folder": 1,
    "models": 2, "feature_cache": 2,
    "evaluation": 3, "planning": 3, "art_encoder": 3,
    "session": 4,
    "training": 5,
    "export": 6, "preflight": 6, "api": 6, "quickstart": 6, "report": 6, "serve": 6, "sweep": 6,
    "launching": 6, "launch_files": 6, "supervisor": 6, "shell": 6, "failures": 6, "arguments": 6, "argument_values": 6,
    "heavy_imports": 6,
    "transformers_index": 6,
    "verb_options": 6, "given_checkpoints": 6, "single_question": 6, "starting": 6, "sharing": 6, "cli": 6,
    "__main__": 6, "__init__": 6,
}  # fmt: skip
MIXED = {0, 6}

# Library (a dotted prefix of what is imported) and the only files that may import it.
ONLY_IN = {
    "deepspeed": ["training/engine.py"],
    "lavis": ["models/backbone/lavis*.py"],
    "timm": ["models/timm_networks.py", "art_encoder/timm_parts.py", "quickstart/*.py"],
    "tensorboard": ["monitoring/*.py"],
    "torch.utils.tensorboard": ["monitoring/*.py"],
    "wandb": ["monitoring/wandb_log.py"],
    "trackio": ["monitoring/trackio_log.py"],
    "jinja2": ["report/page.py"],
    "nltk": ["evaluation/extra_scores.py"],
    "rouge_score": ["evaluation/extra_scores.py"],
    "pyarrow": ["datasets/arrow_members.py"],
}

_DYNAMIC = ("importlib.import_module", "import_module", "__import__")


def imported_names(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in `source`, wherever it stands, relative ones made absolute.

    `from a import b` gives `a.b`, since b may be a module. `package` is the package that holds the file.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in _DYNAMIC:
            names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            yield from ((node.lineno, str(name)) for name in names)


def part_of(relative: str) -> str:
    """The part of artkv that a file such as `models/opt.py` or `batch.py` belongs to."""
    return relative.split("/")[0].removesuffix(".py")


def violations(relative: str, source: str) -> list[str]:
    """What `source`, at `artkv/{relative}`, imports against the rules; a line of text each."""
    part = part_of(relative)
    if part not in LAYERS:
        return [f"{relative}: {part} is in no layer; give it one here and in the design"]
    package = ".".join(["artkv", *relative.split("/")[:-1]])
    found = []
    for line, name in imported_names(source, package):
        pieces = name.split(".")
        if pieces[0] == "artkv":
            target = pieces[1] if len(pieces) > 1 and pieces[1] in LAYERS else "__init__"
            lower = LAYERS[target] < LAYERS[part]
            mixed = LAYERS[part] == LAYERS[target] and LAYERS[part] in MIXED
            if not (target == part or lower or mixed):
                found.append(f"{relative}:{line}: {part} must not import {name}")
        for library, allowed in ONLY_IN.items():
            if f"{name}.".startswith(f"{library}.") and not any(fnmatch(relative, where) for where in allowed):
                found.append(f"{relative}:{line}: {library} belongs in {', '.join(allowed)} only")
    return list(dict.fromkeys(found))


def test_artkv_keeps_to_its_layers() -> None:
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 10
    found = []
    for file in files:
        found += violations(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
    assert found == []


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("datasets/order.py", "from artkv.models.opt import Opt"),  # upwards
        ("datasets/order.py", "from artkv import models"),
        ("datasets/order.py", "import artkv.training"),
        ("datasets/order.py", "def later():\n    from artkv.evaluation.scores import Scores"),
        ("datasets/order.py", "if TYPE_CHECKING:\n    import artkv.models.opt"),
        ("datasets/order.py", "from ..models import opt"),
        ("datasets/__init__.py", "from ..models import opt"),
        ("datasets/deep/er.py", "from ...models import opt"),
        ("datasets/order.py", 'importlib.import_module("artkv.models")'),
        ("datasets/order.py", "from artkv.monitoring import RunLog"),  # a sibling of the same layer
        ("evaluation/report.py", "import artkv.planning.memory"),
        ("batch.py", "from artkv.datasets.order import MicroBatch"),
        ("run_folder/status.py", "import artkv.training.preemption"),
        ("training/loop.py", "from artkv import load_model"),  # the package's root is the top
        ("training/loop.py", "import artkv"),
        ("training/loop.py", "from artkv.cli import main"),
        ("training/loop.py", "import artkv.quickstart.world"),
        ("utils/things.py", "import os"),  # in no layer
        ("training/loop.py", "import deepspeed"),
        ("quickstart/world.py", "from deepspeed.utils import safe_get_full_fp32_param"),
        ("cli.py", "import tensorboard"),
        ("report/plots.py", "from jinja2.utils import htmlsafe_json_dumps"),
        ("training/loop.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("training/loop.py", "from torch.utils import tensorboard"),
        ("quickstart/world.py", "import lavis.models"),
        ("models/opt.py", "from timm import create_model"),
        ("art_encoder/training.py", "import timm.data"),
        ("models/opt.py", "import lavis"),
        ("monitoring/run_log.py", "import wandb"),
        ("monitoring/wandb_log.py", "import trackio"),
    ],
)
def test_checker_finds(relative: str, source: str) -> None:
    assert len(violations(relative, source)) == 1


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("datasets/order.py", "from artkv.batch import Batch\nfrom artkv.errors import UserError"),
        (
            "datasets/order.py",
            "from artkv.datasets import images\nfrom . import images\nfrom .images import decode",
        ),
        ("datasets/order.py", "from ..batch import Batch"),
        ("config/loading.py", "from artkv.errors import UserError\nfrom artkv.config.schema import Config"),
        ("distributed.py", "from artkv.errors import UserError"),
        ("training/loop.py", "from artkv.evaluation import scores\nfrom artkv.models import opt"),
        ("__init__.py", "from artkv.config import load_config\nfrom artkv.training.engine import Engine"),
        ("__main__.py", "from artkv.cli import main"),
        ("cli.py", "import artkv.quickstart.world"),
        ("quickstart/world.py", "import timm\nimport transformers\nfrom artkv.training import loop"),
        ("training/engine.py", "import deepspeed"),
        ("models/backbone/lavis_backend.py", "from lavis.models.eva_vit import VisionTransformer"),
        ("models/timm_networks.py", "from timm.data import Mixup"),
        ("monitoring/tensorboard_log.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("models/opt.py", "import timmy\nimport lavish\nimport torch.utils.checkpoint"),
        ("models/opt.py", 'text = "import deepspeed"'),
    ],
)
def test_checker_allows(relative: str, source: str) -> None:
    assert violations(relative, source) == []


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        # torch takes seconds: of `artkv --help` and `artkv status`, and before SIGUSR1 is listened for.
        (
            [
                "artkv.cli", "artkv.training.preemption", "artkv.run_folder", "artkv.run_folder.layout",
                "artkv.run_folder.marker", "artkv.run_folder.run_lock", "artkv.run_folder.state",
                "artkv.run_folder.status",
            ],
            ["torch", "pydantic", "yaml"],
        ),
        # A trained run is read where DeepSpeed is not installed; of transformers and accelerate, none imports it.
        (["artkv.run_folder.checkpoint", "artkv.run_folder.checkpoints", "artkv.export", "artkv.api"], ["deepspeed"]),
    ],
)  # fmt: skip
def test_what_is_light_imports_nothing_heavy(modules: list[str], unwanted: list[str]) -> None:
    """In a process of its own, one module after the other."""
    code = (
        "import importlib, json, sys\n"
        f"for module in {modules}:\n"
        "    importlib.import_module(module)\n"
        f"    print(json.dumps([module, [name for name in {unwanted} if name in sys.modules]]))\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert [json.loads(line) for line in printed.splitlines()] == [[module, []] for module in modules]
