"""README and docs/: every command, setting, path and link in them is one, and the README's commands run."""

import argparse
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
from pydantic import BaseModel

import artkv.batch
import artkv.cli as cli
from artkv.arguments import VERBS, make_parser
from artkv.config import Config, load_config, override_config, recipe_path
from artkv.errors import UserError
from artkv.sweep.plan import read_sweep
from tests.test_layering import LAYERS

ROOT = Path(__file__).resolve().parents[1]
# Its commands, settings and paths are wrong by intention; tests/bad_inputs holds it to what artkv says.
WRONG_INPUTS = ROOT / "docs" / "bad_input.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(set((ROOT / "docs").glob("*.md")) - {WRONG_INPUTS}),
]
EXECUTED = "<!-- executed by tests/test_docs.py -->\n\n"

# Look like settings and are none.
NO_SETTINGS = {"model.ask", "model.encode", "model.model", "model.generate", "model.load_checkpoint", "run.lock"}
# What a reader makes.
MADE_BY_READERS = {"launch/hostfile"}
TOP_FOLDERS = ("artkv", "benchmarks", "docs", "ds_configs", "launch", "tests", ".ci")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


class Fence(NamedTuple):
    """A fenced block: its language, '' where none is given, and its text."""

    language: str
    text: str


def fences(text: str) -> list[Fence]:
    return [Fence(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def code_spans(text: str) -> list[str]:
    """Inline code, the line breaks in it as blanks."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without_fences(text))]


def command_lines(text: str) -> list[list[str]]:
    """The words of every command in a page's shell blocks and inline code; `...` stands for anything."""
    lines = [span for span in code_spans(text) if " --" in span or span.startswith("--set ")]
    for fence in fences(text):
        if fence.language == "bash":
            lines += fence.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if "..." not in line and (words := shlex.split(line, comments=True))]


def overrides(words: list[str]) -> list[str]:
    """What follows each `--set`, but for forms such as SECTION.KEY=VALUE and `run.output_dir=`."""
    given = [value for option, value in pairwise(words) if option == "--set"]
    return [value for value in given if "KEY" not in value and not value.endswith("=")]


def of_artkv(words: list[str]) -> list[str] | None:
    """The arguments of `artkv`, whichever launcher starts it; None if the command is none of artkv's."""
    programs = {"deepspeed", "torchrun", "srun", "python", "artkv"}
    return words[words.index("artkv") + 1 :] if words[0] in programs and "artkv" in words else None


@cache
def parser() -> argparse.ArgumentParser:
    return make_parser(VERBS)


def schema_keys(section: type[BaseModel], dotted: str = "") -> Iterator[str]:
    for key, field in section.model_fields.items():
        yield f"{dotted}{key}"
        kinds = [field.annotation, *get_args(field.annotation)]
        for kind in kinds:  # a section, one that may be null, or a list of them
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from schema_keys(kind, f"{dotted}{key}.")
            for entry in get_args(kind):
                if isinstance(entry, type) and issubclass(entry, BaseModel):
                    yield from schema_keys(entry, f"{dotted}{key}.0.")


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# Commands and settings


@each_page
def test_every_command_is_one(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for words in command_lines(page.read_text(encoding="utf-8")):
        arguments = of_artkv(words)
        if arguments is None or arguments == ["--help"]:
            continue
        try:
            parser().parse_args(arguments)
        except SystemExit:
            wrong.append(f"{' '.join(words)}: {capsys.readouterr().err.splitlines()[-1]}")
        try:
            override_config(Config(), overrides(arguments))
        except UserError as error:
            wrong.append(f"{' '.join(words)}: {error}")
    assert wrong == []


@each_page
def test_every_verb_and_setting_is_one(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = set(schema_keys(Config))
    (verbs,) = (action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    wrong = []
    for span in code_spans(text):
        if (verb := re.match(r"artkv ([a-z-]+)", span)) and verb[1] not in verbs:
            wrong.append(span)
        names = re.findall(rf"(?<![\w./-])(?:{'|'.join(Config.model_fields)})\.[a-z_][a-z_0-9]*(?:\.[a-z_]+)*", span)
        wrong += [name for name in names if name not in known | NO_SETTINGS and not name.endswith(".py")]
    for words in command_lines(text):
        wrong += [pair for pair in overrides(words) if pair.partition("=")[0] not in known]
    assert wrong == []


@each_page
def test_yaml_json_and_python_can_be_read(page: Path, tmp_path: Path) -> None:
    for fence in fences(page.read_text(encoding="utf-8")):
        if fence.language == "yaml" and fence.text.startswith("config: my.yaml"):
            (tmp_path / "my.yaml").write_text("", encoding="utf-8")
            (tmp_path / "sweep.yaml").write_text(fence.text, encoding="utf-8")
            read_sweep(tmp_path / "sweep.yaml")
        elif fence.language == "yaml":
            (tmp_path / "my.yaml").write_text(fence.text, encoding="utf-8")
            load_config(tmp_path / "my.yaml")
        elif fence.language == "json":
            json.loads(fence.text)
        elif fence.language == "python":
            compile(fence.text, page.name, "exec")
        else:
            assert fence.language in ("", "bash", "bibtex")


# Links, paths and names


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_fences(page.read_text(encoding="utf-8"))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            wrong.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.+)$", without_fences(file.read_text(encoding="utf-8")), re.M)
            if anchor not in map(slug, headings):
                wrong.append(target)
    assert wrong == []


@cache
def is_file(name: str) -> bool:
    """Whether the repository has a file whose path is `name` or ends in it."""
    return (ROOT / name).exists() or any(any((ROOT / folder).rglob(name)) for folder in TOP_FOLDERS)


@each_page
def test_every_path_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    code = [*code_spans(text), *(fence.text for fence in fences(text))]
    wrong = []
    for span in code:
        for path in re.findall(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, TOP_FOLDERS))})/[\w./*-]*", span):
            path = path.rstrip(".")
            if path not in MADE_BY_READERS and not any(ROOT.glob(path.rstrip("/"))):
                wrong.append(path)
        names = re.findall(r"(?<![\w/*])[\w/]+\.(?:py|sbatch|sh)\b", span)
        wrong += [name for name in names if not name.startswith("KV/") and not is_file(name)]
    assert [name for name in wrong if "NAME" not in name] == []


def test_the_readmes_tree_is_the_repositorys() -> None:
    blocks = fences((ROOT / "README.md").read_text(encoding="utf-8"))
    (tree,) = (block.text for block in blocks if block.text.startswith("artkv/\n"))
    for line in tree.splitlines():
        parent = ROOT / "artkv" if line.startswith("  ") else ROOT
        for name in re.split(r"\s{2,}", line.strip())[0].split(", "):
            assert (parent / name).exists(), name


@pytest.mark.parametrize("name", ["architecture.md", "extending.md"])
def test_names_of_the_architecture_are_in_the_code(name: str) -> None:
    """Names with an underscore or a capital; those that end in a shape are examples."""
    files = [*(ROOT / "artkv").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    words = {word for file in files for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))}
    wrong = []
    for span in code_spans((ROOT / "docs" / name).read_text(encoding="utf-8")):
        for identifier in re.findall(r"[A-Za-z_]\w*", span) if "/" not in span else []:
            is_name = "_" in identifier or (len(identifier) > 1 and identifier != identifier.lower())
            if is_name and not re.search(r"_[A-Z0-9]+$", identifier) and identifier not in words:
                wrong.append(identifier)
    assert wrong == []


def test_tensor_names_end_in_letters_of_the_alphabet() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    alphabet = set(re.findall(r"^\| `([A-Z])` \|", page, re.M))
    explained = artkv.batch.__doc__ or ""  # the same, for whoever reads the code
    assert set(re.findall(r"(?:^ {4}|  )([A-Z])  ", explained, re.M)) == alphabet
    strange = []
    for file in (ROOT / "artkv").rglob("*.py"):
        for name, shape in re.findall(r"\b([a-z]\w*?_([A-Z][A-Z0-9]*))\b", file.read_text(encoding="utf-8")):
            if not {letter for letter in shape if letter.isalpha()} <= alphabet:
                strange.append(f"{file.relative_to(ROOT)}: {name}")
    assert strange == []


def test_dotted_modules_are_there() -> None:
    for page in PAGES:
        for span in code_spans(page.read_text(encoding="utf-8")):
            for name in re.findall(r"(?<![\w./-])artkv(?:\.(?!json\b)[A-Za-z_]+)+", span):
                parts = name.split(".")
                module = importlib.import_module("artkv")
                for depth, part in enumerate(parts[1:], start=2):
                    if not hasattr(module, part):
                        importlib.import_module(".".join(parts[:depth]))
                    module = getattr(module, part)


def test_every_page_is_in_both_indices() -> None:
    for index, prefix in ((ROOT / "README.md", "docs/"), (ROOT / "docs" / "README.md", "")):
        text = index.read_text(encoding="utf-8")
        for page in (ROOT / "docs").glob("*.md"):
            assert page.name == "README.md" or f"]({prefix}{page.name}): " in text, page.name


def test_contributings_layers_are_those_that_are_enforced() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| (.+) \|$", text.split("\n## Layers\n")[1].split("\n## ")[0], re.M)
    told = {part: int(layer) for layer, parts in rows for part in re.findall(r"`(\w+)`", parts)}
    assert told | {"__init__": 6} == LAYERS  # the package's root


# The README


def test_the_readme_is_short_and_holds_the_minimal_recipe_as_it_is() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 1000
    assert Fence("yaml", recipe_path("minimal.yaml").read_text(encoding="utf-8")) in fences(text)


def executed(page: Path, language: str) -> str:
    (block,) = (rest for rest in page.read_text(encoding="utf-8").split(EXECUTED)[1:])
    assert block.startswith(f"```{language}\n")
    return fences(block)[0].text


def test_the_readmes_commands_and_those_from_python_run(
    tiny_world: Path, tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As they stand there, on the minimal recipe, with tiny files under the names that it has for the true ones."""
    for name, true in {
        "Salesforce/blip2-opt-2.7b": "blip2",
        "checkpoints/efficientnet_b3_wikiart.pth": "efficientnet.safetensors",
        "data/artquest/train.csv": "train.csv",
        "data/artquest/val.csv": "val.csv",
        "data/artquest/test.csv": "val.csv",
        "data/artquest/images": "images",
        "painting.jpg": "images/val0.png",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(tiny_world / true)
    recipe = recipe_path("minimal.yaml").read_text(encoding="utf-8")
    for true, tiny in {
        "image_size: 300": "architecture: test_efficientnet\n  image_size: 32",
        "batch_size: 8": "num_epochs: 1\n  batch_size: 8",
    }.items():
        assert true in recipe
        recipe = recipe.replace(true, tiny)
    (tmp_path / "my.yaml").write_text(recipe, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    verbs = []
    for line in executed(ROOT / "README.md", "bash").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "artkv"
        assert cli.main(arguments) == 0, f"{line}: {capsys.readouterr().err}"
        verbs.append(arguments[0])
    assert verbs == ["check", "train", "train", "evaluate", "report", "ask", "export"]
    assert (tmp_path / "painter.safetensors").is_file()
    assert "attention maps" in (tmp_path / "outputs/artquest/report.html").read_text(encoding="utf-8")
    assert len(list((tmp_path / "outputs/artquest/eval").iterdir())) == 4

    capsys.readouterr()
    scope: dict[str, Any] = {}
    exec(compile(executed(ROOT / "docs/python.md", "python"), "docs/python.md", "exec"), scope)
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_names_are_in_the_files_that_they_are_said_to_be_in() -> None:
    said = [
        (page.name, name, path)
        for page in PAGES
        for name, path in re.findall(r"`(\w+)` in `(artkv/[\w/]+\.py)`", page.read_text(encoding="utf-8"))
    ]
    assert len(said) > 5
    assert [one for one in said if not re.search(rf"\b{one[1]}\b", (ROOT / one[2]).read_text(encoding="utf-8"))] == []
