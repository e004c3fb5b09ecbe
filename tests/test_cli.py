"""The command line on a run of the tiny world: exit codes, messages, results, and the use from Python."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import artkv.cli as cli
from artkv import KVPrefixGenerator, load_config, load_model
from artkv.api import evaluate
from artkv.config import override_config
from artkv.distributed import World
from artkv.evaluation.answering import Ablation
from artkv.frozen.host_blocks import HostBlocks
from artkv.run_folder.checkpoint import read_config, resolve_checkpoint
from artkv.training.run import train


@pytest.fixture(scope="module")
def trained_run(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory, one_process: World) -> Path:
    output = tmp_path_factory.mktemp("cli") / "run"
    config = load_config(tiny_world / "config.yaml", [f"run.output_dir={output}", "training.num_epochs=1"])
    train(config, None, one_process)
    return output


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, one_process: World) -> None:
    """Lets the verbs use the session's process group, as DeepSpeed allows only one."""
    from contextlib import nullcontext

    monkeypatch.setattr("artkv.distributed.process_group", lambda minutes: nullcontext(one_process))


def test_evaluate_writes_and_prints_every_ablation(
    trained_run: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    assert cli.main(["evaluate", "--checkpoint", str(trained_run), "--all-ablations"]) == 0
    header = capsys.readouterr().out.splitlines()[0].split()
    assert header[2:] == ["on", "off", "shuffled", "on-blank"]
    answers = {}
    for name in ("on", "off", "shuffled", "on-blank"):
        folder = trained_run / "eval" / f"val-{name}"
        with (folder / "predictions.csv").open() as file:
            rows = list(csv.DictReader(file))
        with (tiny_world / "val.csv").open() as file:
            expected = list(csv.DictReader(file))
        assert [row["question_id"] for row in rows] == [row["question_id"] for row in expected]
        assert [row["answer"] for row in rows] == [row["answer"] for row in expected]
        answers[name] = [row["prediction"] for row in rows]
        metrics = json.loads((folder / "metrics.json").read_text())
        right = [row["prediction"].lower() == row["answer"].lower() for row in rows]
        assert metrics["overall"]["exact_match"]["value"] == pytest.approx(sum(right) / len(right))
        assert metrics["prefix"] == name.split("-")[0]
    # One question about a blank picture has one answer, whatever the painting.
    by_question: dict[str, set[str]] = {}
    for row, answer in zip(expected, answers["on-blank"], strict=True):
        by_question.setdefault(row["question"], set()).add(answer)
    assert all(len(given) == 1 for given in by_question.values())


def test_evaluating_ranks_share_one_copy_of_what_streams(
    trained_run: Path, one_process: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masters are made with the ranks' own gather, as in training, and not by each rank for itself."""
    gathers: list[object] = []
    true_build = HostBlocks.build

    def build(blocks: Any, storage: Any, gather: Any) -> HostBlocks:
        gathers.append(gather)
        return true_build(blocks, storage, gather)

    monkeypatch.setattr(HostBlocks, "build", build)
    config = override_config(read_config(resolve_checkpoint(trained_run)), ["frozen.opt=stream", "frozen.vit=stream"])
    evaluate(config, trained_run, "val", [Ablation("on", "on")], one_process)
    assert gathers == [one_process.gather, one_process.gather]


def test_ask_gives_the_evaluations_answer(
    trained_run: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    assert cli.main(["evaluate", "--checkpoint", str(trained_run)]) == 0
    with (trained_run / "eval" / "val-on" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    capsys.readouterr()
    for row in rows[:3]:
        assert cli.main(["ask", "--checkpoint", str(trained_run / "best"), row["image"], row["question"]]) == 0
        assert capsys.readouterr().out.strip() == row["prediction"]


def test_use_from_python(trained_run: Path, tiny_world: Path) -> None:
    config = override_config(load_config(tiny_world / "config.yaml"), ["training.num_epochs=1"])
    model = load_model(config, checkpoint=trained_run / "checkpoints" / "latest")
    picture = tiny_world / "images" / "val0.png"
    questions = ["What is thing 0?", "What is thing 1?"]
    assert model.ask(picture, questions) == [model.ask(Image.open(picture), question) for question in questions]
    assert all(parameter.requires_grad for parameter in model.model.parameters())
    untrained = load_model(config)
    before, after = untrained.model.named_trainables(), model.model.named_trainables()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert KVPrefixGenerator.__module__.startswith("artkv.")


def test_wrong_input_is_one_message_and_exit_code_1(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(tiny_world / "config.yaml")
    for arguments, message in [
        (["train", "--config", "nowhere.yaml"], "config nowhere.yaml: cannot be read"),
        (["train", "--config", config, "--set", "training.batch_sise=3"], "did you mean 'batch_size'?"),
        (["evaluate", "--checkpoint", str(tmp_path)], "no checkpoint there"),
        (["ask", "--checkpoint", str(tmp_path), "x.png", "What?"], "no checkpoint there"),
    ]:
        assert cli.main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_check_lists_everything_and_train_starts_with_nothing_of_it(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    config = str(tiny_world / "config.yaml")
    assert cli.main(["check", "--config", config]) == 0
    assert "no problems found" in capsys.readouterr().out
    bad = tmp_path / "bad.csv"
    bad.write_text("image,question,answer\ntrain0.png,What?,\nnowhere.png,What?,oil\n")
    wrong = ["--config", config, "--set", f"dataset.val={bad}", "--set", f"run.output_dir={tmp_path / 'run'}"]
    extra = [
        "--set",
        "model.blip2=./nowhere",
        "--set",
        f"efficientnet.checkpoint={bad}",
        "--set",
        "training.deepspeed=x",
    ]
    assert cli.main(["check", *wrong, *extra]) == 1
    message = capsys.readouterr().err
    for part in (
        "bad.csv:2: empty answer",
        "bad.csv:3: ",
        "model.blip2",
        "training.deepspeed = 'x'",
        "5 problems found",
    ):
        assert part in message, part
    assert cli.main(["train", *wrong]) == 1
    assert not (tmp_path / "run").exists()


def test_cache_is_filled_verified_and_checked(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    folder = tmp_path / "features"
    given = ["--config", str(tiny_world / "config.yaml"), "--set", f"frozen.feature_cache={folder}"]
    assert cli.main(["cache", *given, "--split", "val"]) == 0
    printed = capsys.readouterr()
    # The ViT's 5 tokens of 32 values and the EfficientNet's features, in fp32.
    assert f"{folder} holds features of 6 pictures, the blank one included, 0.002 MB each" in printed.out
    assert "encoded 6 pictures in " in printed.err
    assert cli.main(["cache", *given]) == 0
    assert "encoded 12 pictures in " in capsys.readouterr().err
    assert cli.main(["cache", *given, "--verify"]) == 0
    assert "18 records are what was written" in capsys.readouterr().out
    assert cli.main(["check", *given]) == 0
    assert cli.main(["check", *given, "--set", "efficientnet.mean=[0.4, 0.4, 0.4]"]) == 1
    assert "was made with another efficientnet.image_size, mean or std" in capsys.readouterr().err
    assert cli.main(["cache", "--config", str(tiny_world / "config.yaml")]) == 1
    assert "frozen.feature_cache is not set" in capsys.readouterr().err
    assert cli.main(["cache", *given, "--split", "test"]) == 1
    assert "dataset.test is not set" in capsys.readouterr().err


# (what the message holds, a row); the first row is right. Line numbers follow from the order.
DAMAGED_ROWS = [
    (None, "good.png,What?,oil,1"),
    ("picture 'nowhere.png' is missing", "nowhere.png,What?,oil,2"),
    ("picture 'twice.png' is ambiguous", "twice.png,What?,oil,3"),
    ("cut.png: damaged", "cut.png,What?,oil,4"),
    ("page.png: not a picture", "page.png,What?,oil,5"),
    ("empty.png: an empty file", "empty.png,What?,oil,6"),
    ("empty question", "good.png,,oil,7"),
    ("empty answer", "good.png,What?,,8"),
    ("empty image", ",What?,oil,9"),
    ("question_id '1' was used in line 2", "good.png,What?,oil,1"),
    ("5 fields, the header 4", "good.png,Who, and when?,oil,10"),
    ("follows a closing double quote", 'good.png,"What"?,oil,11'),
    ("byte 0xE9", "good.png,Which caf\udce9?,oil,12"),
]


def test_check_names_twelve_kinds_of_damage_by_their_lines_and_train_stops_before_any_step(
    tiny_world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    in_process: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = tmp_path / "images"
    for name in ("good.png", "one/twice.png", "other/twice.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_world / "images" / "train0.png", images / name)
    (images / "cut.png").write_bytes((images / "good.png").read_bytes()[:1500])
    (images / "page.png").write_text("<html></html>")
    (images / "empty.png").touch()
    damaged = tmp_path / "damaged.csv"
    lines = ["image,question,answer,question_id", *(row for _, row in DAMAGED_ROWS)]
    damaged.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    expected = {line: part for line, (part, _) in enumerate(DAMAGED_ROWS, start=2) if part is not None}
    assert len(expected) == 12
    settings = {
        "dataset.train": damaged,
        "dataset.image_root": images,
        "evaluation.each_epoch": "false",
        "dataset.val": "null",
        "run.output_dir": tmp_path / "run",
    }
    arguments = ["--config", str(tiny_world / "config.yaml")]
    arguments += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    monkeypatch.setattr("artkv.training.loop.train_step", lambda *_: pytest.fail("a step was made"))
    for verb in ("check", "train"):
        assert cli.main([verb, *arguments]) == 1
        error = capsys.readouterr().err
        for line, part in expected.items():
            (message,) = [text for text in error.splitlines() if f"{damaged}:{line}: " in text]
            assert part in message
            assert "; " in message.split(part)[1], "no remedy"
        assert error.count(f"{damaged}:") == len(expected)
        assert ("artkv: 12 problems found" in error) == (verb == "check")
        assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_usage_help_and_the_launchers_argument() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "artkv", *arguments], capture_output=True, text=True, timeout=60, check=False
        )

    assert run("trian").returncode == 2
    assert run().returncode == 2
    assert "SECTION.KEY=VALUE" in run("--local_rank=1", "train", "--help").stdout
    quick = "import sys, artkv.cli; artkv.cli._parser().format_help(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", quick], check=True, timeout=60)
    assert "--image-size" in run("art-encoder", "--help").stdout
