"""Rows that run one after another: each is kept whatever becomes of it, and clocks tell things apart."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.benchmarks.conftest import run_script

ROOT = Path(__file__).parents[2]

_PROBE = """
import json, time

def works(path, number, seen=None):
    path.write_text(json.dumps({"number": number, "seen": seen}))

def breaks(path):
    path.write_text(json.dumps({"number": 1}))
    raise ZeroDivisionError("by zero")

def hangs(path):
    path.write_text(json.dumps({"number": 2}))
    time.sleep(600)

def refused(path):
    from artkv.config import Config
    Config.model_validate({"training": {"batch_size": "many"}})

def takes_too_much(path):
    raise RuntimeError("CUDA out of memory. Tried to allocate 3 GiB")
"""


def rows_of(path: Path) -> dict[str, Any]:
    return {row["row"]: row for row in map(json.loads, path.read_text().splitlines())}


def test_a_rows_trouble_is_its_own_and_all_are_kept_at_once(module: Any, tmp_path: Path) -> None:
    rows = module("rows")
    (tmp_path / "probe.py").write_text(_PROBE)
    path = tmp_path / "rows.jsonl"
    session = rows.Session(path, environment={"PYTHONPATH": f"{ROOT}:{tmp_path}"})
    session.run(rows.Row("broken", 60, "probe:breaks"))
    assert list(rows_of(path)) == ["broken"]  # and not only when all are through
    session.run_all(
        [
            rows.Row("hangs", 3, "probe:hangs"),
            rows.Row("refused", 60, "probe:refused", may_be_refused=True),
            rows.Row("refused and wanted", 60, "probe:refused"),
            rows.Row("too large", 60, "probe:takes_too_much"),
            rows.Row("no such command", 60, command=("/no/such/command",)),
            rows.Row("a command", 60, command=(sys.executable, "-c", "print('one'); raise SystemExit(3)")),
            rows.Row("has a variable", 60, command=("printenv", "ARTKV_TOLD"), environment={"ARTKV_TOLD": "yes"}),
            rows.Row("works", 60, "probe:works", {"number": 7}),
            rows.Row("reads", 60, "probe:works", {"number": 8}, needs={"seen": ("works", "number")}),
            rows.Row("reads nothing", 60, "probe:works", {"number": 9}, needs={"seen": ("too large", "number")}),
        ]
    )
    found = rows_of(path)
    assert found["broken"]["status"] == "failed: ZeroDivisionError: by zero"
    assert found["broken"]["number"] == 1
    assert "by zero" in found["broken"]["log"][-1]
    assert found["hangs"]["status"] == "its time was up after 3 s"
    assert found["hangs"]["number"] == 2
    assert found["refused"]["status"].startswith("skipped: refused: 1 validation error")
    assert found["refused and wanted"]["status"].startswith("failed: ValidationError")
    assert found["too large"]["status"] == "out of memory"
    assert "No such file" in found["no such command"]["status"]
    assert found["a command"]["status"] == "failed: exit status 3"
    assert found["a command"]["output"] == ["one"]
    assert found["has a variable"]["output"] == ["yes"]
    assert found["works"]["status"] == "measured"
    assert (found["reads"]["seen"], found["reads nothing"]["seen"]) == (7, None)


def test_rows_are_left_out_when_the_time_is_up(module: Any, tmp_path: Path) -> None:
    rows = module("rows")
    session = rows.Session(None, budget_seconds=0.0)
    assert session.run(rows.Row("late", 60, "probe:works"))["status"] == "left out: the time was up"


class _Time:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


def test_a_clock_tells_start_and_checkpoints_apart_from_steps(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks, turns = module("step_clock"), module("turns")
    time = _Time()
    monkeypatch.setattr(clocks, "time", time)
    monkeypatch.setenv(clocks.BEGAN, "88.0")
    clock = clocks.StepClock(tmp_path / "figures.json", 6, seconds=30.0, waits_for="checkpoint")
    clock.actions["losses"] = lambda: {"rows": [3, 4], "off": 1.5, "on": 1.25}
    loads = iter(range(0, 10**6, 300))  # of a stretch's beginning and end, in turn
    clock.actions["loads"] = lambda: next(loads)

    def loop() -> None:
        for step in range(1000):
            clock.boundary(6)
            time.now += 20.0 if step == 0 else 2.0
            if step == 29:
                with clock.aside("checkpoint"):
                    time.now += 50.0

    with pytest.raises(turns.EndOfTurns):
        loop()
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["start_seconds"] == 12.0
    assert found["first_step_seconds"] == 20.0
    assert found["step_seconds"] == found["slowest_step_seconds"] == 2.0
    assert found["questions_per_second"] == 3.0
    assert found["questions"] == 6 * found["steps"]
    assert found["asides"] == {"checkpoint": [50.0]}
    assert found["loads_per_step"] == 60
    assert (found["first_rows"], found["loss_off"], found["loss_on"]) == ([3, 4], 1.5, 1.25)
    assert found["is_complete"]


def test_a_profile_of_steps(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card_profile = module("card_profile")
    for name in ("_UNTIMED_STEPS", "_TIMED_STEPS", "_PROFILED_STEPS", "_WATCHED_STEPS"):
        monkeypatch.setattr(card_profile, name, 2)
    stand = card_profile.ProfileStand(tmp_path / "figures")
    for _ in range(7):
        stand.boundary(48)
        torch.ones(3, 3).mm(torch.ones(3, 3))
    with pytest.raises(module("turns").EndOfTurns):
        stand.boundary(48)
    found = json.loads((tmp_path / "figures").read_text())
    assert found["by_host"]["aten::mm"][1] == 1
    assert 0 < found["host_seconds"] < found["profiled_seconds"] + 1
    assert found["kernels"] == found["device_seconds"] == 0
    assert found["waits"] == {}
    (line,) = card_profile.profile_lines([{"row": "a row", **found}, {"row": "another"}])
    assert line.startswith("a row: ")


def test_losses_are_of_batches_on_the_models_device(module: Any) -> None:
    """The loop hands over what the loader made, which on a card is not there yet."""

    class Paintings:
        pass

    def at(device: str) -> Any:
        questions = SimpleNamespace(device=device)
        return SimpleNamespace(paintings=Paintings(), questions=questions, rows=(3, 4), to=at)

    def loss(visual: Any, questions: Any) -> Any:
        assert questions.device == "the card"
        return SimpleNamespace(loss_sum=6.0 if visual else 5.0, answer_tokens=2.0)

    model = SimpleNamespace(
        backbone=SimpleNamespace(device="the card"), answer_loss=loss,
        visual_tokens=lambda features, use_prefix: use_prefix,
    )  # fmt: skip
    found = module("artkv_row").losses(model, [at("the host"), at("the host")])
    assert found == {"rows": [3, 4, 3, 4], "off": 2.5, "on": 3.0}


def test_weights_follow_from_their_names(module: Any, tmp_path: Path) -> None:
    """Of artkv's files and of transformers' own model alike; LayerNorms are ones and biases zeros."""
    import torch

    world, weights = module("random_world"), module("device_weights")
    world.blip2_config(world.SIZES["tiny"]).save_pretrained(tmp_path)
    assert weights.has_no_weights(tmp_path)
    model = weights.random_stock_blip2(tmp_path, torch.float32, torch.device("cpu"))
    source = weights.DeviceWeights(model.config, torch.device("cpu"))
    values = dict(model.named_parameters())
    assert values.keys() == set(source.names())
    assert all(torch.equal(values[name], source.tensor(name).float()) for name in source.names())
    block = "language_model.model.decoder.layers.1."
    assert (values[f"{block}final_layer_norm.weight"] == 1).all()
    assert (values[f"{block}fc1.bias"] == 0).all()
    assert not torch.equal(values[f"{block}fc1.weight"], values[block.replace("1", "0") + "fc1.weight"])
    assert model.language_model.lm_head.weight is model.language_model.get_input_embeddings().weight


def test_varied_questions_are_the_same_again_and_one_to_forty_a_painting(module: Any, tmp_path: Path) -> None:
    world = module("random_world")
    world.write_varied_questions(tmp_path / "one.csv", 300, seed=5)
    world.write_varied_questions(tmp_path / "two.csv", 300, seed=5)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    rows = world.read_questions(tmp_path / "one.csv")
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["image"]] = counts.get(row["image"], 0) + 1
    assert len(counts) == 300
    assert min(counts.values()) == 1
    assert 20 < max(counts.values()) <= 40


def test_the_session_lists_the_most_wanted_rows_first(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    module("card_session").main(["--rows-file", "unused.jsonl", "--list"])
    names = [line.split(" s  ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert names[:4] == [
        "artkv, default config; 48",
        "transformers Trainer; 48",
        "artkv, default config; 192",
        "transformers Trainer; 192",
    ]
    assert "quickstart" in names


def test_trainings_one_after_another(tmp_path: Path) -> None:
    """On weights that no file holds: artkv and its peers begin with one loss; a checkpoint is no part of a step."""
    path = tmp_path / "rows.jsonl"
    arguments = ["--batches", "12", "--dtype", "float32", "--rows", "default", "Trainer", "DeepSpeed", "streamed"]
    done = run_script("throughput.py", "--size", "tiny", "--rows-file", str(path), *arguments, timeout=300)
    rows = rows_of(path)
    assert {row["status"] for row in rows.values()} == {"measured"}, done.stderr[-3000:]
    losses = [row["loss_off"] for row in rows.values()]
    assert len(losses) == 4
    assert max(losses) - min(losses) < 1e-5 * min(losses)  # fp32; 5e-8 seen
    first = [sorted(row["first_rows"]) for row in rows.values()]
    assert first == first[:1] * 4
    assert rows["artkv, default config; 12"]["asides"]["checkpoint"]
    assert "| transformers Trainer; 12 |" in done.stdout


@pytest.mark.parametrize(
    ("most", "memory", "wanted"),
    [
        (1920, 10_000, 449),
        (1920, 10_090, 454),
        (200, 10_000, 200),
        (40, 10_000, 40),
        (1920, 2_000, 50),
        (1920, 1_100, 1),
    ],
)
def test_a_peer_gets_as_many_rows_as_fit(module: Any, most: int, memory: int, wanted: int) -> None:
    """Of a peak of 1,000 and 20 a row, a little more above 100 rows: found within a twentieth."""
    tried = []

    def peak(rows: int) -> float:
        tried.append(rows)
        return 1000 + 20 * rows + (10 if rows > 100 else 0)

    rows = module("answering_rows").rows_by_peaks(peak, most, memory)
    assert 0.94 * wanted <= rows <= wanted or (rows == 16 and wanted == 50)
    assert len(tried) <= 4


def test_answers_in_a_session(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    done = run_script(
        "card_session.py", "--size", "tiny", "--rows-file", str(path), "--only", "artkv, streamed, answers", "generate",
        timeout=300,
    )  # fmt: skip
    rows = rows_of(path)
    assert next(iter(rows)) == "the machine"
    assert len(rows) == 4
    assert {row["status"] for row in rows.values()} == {"measured"}, done.stderr[-3000:]
    assert all(row["answers_per_second"] > 0 for name, row in rows.items() if "answers" in name)
