"""No file that a stranger gives can make artkv run code, by what its source calls; and what is installed is pinned."""

import ast
import importlib.metadata
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import Blip2Config

from artkv.models.files.blip2_files import _load_tokenizer

ROOT = Path(__file__).resolve().parents[1]

# Calls that artkv does without, by what they are imported as, and why.
FORBIDDEN = {
    **dict.fromkeys(("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"), "goes by a shell"),
    **dict.fromkeys(("asyncio.create_subprocess_shell", "pty.spawn"), "goes by a shell"),
    **dict.fromkeys(("eval", "exec", "compile", "builtins.eval", "builtins.exec", "code.interact"), "runs text"),
    **dict.fromkeys(("yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all"), "runs code"),
    **dict.fromkeys(("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"), "runs code"),
    **dict.fromkeys(("shelve.open", "dill.load", "dill.loads", "cloudpickle.load", "joblib.load"), "runs code"),
    **dict.fromkeys(("pandas.read_pickle", "torch.hub.load", "torch.jit.load", "runpy.run_path"), "runs code"),
    **dict.fromkeys(("tempfile.mktemp", "os.tempnam"), "names a file that another may make first"),
    **dict.fromkeys(("shutil.unpack_archive",), "writes where an archive says"),
}
# Keywords that make any call one of those.
FORBIDDEN_KEYWORDS = {
    "shell": "goes by a shell", "trust_remote_code": "runs code of a hub", "allow_pickle": "runs code of a file",
}  # fmt: skip
_SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}


def imported_as(tree: ast.AST) -> dict[str, str]:
    """What each name that a module imports means: `p` is `pickle` after `import pickle as p`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name of what a call calls; '' where it has none."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([names.get(node.id, node.id), *reversed(parts)]) if isinstance(node, ast.Name) else ""


def safe_loaders(tree: ast.AST, names: dict[str, str]) -> set[str]:
    """YAML's safe loaders and the classes of this module that are made of one."""
    safe = set(_SAFE_LOADERS)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(full_name(base, names) in safe for base in node.bases):
            safe.add(node.name)
    return safe


def dangers(source: str) -> Iterator[str]:
    """Each call in `source` that runs code from data, or a shell; a line of text each."""
    tree = ast.parse(source)
    names = imported_as(tree)
    safe = safe_loaders(tree, names)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield f"line {node.lineno}: imports *, so that names cannot be followed"
        # A function that is handed on is called elsewhere.
        if isinstance(node, ast.Name | ast.Attribute) and (called := full_name(node, names)) in FORBIDDEN:
            yield f"line {node.lineno}: {called} {FORBIDDEN[called]}"
        if not isinstance(node, ast.Call):
            continue
        called, line = full_name(node.func, names), f"line {node.lineno}"
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        for keyword, why in FORBIDDEN_KEYWORDS.items():
            value = keywords.get(keyword)
            if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
                yield f"{line}: {called} with {keyword} {why}"
        if re.search(r"\bAuto\w*\.from_pretrained$", called) and "trust_remote_code" not in keywords:
            yield f"{line}: {called} without trust_remote_code=False may ask to run code"
        if called == "torch.load":
            value = keywords.get("weights_only")
            if not (isinstance(value, ast.Constant) and value.value is True):
                yield f"{line}: torch.load without weights_only=True runs code"
        if called in ("yaml.load", "yaml.load_all"):
            loader = keywords.get("Loader") or (node.args[1] if len(node.args) > 1 else None)
            if loader is None or full_name(loader, names) not in safe:
                yield f"{line}: {called} without a safe loader runs code"
        if called.endswith((".extractall", ".extract")):
            yield f"{line}: {called} writes where an archive says"


def test_artkv_runs_no_code_from_data_and_no_shell() -> None:
    files = sorted((ROOT / "artkv").rglob("*.py"))
    assert len(files) > 10
    found = {file.relative_to(ROOT).as_posix(): list(dangers(file.read_text(encoding="utf-8"))) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.system(command)",
        "from os import system as run\nrun(command)",
        "import os\nos.popen('ls')",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import subprocess as s\ndef f():\n    return s.Popen(text, shell=wanted)",
        "import subprocess\nsubprocess.getoutput(text)",
        "eval(text)",
        "list(map(eval, texts))",
        "exec(compile(text, 'x', 'exec'))",
        "import pickle\nwith open('x') as file:\n    pickle.load(file)",
        "def later():\n    from pickle import loads\n    return loads(content)",
        "import pickle as p\np.Unpickler(file).load()",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=is_safe)",
        "from torch import load as read\nread(path)",
        "import torch\ntorch.jit.load(path)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "import yaml\nyaml.load(text, Loader=yaml.FullLoader)",
        "import yaml\nclass Own(yaml.Loader):\n    pass\nyaml.load(text, Own)",
        "import yaml\nyaml.unsafe_load(text)",
        "import tempfile\nname = tempfile.mktemp()",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "from transformers import AutoModel\nAutoModel.from_pretrained(name, trust_remote_code=True)",
        "from transformers import AutoTokenizer\nAutoTokenizer.from_pretrained(folder)",
        "import tarfile\ntarfile.open(path).extractall('.')\narchive.extractall('.')",
        "from os import *",
    ],
)
def test_the_check_finds_each_danger(source: str) -> None:
    assert list(dangers(source)) != []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, map_location='cpu', weights_only=True)",
        "import yaml\nyaml.load(text, yaml.SafeLoader)",
        "import yaml\nclass Own(yaml.SafeLoader):\n    pass\nyaml.load(text, Own)",
        "import yaml\nyaml.safe_load(text)",
        "import subprocess\nsubprocess.run([program, text], shell=False)",
        "import re\nre.compile(text)",
        "import transformers as t\nt.AutoConfig.from_pretrained(folder, trust_remote_code=False)",
        "from transformers import Blip2Config\nBlip2Config.from_pretrained(folder)",
        "model.eval()",
        "import pickle\ntry:\n    pass\nexcept pickle.UnpicklingError:\n    pass",
        "import numpy as np\nnp.load(path)",
        "import tempfile\nwith tempfile.TemporaryDirectory() as folder:\n    pass",
        "pattern.search(text).expand(template)",
    ],
)
def test_the_check_allows_what_is_safe(source: str) -> None:
    assert list(dangers(source)) == []


def test_code_beside_a_tokenizer_does_not_run(tiny_blip2_folder: Path, tmp_path: Path) -> None:
    """A folder of weights that names a class of its own, as repositories of the hub may."""
    folder = tmp_path / "blip2"
    shutil.copytree(tiny_blip2_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["planted.Planted", "planted.Planted"]}, "tokenizer_class": "Planted"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ran = tmp_path / "ran"
    (folder / "planted.py").write_text(f"open({str(ran)!r}, 'w')\nclass Planted: ...\n")
    tokenizer = _load_tokenizer(folder, Blip2Config.from_pretrained(folder))
    assert not ran.exists()
    assert tokenizer("oil on canvas").input_ids  # by tokenizer.json, which is data


def pinned() -> dict[str, str]:
    """constraints.txt, each line of which pins one version."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    pins = dict(line.split("==") for line in lines)
    assert len({canonicalize_name(name) for name in pins}) == len(lines)
    return {canonicalize_name(name): version for name, version in pins.items()}


def needed(name: str, extra: str, seen: set[tuple[str, str]]) -> None:
    """Adds to `seen` each installed distribution that the named one needs with its extra, or those need in turn."""
    if (name, extra) in seen:
        return
    seen.add((name, extra))
    for text in importlib.metadata.requires(name) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            other = canonicalize_name(requirement.name)
            try:
                importlib.metadata.version(other)
            except importlib.metadata.PackageNotFoundError:
                continue  # of an extra that is not installed here
            for wanted in requirement.extras or {""}:
                needed(other, wanted, seen)


def test_what_is_installed_is_pinned() -> None:
    pins, seen = pinned(), set()
    needed("artkv", "dev", seen)
    names = {name for name, _ in seen} - {"artkv"}
    assert len(names) > 50
    # Fixed by torch itself, whose builds for other machines need others.
    names -= {name for name in names if name == "triton" or name.startswith(("nvidia-", "cuda-"))}
    assert {name for name in names if name not in pins} == set()
