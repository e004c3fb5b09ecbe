"""The GPU script on a CPU: what can run there does, and one mode's trouble stays its own."""

import gc
import importlib
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
# With the very weights, so that the gradient is resident's bit for bit; all of artkv's bf16 modes are among them.
EXACT = {
    "resident",
    "resident, recomputed",
    "stream, 1 slot",
    "stream, 2 slots",
    "stream, 3 slots",
    "stream, 2 slots, all kept",
    "stream, auto in 0.00 GB",
    "accelerate cpu_offload",
    "ZeRO-3 offload_param",
}
ROUNDED = {"stream int8, 2 slots", "bitsandbytes int8", "bitsandbytes nf4"}
OF_OTHER_LIBRARIES = {"accelerate cpu_offload", "ZeRO-3 offload_param", "bitsandbytes int8", "bitsandbytes nf4"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("gpu_offload")
    gc.freeze()  # as the script's main does: it collects after each mode
    yield module
    gc.unfreeze()


@pytest.fixture
def modes(script: Any) -> Any:
    return importlib.import_module("gpu_offload_modes")


class Bench:
    """The script's own bench over a toy OPT and two sizes."""

    def __init__(self, script: Any, modes: Any, budget_seconds: float = 600) -> None:
        self.opt = modes.RandomOpt(modes.toy_opt(), CPU, 4, 4)
        self.report = script.new_report(CPU, self.opt.config)
        self.clock = script.Clock(budget_seconds)
        self.bench = script.Bench(self.opt, [8, 16], self.report, self.clock, ExitStack(), 1.0)
        self._script = script

    def visit(self, *modes: Any) -> dict[tuple[str, int], Any]:
        self.report.rows += [self._script.Row(mode.name, tokens) for mode in modes for tokens in (8, 16)]
        for mode in modes:
            self.bench.first_visit(mode)
        return {(row.mode, row.tokens): row for row in self.report.rows}


def test_the_whole_script_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "offload.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "benchmarks/gpu_offload.py", "--device", "cpu", "--tiny", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(path.read_text())
    rows = {(row["mode"], row["tokens"]): row for row in report["rows"]}
    assert rows.keys() == {(mode, tokens) for mode in EXACT | ROUNDED for tokens in (32, 64)}
    for (mode, tokens), row in rows.items():
        if mode in OF_OTHER_LIBRARIES and row["status"].startswith("skipped: "):
            continue  # the library is not installed
        assert row["status"] == "measured", (mode, tokens, row["status"])
        assert row["step_seconds"] > 0
        assert row["rounds"] == 2
        assert row["times_resident"] == row["step_seconds"] / rows["resident", tokens]["step_seconds"]
        assert (row["predicted_device_bytes"] is None) == (mode in ("accelerate cpu_offload", "ZeRO-3 offload_param"))
        assert f"| {mode} | {tokens} |" in done.stdout
        # Six blocks: two loads each, but for those that the step before and its own forward pass left in the slots.
        slots = {"stream, 1 slot": 1, "stream, 2 slots": 2, "stream, 3 slots": 3, "stream int8, 2 slots": 2}
        slots["stream, 2 slots, all kept"] = 2
        if mode in slots:
            assert row["loads_per_step"] == 2 * 6 - 2 * slots[mode]
    assert report["gradient_reference"] == "resident"
    assert report["reference_repeats_itself"] is True
    for check in report["gradients"]:
        assert check["must_be_equal"] == (check["mode"] in EXACT)
        assert check["equal"] == check["must_be_equal"], check
        # Rounding of the weights: 8 bits, then 4 with a scale for each 64.
        assert check["relative_difference"] < (0.05 if "nf4" in check["mode"] else 0.02), check
    assert {check["mode"] for check in report["gradients"]} >= (EXACT | ROUNDED) - OF_OTHER_LIBRARIES
    # What needs a card says so, and is not made up.
    for name in ("pinned_bytes_per_second", "pageable_bytes_per_second", "predicted_hidden_tokens"):
        assert report[name] is None
    assert all(row["peak_device_bytes"] is None and row["stall_seconds_per_block"] is None for row in rows.values())
    assert any("not measured without CUDA" in note for note in report["notes"])


def test_predictions_are_the_parts_of_the_planner(script: Any, modes: Any) -> None:
    opt = modes.RandomOpt(modes.toy_opt(), CPU, 8, 8)
    report = script.new_report(CPU, opt.config)
    all_modes = modes.all_modes(opt)
    report.rows = [script.Row(mode.name, 32) for mode in all_modes]
    script.predict(opt, all_modes, [32], report)
    predicted = {row.mode: row.predicted_device_bytes for row in report.rows}
    slot_bytes = 2 * modes.block_layout(opt.block_shapes, "bf16").slot_elements
    assert predicted["stream, 3 slots"] - predicted["stream, 1 slot"] == 2 * slot_bytes
    whole_bytes = 2 * sum(p.numel() for p in modes.OPTForCausalLM(opt.config).parameters())
    assert predicted["resident, recomputed"] > whole_bytes
    assert predicted["resident"] > predicted["resident, recomputed"]


def test_one_modes_trouble_is_its_own(script: Any, modes: Any) -> None:
    """Rows say what happened; the modes after it run; no tensor of the failed one is left."""
    made: list[Any] = []

    def failing(error: Exception, at_tokens: int) -> Any:
        @contextmanager
        def opened() -> Iterator[Any]:
            with modes.resident(fixture.opt, recompute=True) as good:
                weight = torch.zeros(4)
                made.append(weakref.ref(weight))

                def step(batch: Any, weight: torch.Tensor = weight) -> Any:
                    if batch.tokens >= at_tokens:
                        raise type(error)(*error.args)  # a new one: it holds the frames that it went through
                    return good.step(batch)

                yield modes.Opened(step)

        return opened

    fixture = Bench(script, modes)
    rows = fixture.visit(
        modes.Mode("resident", lambda: modes.resident(fixture.opt, recompute=False)),
        modes.Mode("too large", failing(torch.OutOfMemoryError("CUDA out of memory"), 16)),
        modes.Mode("too large at once", failing(RuntimeError("cudaMalloc: out of memory"), 0)),
        modes.Mode("without library", failing(modes.UserError("nowhere installed"), 0)),
        modes.Mode("broken", failing(ZeroDivisionError("by zero"), 0)),
        modes.Mode("stream", lambda: modes.streamed(fixture.opt, "bf16", 2)),
    )
    found = {key: row.status for key, row in rows.items()}
    assert found == {
        ("resident", 8): "measured",
        ("resident", 16): "measured",
        ("too large", 8): "measured",
        ("too large", 16): "out of memory",
        ("too large at once", 8): "out of memory",
        ("too large at once", 16): "out of memory",
        ("without library", 8): "skipped: nowhere installed",
        ("without library", 16): "skipped: nowhere installed",
        ("broken", 8): "failed: ZeroDivisionError: by zero",
        ("broken", 16): "failed: ZeroDivisionError: by zero",
        ("stream", 8): "measured",
        ("stream", 16): "measured",
    }
    assert len(made) == 4
    assert [reference() for reference in made] == [None] * 4
    assert "| broken | 8 | failed: ZeroDivisionError: by zero |" in "\n".join(script.table(fixture.report))


def test_later_rows_are_left_out_when_the_time_is_up(script: Any, modes: Any) -> None:
    fixture = Bench(script, modes, budget_seconds=0.0)
    rows = fixture.visit(modes.Mode("resident", lambda: modes.resident(fixture.opt, recompute=False)))
    assert {row.status for row in rows.values()} == {"left out: the time was up"}


def test_stalls_and_delays_go_through_the_cuda_transport(
    script: Any, modes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On recorded streams and events: each wait is between two events, each copy has a delay in front of it."""
    delays = []

    class Stream:
        def wait_event(self, event: object) -> None:
            pass

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            self.enable_timing = enable_timing

        def record(self, stream: object) -> None:
            pass

        def elapsed_time(self, after: "Event") -> float:
            assert self.enable_timing
            assert after.enable_timing
            return 3.0  # ms

    @contextmanager
    def on_stream(stream: object) -> Iterator[None]:
        yield

    stream = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "_sleep", delays.append)
    monkeypatch.setattr(modes.HostBlocks, "pin", lambda host: None)

    def measured(host: Any, device: torch.device, dtype: torch.dtype, poison: bool) -> Any:
        return modes.MeasuredTransport(host, device, dtype)

    monkeypatch.setattr(modes, "CpuTransport", measured)

    fixture = Bench(script, modes)
    streaming = modes.Mode("stream", lambda: modes.streamed(fixture.opt, "bf16", 2))
    rows = fixture.visit(modes.Mode("resident", lambda: modes.resident(fixture.opt, recompute=False)), streaming)
    assert rows["stream", 16].stall_seconds_per_block == pytest.approx(3e-3)
    assert rows["stream", 16].loads_per_step == 2 * 6 - 2 * 2
    assert not delays
    fixture.bench.visit_with_delays(streaming)
    # A first step with empty slots and a later one: 2L - B and 2L - 2B copies.
    assert len(delays) == (12 - 2) + (12 - 4)
    check = next(check for check in fixture.report.gradients if check.mode == "stream")
    assert check.equal
    assert check.equal_when_delayed
    fixture.bench.visit_without_waits([streaming])
    # Nothing was late here, so nothing could be noticed.
    assert fixture.report.skipped_waits_are_noticed is False


def test_near_resident_means_from_there_on(script: Any) -> None:
    def rows(*times: float | None) -> list[Any]:
        return [script.Row("stream", 2**n, times_resident=value) for n, value in enumerate(times)]

    def first(*times: float | None) -> int | None:
        return script.first_near(rows(*times), lambda row: row.times_resident)

    assert first(2.0, 1.09, 1.05) == 2
    assert first(1.0, 1.2, 1.05) == 4
    assert first(1.0, 1.05, 1.2) is None
    assert first(2.0, 1.05, None) == 2  # the largest did not run
