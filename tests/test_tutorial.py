"""docs/tutorial.md: its commands run as they stand, from thirty pictures and a table to a shared model."""

import csv
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

import artkv.cli as cli
from artkv.serve.asking import AskedModel, Facts
from tests.hub_server import Hub, Repository, hub_here
from tests.test_docs import ROOT, command_lines, fences

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
HERE, ELSEWHERE = TUTORIAL.split("\n## 10. ")


@pytest.fixture
def hub(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Holds what the tutorial fetches: tiny files under the true names."""
    with hub_here(monkeypatch, tmp_path / "hub_cache") as hub:
        for name, files in {
            "Salesforce/blip2-opt-2.7b": {path.name: path for path in (tiny_world / "blip2").iterdir()},
            "timm/efficientnet_b3.ra2_in1k": {"model.safetensors": tiny_world / "efficientnet.safetensors"},
        }.items():
            hub.repositories[name] = Repository(branches={"main": ""})
            hub.repositories[name].commit("main", {file: path.read_bytes() for file, path in files.items()})
        yield hub


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Facts]]:
    """What each `artkv serve` would have told its page; it ends at once, and its signals' handlers with the test."""
    facts: list[Facts] = []

    def serve(_: object, model: AskedModel) -> NoReturn:
        facts.append(model.facts())
        raise KeyboardInterrupt

    monkeypatch.setattr("artkv.serve.server.PageServer.serve", serve)
    handlers = {ending: signal.getsignal(ending) for ending in (signal.SIGTERM, signal.SIGINT)}
    yield facts
    for ending, handler in handlers.items():
        signal.signal(ending, handler)


def make_paintings(folder: Path) -> None:
    """Thirty small photographs, and a table as a spreadsheet saves it: semicolons, Latin-1, headers of one's own."""
    rng = np.random.default_rng(0)
    (folder / "scans").mkdir(parents=True)
    rows = []
    for number in range(30):
        name = f"DSC_{number:04}.jpg"
        squares = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(squares).save(folder / "scans" / name)
        rows.append([number, name, "Who painted it?", ("Großvater", "Käthe")[number % 2], "painter"])
        rows.append([number, name, "With what?", ("Öl", "ink", "chalk")[number % 3], "technique"])
    with (folder / "list.csv").open("w", encoding="latin-1", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["No", "Photo", "They ask", "Right would be", "Subject"])
        writer.writerows(rows)


def test_the_tutorials_commands_run_as_they_stand(
    hub: Hub, served: list[Facts], tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """But for the shape of the tiny art encoder, which is put into the config, and that one epoch is enough."""
    make_paintings(tmp_path / "paintings")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "paintings"]) == 1  # as the tutorial says
    assert "list.csv: no column of question or answer among 'No', 'Photo', 'They ask'" in capsys.readouterr().err

    told: dict[str, str] = {}
    for words in lines(HERE):
        told[" ".join(words[:2])] = run(words, monkeypatch, capsys)
        if words[:2] == ["artkv", "init"]:
            make_tiny(tmp_path / "my.yaml")
    verbs = [
        "init",
        "check",
        "plan",
        "train",
        "status",
        "evaluate",
        "compare",
        "report",
        "ask",
        "serve",
        "export",
        "push",
    ]
    assert list(told) == ["hf download", *(f"artkv {verb}" for verb in verbs)]
    assert "none into two splits: train 24, val 3, test 3" in told["artkv init"]
    assert told["artkv check"].endswith("no problems found\n")
    for verb in ("evaluate", "compare"):
        assert "no difference over the control is shown" in told[f"artkv {verb}"]
        assert "3 paintings are too few to show any" in told[f"artkv {verb}"]
    assert (tmp_path / "where.png").is_file()
    assert (tmp_path / "outputs/my/report.html").is_file()
    assert [facts.name.split("/")[0] for facts in served] == ["my"]
    assert hub.repositories["me/painter"].private

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/painting.jpg").symlink_to(tmp_path / "paintings/scans/DSC_0003.jpg")
    (program,) = (fence.text for fence in fences(ELSEWHERE) if fence.language == "python")
    scope: dict[str, Any] = {}
    exec(compile(program, "docs/tutorial.md", "exec"), scope)
    assert capsys.readouterr().out == told["artkv ask"]
    (words,) = lines(ELSEWHERE)
    assert run(words, monkeypatch, capsys) == told["artkv ask"]


def lines(text: str) -> list[list[str]]:
    """The words of each command in the shell blocks, in their order."""
    blocks = "".join(f"```bash\n{fence.text}```\n" for fence in fences(text) if fence.language == "bash")
    return command_lines(blocks)


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints; fails where it does."""
    program, *arguments = words
    capsys.readouterr()
    if program == "hf":
        from huggingface_hub.cli.hf import main

        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code or 0
    else:
        assert program == "artkv"
        code = cli.main([*arguments, "--port", "0"] if arguments[0] == "serve" else arguments)
    output = capsys.readouterr()
    assert code == 0, f"{shlex.join(words)}: {output.err}"
    return output.out


def make_tiny(config: Path) -> None:
    """The config of the tutorial with the tiny art encoder's shape, short answers and one epoch."""
    text = config.read_text(encoding="utf-8")
    for true, tiny in {
        "architecture: efficientnet_b3": "architecture: test_efficientnet",
        "image_size: 300": "image_size: 32",
        "num_epochs: 10": "num_epochs: 1",
    }.items():
        assert true in text
        text = text.replace(true, tiny)
    config.write_text(f"{text}evaluation: {{max_new_tokens: 5, bootstrap_samples: 50}}\n", encoding="utf-8")
