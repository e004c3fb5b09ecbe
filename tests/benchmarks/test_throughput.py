"""The throughput, profile and scaling scripts at toy size, their formulas, and the turns that they take."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from artkv.distributed import ToHost
from tests.benchmarks.conftest import run_script

ROOT = Path(__file__).parents[2]
TINY = ("--tiny", "--dtype", "float32")


def test_throughput_of_the_main_rows(tmp_path: Path) -> None:
    """The losses of artkv with savings off and of its peers agree; ratios are those of the figures."""
    path = tmp_path / "throughput.json"
    wanted = ["logits off", "all three off", "last logits"]
    if importlib.util.find_spec("iopath"):  # LAVIS's Blip2OPT imports it: pip install 'artkv[benchmarks]'
        wanted.append("LAVIS")
    done = run_script("throughput.py", *TINY, "--threads", "1", "--json", str(path), "--rows", *wanted, timeout=400)
    report = json.loads(path.read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert rows.keys() - {"LAVIS Blip2OPT, plain loop"} == {
        "artkv, answer-only logits off",
        "artkv, all three off",
        "transformers Trainer",
        "transformers Trainer, last logits only",
    }
    assert report["losses_agree"] is True
    assert report["worst_loss_difference"] < 1e-5  # 4e-7 seen
    trainer = rows["transformers Trainer"]
    for row in rows.values():
        assert row["rounds"] == len(row["seconds"]) == 2
        assert row["times_reference"] == row["questions_per_second"] / trainer["questions_per_second"]
        assert row["allowed"] == trainer["flops"] / row["flops"]
        assert row["of_allowed"] == pytest.approx(row["times_reference"] / row["allowed"])
        assert row["peak_bytes"] >= row["start_bytes"] > 0
        assert f"| {row['name']} |" in done.stdout
    assert rows["transformers Trainer, last logits only"]["formula_flops"] < trainer["formula_flops"]


def test_profile_of_a_step(tmp_path: Path) -> None:
    """artkv asks for no wait, in a step that is logged either; a trace can be read; spans add up to the step."""
    trace, path = tmp_path / "trace.json", tmp_path / "profile.json"
    run_script("profile_step.py", *TINY, "--trace", str(trace), "--json", str(path), timeout=200)
    report = json.loads(path.read_text())
    assert sum(report["span_seconds"].values()) == pytest.approx(report["step_seconds"])
    assert "logging" in report["span_seconds"]
    libraries = {library for name in ("waits_between", "waits_at_logging") for _, library, _, _ in report[name]}
    assert libraries <= {"deepspeed", "torch"}
    assert "deepspeed" in libraries  # so the counter is not blind
    assert report["bucket_elements"] == report["trainable_elements"]
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"forward", "backward", "waiting for data", "DeepSpeed's optimizer step"} <= names


def test_waits_are_those_of_who_asked(module: Any) -> None:
    """What artkv asks for is told, but for the number that was copied before."""
    waits = module("profile_step").HostWaits()
    number = torch.tensor(3.0)
    with waits:
        exec("float(number)", {"__name__": "artkv.somewhere", "number": number})
        assert ToHost(number).read() == [3.0]
    assert waits.take() == {("aten::_local_scalar_dense", "artkv", "artkv.somewhere:1"): 1}


def test_scaling_of_two_ranks(tmp_path: Path) -> None:
    """What two ranks send is counted: each gradient once and each weight once, in bytes of the trainables."""
    path = tmp_path / "scaling.json"
    run_script("scaling.py", *TINY, "--json", str(path), timeout=400)
    report = json.loads(path.read_text())
    reduced = sum(size for name, (_, size) in report["collectives"].items() if "gather" not in name)
    gathered = sum(size for name, (_, size) in report["collectives"].items() if "gather" in name)
    # Beside gradients: the count of answer tokens, the norm, the overflow flag; rounding up to whole partitions.
    assert report["trainable_bytes"] <= reduced <= report["trainable_bytes"] + 1024
    assert report["trainable_bytes"] <= gathered <= report["trainable_bytes"] + 1024
    assert report["weak_scaling"] == report["one"] / report["two"]
    assert len(report["model"]) == 3 * 8
    assert all(0 < row["efficiency"] < 1 for row in report["model"])


def test_formulas_count_what_is_counted(module: Any) -> None:
    """Stock BLIP-2's forward and backward at a size of its own, by formula and by torch's counter: equal to 1%."""
    world, flops = module("random_world"), module("flop_count")
    peers = module("peer_rows")
    size = world.Size(64, 160, 3, 4, 56, 48, 4, 4, 80, 3, 4, 300, 6, "test_efficientnet", 32, 1e6, 256)
    model = world.Blip2ForConditionalGeneration(world.blip2_config(size)).requires_grad_(False)
    for layer in model.qformer.encoder.layer:
        if layer.has_cross_attention:
            layer.crossattention.requires_grad_(True)
    tokens, rows = 9, 4
    examples = [
        {"input_ids": [4] * 6 + [7] * tokens, "labels": [-100] * 12 + [7] * 3, "pixel_values": torch.randn(3, 56, 56)}
        for _ in range(rows)
    ]
    lengths = world.Lengths(tokens, tokens, tokens - 1, 3)
    found = {}
    for way, collate in (
        ("stock BLIP-2", peers.padded_on_the_right),
        ("stock BLIP-2, last logits only", peers.padded_on_the_left),
    ):
        batch = collate([dict(example) for example in examples])
        with flops.StepFlops() as counter:
            model(**batch).loss.backward()
        formula = sum(flops.flops_per_question(size, flops.ways(lengths, size)[way]).values())
        found[way] = counter.result() / rows
        assert found[way] == pytest.approx(formula, rel=0.01), way
    difference = (tokens + 6 - 4) * 2 * 2 * 80 * 300
    assert found["stock BLIP-2"] - found["stock BLIP-2, last logits only"] == difference


def test_attention_on_the_cpu_is_counted(module: Any) -> None:
    query = torch.randn(2, 3, 5, 8, requires_grad=True)
    with module("flop_count").StepFlops() as counter:
        scaled_dot_product_attention(query, query, query).sum().backward()
    assert counter.result() == 7 * 2 * 2 * 3 * 5 * 5 * 8  # two products forward, five backward


def test_left_padding_keeps_the_loss(module: Any) -> None:
    """The expert's collator trains on the same: loss equal to that of the plain one, with fewer logits."""
    world, peers = module("random_world"), module("peer_rows")
    torch.manual_seed(0)
    model = world.Blip2ForConditionalGeneration(world.blip2_config(world.SIZES["tiny"])).eval()
    pixels = torch.randn(2, 3, 56, 56)
    examples = [
        {"input_ids": [4] * 6 + [2, 9, 11, 13, 17], "labels": [-100] * 9 + [13, 17], "pixel_values": pixels[0]},
        {"input_ids": [4] * 6 + [2, 9, 14], "labels": [-100] * 8 + [14], "pixel_values": pixels[1]},
    ]
    right, left = peers.padded_on_the_right(examples), peers.padded_on_the_left(examples)
    assert left["logits_to_keep"] == 3
    expected, found = peers.stock_loss(model, right), peers.stock_loss(model, left)
    assert found == pytest.approx(expected, rel=1e-6)  # fp32; 0 seen
    assert model(**left).logits.shape[1] == 3


def test_true_size_has_the_true_numbers(module: Any) -> None:
    """By formula, against the counts of parameters on the meta device and the ratios that were worked out by hand."""
    world, flops, scaling = module("random_world"), module("flop_count"), module("scaling")
    size = world.SIZES["true"]
    shares = world.proportions(size)
    assert shares["opt_to_vit"] == pytest.approx(2.68, abs=0.01)
    mid = world.proportions(world.SIZES["mid"])
    assert mid["opt_to_vit"] == pytest.approx(shares["opt_to_vit"], rel=0.02)
    assert mid["vocabulary_of_opt"] == pytest.approx(shares["vocabulary_of_opt"], rel=0.02)
    stock = flops.flops_per_question(size, flops.ways(world.Lengths(20, 20, 19, 6), size)["stock BLIP-2"])
    # Twice the parameters a token, without embeddings; attention adds 3%.
    assert stock["vit"] == pytest.approx(2 * 257 * shares["vit"], rel=0.04)
    assert stock["opt"] == pytest.approx(4 * 52 * shares["opt_blocks"], rel=0.01)
    with torch.device("meta"):
        model = world.Blip2ForConditionalGeneration(world.blip2_config(size))
    crossed = [layer.crossattention for layer in model.qformer.encoder.layer if layer.has_cross_attention]
    attention = sum(p.numel() for block in crossed for p in block.parameters())
    from artkv import KVPrefixGenerator

    generator = sum(p.numel() for p in KVPrefixGenerator().parameters())
    assert scaling.trainable_elements(size) == attention + generator


def test_shared_beginnings_are_counted_once(module: Any, tiny_tokenizer: Any) -> None:
    world = module("random_world")
    rows = [{"question": "Which style is this?", "answer": "baroque"}] * 6
    same = world.lengths_of(rows, tiny_tokenizer, 6)
    assert same.own_tokens == pytest.approx((same.mean_tokens - 1) / 6)
    other = [{"question": text, "answer": "a"} for text in ("W", "x", "t", "o", "S", "p")]
    apart = world.lengths_of(other, tiny_tokenizer, 6)
    assert (same.mean_tokens - 1) / 6 < apart.own_tokens < apart.mean_tokens - 1
    assert apart.padded_tokens >= apart.mean_tokens


class _Pipe:
    """A connection whose commands are known beforehand."""

    def __init__(self, *commands: Any) -> None:
        self.commands, self.sent = list(commands), []

    def recv(self) -> Any:
        return self.commands.pop(0)

    def send(self, value: Any) -> None:
        self.sent.append(value)


def test_a_turn_times_its_own_steps_only(module: Any) -> None:
    """Untimed steps, then timed ones, then a stand: questions of the timed ones alone, and no step beside them."""
    turns = module("turns")
    pipe = _Pipe(("run", (2, 3)), ("twice", (21,)), ("run", (1, 1)), ("end", ()))
    stand = turns.Stand(pipe, {"twice": lambda value: 2 * value})
    begun: list[int] = []

    def loop() -> None:
        while True:
            stand.boundary(10 ** len(begun))
            begun.append(1)

    with pytest.raises(turns.EndOfTurns):
        loop()
    kinds = [kind for kind, _ in pipe.sent]
    assert kinds == ["ready", "done", "done", "done"]
    assert pipe.sent[1][1][1] == 10**2 + 10**3 + 10**4
    assert pipe.sent[2][1] == 42
    assert pipe.sent[3][1][1] == 10**6
    assert len(begun) == 7


def test_a_contestant_that_dies_says_why(module: Any, tmp_path: Path) -> None:
    turns = module("turns")
    contestant = turns.Contestant("nobody", "no_such_module:run", (), tmp_path / "log", {})
    with pytest.raises(RuntimeError, match="nobody: failed: ModuleNotFoundError"):
        contestant.wait_until_ready()
    contestant.close()


_ASKS_FOR_THREADS = """
import sys
from pathlib import Path
import torch
import turns

def run(stand):
    stand.actions["threads"] = torch.get_num_threads
    stand.boundary(0)

if __name__ == "__main__":
    contestant = turns.Contestant("one", "script:run", (), Path(sys.argv[1]), {"OMP_NUM_THREADS": "1"})
    contestant.wait_until_ready()
    print(contestant.ask("threads"))
    contestant.close()
"""


def test_a_contestant_has_its_own_threads(tmp_path: Path) -> None:
    """In a script that imports torch itself, as the real ones do, and so before the contestant's own function runs."""
    (tmp_path / "script.py").write_text(_ASKS_FOR_THREADS)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'benchmarks'}:{tmp_path}", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "log")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["1"], done.stderr[-3000:]


def test_spans_leave_out_those_inside(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = module("profile_step")
    now = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0])
    monkeypatch.setattr(profile.time, "perf_counter", lambda: next(now))
    spans = profile.Spans(torch.device("cpu"))
    with spans("outer"), spans("inner"):
        pass
    spans.stop()
    assert spans.seconds == {"python between": 1.0 + 16.0, "outer": 2.0 + 8.0, "inner": 4.0}
