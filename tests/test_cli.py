"""The command line on a run of the tiny world: exit codes, messages, results, and the use from Python."""

import csv
import importlib.util
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import artkv
import artkv.cli as cli
from artkv import KVPrefixGenerator, load_config, load_model
from artkv.api import evaluate
from artkv.arguments import VERBS, make_parser
from artkv.config import override_config
from artkv.distributed import World
from artkv.evaluation import scores
from artkv.evaluation.answering import Ablation
from artkv.evaluation.comparison import Comparison
from artkv.frozen.host_blocks import HostBlocks
from artkv.run_folder.checkpoint import open_checkpoint
from artkv.training.run import train
from artkv.verb_options import METRICS


@pytest.fixture(scope="module")
def trained_run(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory, one_process: World) -> Path:
    output = tmp_path_factory.mktemp("cli") / "run"
    config = load_config(tiny_world / "config.yaml", [f"run.output_dir={output}", "training.num_epochs=1"])
    train(config, None, one_process)
    return output


@pytest.fixture(scope="module")
def control_run(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory, one_process: World) -> Path:
    output = tmp_path_factory.mktemp("cli") / "control"
    overrides = [f"run.output_dir={output}", "training.num_epochs=1", "kv_modulation.enabled=false"]
    train(load_config(tiny_world / "config.yaml", overrides), None, one_process)
    return output


def test_evaluate_writes_and_prints_every_ablation(
    trained_run: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    assert cli.main(["evaluate", "--checkpoint", str(trained_run), "--all-ablations"]) == 0
    printed = capsys.readouterr()
    header = printed.out.splitlines()[0].split()
    assert header[2:] == ["on", "off", "shuffled", "on-blank"]
    has_extras = all(importlib.util.find_spec(library) is not None for library in ("nltk", "rouge_score"))
    assert ("\n\nall questions  " in printed.out) == has_extras
    assert printed.err.count("METEOR is left out") <= has_extras
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
        settings = load_config(trained_run / "config.yaml")
        assert [metrics[key] for key in ("dtype", "quantised", "max_new_tokens", "prompt", "artkv")] == [
            "float32", [], settings.evaluation.max_new_tokens, settings.dataset.prompt, artkv.__version__,
        ]  # fmt: skip
        assert [one in metrics["overall"] for one in ("gleu", "rouge_l")] == [has_extras] * 2
    # One question about a blank picture has one answer, whatever the painting.
    by_question: dict[str, set[str]] = {}
    for row, answer in zip(expected, answers["on-blank"], strict=True):
        by_question.setdefault(row["question"], set()).add(answer)
    assert all(len(given) == 1 for given in by_question.values())


def test_evaluate_with_choices_writes_what_was_chosen_and_compare_takes_it(
    trained_run: Path, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    given = ["evaluate", "--checkpoint", str(trained_run), "--all-ablations", "--choices"]
    assert cli.main(given) == 0
    printed = capsys.readouterr()
    assert "artkv: choices: thing (3)\n" in printed.err
    tables = [block.splitlines()[0].split() for block in printed.out.split("\n\n")]
    assert tables[1] == ["accuracy", "questions", "on", "off", "shuffled", "on-blank"]
    assert " ".join(tables[2]) == "choices accuracy exact match mean probability calibration error"
    folder = trained_run / "eval" / "val-off"
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = [row["choice"].lower() == row["answer"].lower() for row in rows]
    confident = [float(row["choice_probability"]) for row in rows]
    assert all(row["choice"] in ("oil", "canvas", "Jan van Eyck") for row in rows)
    assert min(confident) > 1 / 3
    assert [row["gold_probability"] == row["choice_probability"] for row in rows] == right
    choices = json.loads((folder / "metrics.json").read_text())["choices"]
    assert choices["overall"]["accuracy"]["value"] == pytest.approx(sum(right) / len(right))
    assert sum(one["count"] for one in choices["overall"]["bins"]) == len(rows)
    assert choices["candidates"] == {"thing": ["canvas", "Jan van Eyck", "oil"]}
    assert cli.main(["compare", str(trained_run), "--metric", "accuracy"]) == 0
    assert capsys.readouterr().out.startswith("accuracy on val, prefix on")
    file_of_candidates = tmp_path / "candidates.csv"
    file_of_candidates.write_text("answer,question_type\noil,style\n")
    assert cli.main([*given, str(file_of_candidates)]) == 1
    assert "candidates.csv: has candidates for none of the types of" in capsys.readouterr().err


def test_evaluate_with_a_control_ends_with_the_comparison_that_compare_makes_again(
    trained_run: Path, control_run: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    given = ["evaluate", "--checkpoint", str(trained_run / "best"), "--all-ablations"]
    assert cli.main([*given, "--control", str(control_run)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split()[2:] == ["on", "off", "shuffled", "on-blank", "control"]
    path = trained_run / "eval" / "val-on" / "comparison.json"
    written = path.read_text(encoding="utf-8")
    comparison = Comparison.from_json(json.loads(written))
    assert list(comparison.against) == ["off", "shuffled", "blank", "control"]
    assert f"  {control_run}: a control, of seed 1337" in printed
    assert "\nthing: " in printed
    assert f"comparison.json: {path}\n" in printed

    # Values against the predictions of the two runs themselves.
    right = {}
    for run in (trained_run, control_run):
        with (run / "eval" / "val-on" / "predictions.csv").open() as file:
            right[run] = [row["prediction"].lower() == row["answer"].lower() for row in csv.DictReader(file)]
    overall = comparison.against["control"].overall
    assert overall.difference.value == pytest.approx((sum(right[trained_run]) - sum(right[control_run])) / 11)
    assert overall.wins == sum(a and not b for a, b in zip(right[trained_run], right[control_run], strict=True))
    assert (overall.questions, overall.paintings) == (11, 5)
    majority = comparison.answers["thing"].majority
    with (tiny_world / "train.csv").open() as file:
        answers = [row["answer"].lower() for row in csv.DictReader(file)]
    assert majority.source == "train"
    assert answers.count(majority.answer) == max(answers.count(answer) for answer in answers)

    assert cli.main(["compare", str(trained_run), str(control_run)]) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[0] in printed
    blocks = printed.split("\n\n")
    begin = next(place for place, block in enumerate(blocks) if block.startswith("against "))
    assert again.split("\n\n")[1:] == [*blocks[begin:-1], f"comparison.json: {path}\n"]
    assert path.read_text(encoding="utf-8") == written
    assert cli.main(["compare", str(trained_run), "--metric", "token_f1", "--split", "val"]) == 0
    assert json.loads(path.read_text(encoding="utf-8"))["metric"] == "token_f1"

    # Without a control the ablations are compared all the same, and what is replaced is compared no more.
    assert cli.main(given) == 0
    assert list(json.loads(path.read_text(encoding="utf-8"))["against"]) == ["off", "shuffled", "blank"]
    assert cli.main(["evaluate", "--checkpoint", str(trained_run / "best"), "--prefix", "off"]) == 0
    assert not path.exists()


def test_each_of_two_encoders_is_masked_and_left_out(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_process: None, one_process: World
) -> None:
    weights = f"architecture: test_efficientnet, checkpoint: {tiny_world}/efficientnet.safetensors, image_size: 32"
    a, b = (f"{{name: {name}, {weights}, view: {view}}}" for name, view in (("a", "centre"), ("b", "whole")))
    folders = {}
    for name, encoders, more in (
        ("both", f"[{a}, {b}]", []),
        ("no_a", f"[{b}]", []),
        ("no_b", f"[{a}]", ["training.seed=7"]),
    ):
        folders[name] = tmp_path / name
        overrides = [f"run.output_dir={folders[name]}", "training.num_epochs=1", "efficientnet=null"]
        train(
            load_config(tiny_world / "config.yaml", [*overrides, f"art_encoders={encoders}", *more]), None, one_process
        )
    given = ["evaluate", "--checkpoint", str(folders["both"])]
    controls = [word for name in ("no_a", "no_b") for word in ("--control", str(folders[name]))]
    capsys.readouterr()
    assert cli.main([*given, "--all-ablations", *controls]) == 0
    printed = capsys.readouterr().out
    ways = ["on", "off", "shuffled", "a-off", "a-shuffled", "b-off", "b-shuffled", "on-blank"]
    assert printed.splitlines()[0].split()[2:] == [*ways, "without", "a", "without", "b"]
    assert "encoder a: " in printed
    assert sorted(path.name for path in (folders["both"] / "eval").iterdir()) == sorted(f"val-{way}" for way in ways)
    metrics = json.loads((folders["both"] / "eval" / "val-a-off" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["prefix"], metrics["image"], metrics["encoder"]) == ("off", "on", "a")
    assert "encoder" not in json.loads(
        (folders["both"] / "eval" / "val-on" / "metrics.json").read_text(encoding="utf-8")
    )
    path = folders["both"] / "eval" / "val-on" / "comparison.json"
    compared = json.loads(path.read_text(encoding="utf-8"))
    masks = ["a off", "a shuffled", "b off", "b shuffled"]
    assert list(compared["against"]) == ["off", "shuffled", "blank", *masks, "without a", "without b"]
    assert compared["encoders"] == ["a", "b"]
    before = (folders["both"] / "eval" / "val-b-shuffled" / "predictions.csv").read_bytes()
    assert cli.main([*given, "--prefix", "shuffled:b"]) == 0
    assert (folders["both"] / "eval" / "val-b-shuffled" / "predictions.csv").read_bytes() == before
    for options, message in (
        (["--prefix", "off:c"], "--prefix off:c: the encoders of "),
        (["--all-ablations", *controls[:2], *controls[:2]], "has the settings and the seed of"),
        (["--all-ablations", "--control", str(folders["both"])], "with some of its encoders (a, b) left out"),
    ):
        assert cli.main([*given, *options]) == 1
        assert message in capsys.readouterr().err


def test_a_control_that_is_judged_or_is_none_is_told(
    trained_run: Path, control_run: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    assert cli.main(["evaluate", "--checkpoint", str(control_run), "--all-ablations"]) == 0
    assert "thing: there is no prefix to judge, since this run was trained without one" in capsys.readouterr().out
    for checkpoint, control, more, message in [
        (trained_run, trained_run, ["--all-ablations"], f"--control {trained_run}: was trained with a prefix; give"),
        (control_run, control_run, ["--all-ablations"], f"--checkpoint {control_run}: was trained without a prefix; "),
        (trained_run, control_run, [], "--control: is compared with all ablations; add --all-ablations"),
    ]:
        given = ["evaluate", "--checkpoint", str(checkpoint), "--control", str(control), *more]
        assert cli.main(given) == 1
        assert message in capsys.readouterr().err
    assert cli.main(["compare", str(control_run), str(trained_run)]) == 1
    assert "was trained without a prefix" in capsys.readouterr().err


def test_predictions_name_paintings_and_whose_prefix_they_got(
    trained_run: Path, tiny_world: Path, in_process: None
) -> None:
    assert cli.main(["evaluate", "--checkpoint", str(trained_run), "--all-ablations"]) == 0
    rows = {}
    for name in ("on", "shuffled"):
        with (trained_run / "eval" / f"val-{name}" / "predictions.csv").open() as file:
            rows[name] = list(csv.DictReader(file))
    for row, shuffled in zip(rows["on"], rows["shuffled"], strict=True):
        assert row["image"] == shuffled["image"]
        assert (tiny_world / "images" / row["image"]).is_file()
        assert row["prefix_of"] == ""
        assert shuffled["prefix_of"] not in ("", shuffled["image"])
    partner = {row["image"]: row["prefix_of"] for row in rows["shuffled"]}
    assert sorted(partner.values()) == sorted(partner)  # each gives its prefix to one other


def test_metrics_to_choose_from_are_those_of_the_scores() -> None:
    assert METRICS == scores.METRICS


def test_evaluating_ranks_share_one_copy_of_what_streams(
    trained_run: Path, one_process: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masters are made in the ranks' own world, as in training, and not by each rank for itself."""
    worlds: list[World] = []
    true_build = HostBlocks.build

    def build(blocks: Any, storage: Any, world: World) -> HostBlocks:
        worlds.append(world)
        return true_build(blocks, storage, world)

    monkeypatch.setattr(HostBlocks, "build", build)
    config = override_config(open_checkpoint(trained_run).config, ["frozen.opt=stream", "frozen.vit=stream"])
    evaluate(trained_run, "val", [Ablation("on", "on")], config, one_process)
    assert worlds == [one_process, one_process]


def test_ask_gives_the_evaluations_answer(
    trained_run: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    assert cli.main(["evaluate", "--checkpoint", str(trained_run)]) == 0
    with (trained_run / "eval" / "val-on" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    capsys.readouterr()
    for row in rows[:3]:
        picture = str(tiny_world / "images" / row["image"])
        assert cli.main(["ask", "--checkpoint", str(trained_run / "best"), picture, row["question"]]) == 0
        assert capsys.readouterr().out.strip() == row["prediction"]


def test_ask_tells_the_probability_and_draws_where_the_model_looks(
    trained_run: Path, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    picture, drawing = tiny_world / "images" / "val0.png", tmp_path / "new folder" / "looks.png"
    asked = ["ask", "--checkpoint", str(trained_run / "best"), str(picture), "What is thing 0?"]
    assert cli.main([*asked, "--attention", str(drawing)]) == 0
    told = capsys.readouterr()
    model = load_model(checkpoint=trained_run / "best")
    (answer,) = model.answers(picture, ["What is thing 0?"])
    assert told.out == f"{answer.text}\n"
    assert f"probability {answer.probability:.3f}, {answer.token_probability:.3f} a token" in told.err
    assert 0 < answer.probability <= answer.token_probability <= 1
    with Image.open(drawing) as drawn:
        assert (drawn.format, drawn.width) == ("PNG", 3 * 448)
    assert model.attention(picture).map_on.sum() == pytest.approx(1)
    with pytest.raises(SystemExit):
        cli.main([*asked, "--attention", str(tmp_path / "looks.jpg")])
    assert "looks.jpg: would hold a PNG; give it a name that ends in .png" in capsys.readouterr().err


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
    printed = capsys.readouterr().out
    assert "no problems found" in printed
    assert "note: " not in printed
    assert cli.main(["check", "--config", config, "--set", "evaluation.max_new_tokens=1"]) == 0
    printed = capsys.readouterr().out
    assert f"note: {tiny_world / 'train.csv'}:" in printed
    assert "no problems found" in printed
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
    assert "encoded 6 pictures with vit, test_efficientnet in " in printed.err
    assert cli.main(["cache", *given]) == 0
    assert "encoded 12 pictures with vit, test_efficientnet in " in capsys.readouterr().err
    assert cli.main(["cache", *given, "--verify"]) == 0
    assert "36 records are what was written" in capsys.readouterr().out
    assert cli.main(["check", *given]) == 0
    other = ["--set", "efficientnet.mean=[0.4, 0.4, 0.4]"]
    assert cli.main(["check", *given, *other]) == 0
    assert cli.main(["cache", *given, *other]) == 0
    assert "encoded 18 pictures with test_efficientnet in " in capsys.readouterr().err  # the ViT's features stay
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
    ("page.png: is a web page, and no picture", "page.png,What?,oil,5"),
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


def run_artkv(
    *arguments: str, environment: dict[str, str] | None = None
) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """A fresh process's result, and the packages that it imported."""
    command = [sys.executable, "-X", "importtime", "-m", "artkv", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    timed = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    assert timed
    result.stderr = "".join(f"{line}\n" for line in result.stderr.splitlines() if line not in timed)
    return result, {line.rsplit("|")[-1].strip().split(".")[0] for line in timed}


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_imports_nothing_that_takes_time(verb: str | None) -> None:
    result, packages = run_artkv(*([] if verb is None else [verb]), "--help")
    assert result.returncode == 0
    assert result.stderr == ""
    assert "artkv" in packages
    assert packages.isdisjoint({"torch", "numpy", "transformers"})
    # The art encoder's options are the fields of its settings.
    assert packages.isdisjoint({"pydantic", "yaml"}) or verb == "art-encoder"
    if verb is not None:
        for example in VERBS[verb].examples:
            assert f"  {example}\n" in result.stdout
        has_no_settings = verb in ("init", "push", "supervise", "status", "compare", "sweep", "launch", "art-encoder")
        assert ("--set SECTION.KEY=VALUE" in result.stdout) != has_no_settings
    assert verb != "art-encoder" or "--image-size" in result.stdout
    assert verb != "plan" or "--gpu-memory" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("trian --config x.yaml", 2, "did you mean 'train'?"),
        ("conquer", 2, "no verb 'conquer' among init, train, supervise, "),
        ("", 2, "VERB"),
        ("train --confg x.yaml", 2, "--config"),
        ("train --config x.yaml --steps 3", 2, "unrecognized arguments: --steps 3"),
        ("train --config x.yaml --limit 0", 2, "--limit: '0' is not a whole number from 1 to"),
        ("init nowhere", 1, "FOLDER nowhere: cannot be listed"),
        ("train --config nowhere.yaml", 1, "config nowhere.yaml: cannot be read"),
        ("cache --config nowhere.yaml", 1, "config nowhere.yaml: cannot be read"),
        ("check --config nowhere.yaml", 1, "config nowhere.yaml: cannot be read"),
        ("plan --config nowhere.yaml", 1, "config nowhere.yaml: cannot be read"),
        ("evaluate --checkpoint nowhere", 1, "nowhere: no checkpoint there"),
        ("compare nowhere", 1, "nowhere: no such folder"),
        ("ask --checkpoint nowhere x.png What?", 1, "nowhere: no checkpoint there"),
        ("serve --checkpoint nowhere", 1, "nowhere: no checkpoint there"),
        ("export --checkpoint nowhere --format adapter --output x", 1, "nowhere: no checkpoint there"),
        ("art-encoder --data x --epochs 0", 1, "--epochs 0: "),
        ("status nowhere", 1, "nowhere: is no folder"),
        ("quickstart --output-dir nowhere --set training.sed=3", 1, "did you mean 'seed'?"),
    ],
)
def test_what_is_mistyped_is_told_before_imports_that_take_time(arguments: str, code: int, message: str) -> None:
    result, packages = run_artkv(*arguments.split())
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert "torch" not in packages


def test_the_examples_are_commands() -> None:
    parser = make_parser(VERBS)
    for name, verb in VERBS.items():
        for example in verb.examples:
            words = shlex.split(example)
            assert parser.parse_args(words[words.index("artkv") + 1 :]).verb == name


def test_the_launchers_argument_before_the_verb_is_passed_over() -> None:
    result, _ = run_artkv("--local_rank=1", "train", "--help")
    assert result.returncode == 0
    assert "--resume WHERE" in result.stdout


def test_importing_artkv_and_its_config_takes_no_torch() -> None:
    program = (
        "import sys, artkv; artkv.load_config; assert 'torch' not in sys.modules; artkv.evaluate, artkv.load_model"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    for name in artkv.__all__:
        assert getattr(artkv, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'train_model'"):
        artkv.train_model  # noqa: B018


def test_bitsandbytes_does_not_ask_for_kernels_and_may_say_all_else() -> None:
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    asked = "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure you already `pip install"
    for message, is_shown in ((asked, False), ("Another matter: %s", True)):
        record = logger.makeRecord(logger.name, logging.WARNING, "ops.py", 1, message, ("why",), None)
        assert bool(logger.filter(record)) == is_shown
    bitsandbytes = importlib.util.find_spec("bitsandbytes")
    if bitsandbytes is not None and bitsandbytes.origin is not None:
        source = Path(bitsandbytes.origin).parent / "backends" / "cpu" / "ops.py"
        assert f'"{asked}' in source.read_text()


def test_train_tells_what_to_type_next_and_evaluate_where_its_files_are(
    trained_run: Path,
    tiny_world: Path,
    capsys: pytest.CaptureFixture[str],
    in_process: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ARTKV_CALLER_PATH", raising=False)
    monkeypatch.delenv("ARTKV_CALLER_FOLDER", raising=False)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    arguments = ["train", "--config", str(tiny_world / "config.yaml"), "--set", f"run.output_dir={trained_run}"]
    again = [*arguments, "--set", "training.num_epochs=1", "--resume", "auto"]  # nothing is left to train
    assert cli.main(again) == 0
    done, *hints = capsys.readouterr().out.splitlines()
    assert done.startswith("done after ")
    assert hints == [
        "next:",
        f"  artkv evaluate --checkpoint {trained_run}/best --split val --all-ablations",
        f"  artkv report {trained_run}",
        f"  artkv train --config {trained_run}/config.yaml --set kv_modulation.enabled=false --set "
        f"run.output_dir={trained_run}_control    # the control, to compare with",
        f"  tensorboard --logdir {trained_run}",
    ]
    control = load_config(trained_run / "config.yaml", shlex.split(hints[3], comments=True)[5::2])
    assert not control.kv_modulation.enabled
    assert control.run.output_dir == trained_run.with_name(f"{trained_run.name}_control")
    assert cli.main(shlex.split(hints[1])[1:]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        f"predictions.csv and metrics.json: in {trained_run}/eval, val-on, val-off, val-shuffled, val-on-blank"
    )
    monkeypatch.setenv("ARTKV_CALLER_PATH", "")  # started by a program
    assert cli.main(again) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_checkpoint_that_was_taken_is_told(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run, symlinks=True)
    newest = open_checkpoint(run).path
    older = newest.with_name("step_00000001")
    shutil.copytree(newest, older)
    (run / "best").unlink()
    (run / "best").symlink_to(Path("checkpoints") / older.name)
    monkeypatch.chdir(tmp_path)

    def told(checkpoint: Path, output: str) -> str:
        words = ["export", "--checkpoint", str(checkpoint), "--format", "adapter", "--output", f"{output}.safetensors"]
        assert cli.main(words) == 0
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert told(run, "a") == f"artkv: checkpoint run/checkpoints/{newest.name} (newest; run/best is step_00000001)"
    assert told(run / "best", "b") == "artkv: checkpoint run/checkpoints/step_00000001 (best)"
    (run / "best").unlink()
    assert told(run, "c") == f"artkv: checkpoint run/checkpoints/{newest.name} (newest)"


def test_what_is_printed_controls_no_terminal(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a\x1b[2J.safetensors"
    words = ["export", "--checkpoint", str(trained_run), "--format", "adapter", "--output", str(output)]
    assert cli.main(words) == 0
    assert output.is_file()
    assert capsys.readouterr().out == f"{tmp_path}/a\\x1b[2J.safetensors\n"
