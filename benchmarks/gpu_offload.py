"""Measures on one card what streaming OPT-2.7b's frozen blocks costs, beside every other way to hold them.

    python benchmarks/gpu_offload.py --json offload.json
    python benchmarks/gpu_offload.py --device cpu --tiny        # no card: whether the script itself works
    python benchmarks/gpu_offload.py --training --rows-file rows.jsonl      # whole trainings, streamed

Nothing is downloaded: the weights are random. Host memory: 5 GB of bf16 masters, 2.5 GB of int8 ones, and up to
10 GB more for DeepSpeed's copy, without which that mode is skipped. It ends within 8 minutes; what does not fit in
them is left out and says so. docs/gpu_offload.md tells how to read the table.
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_offload_modes import (
    COMPUTE_DTYPE,
    MeasuredTransport,
    MicroBatch,
    Mode,
    Opened,
    RandomOpt,
    all_modes,
    opt_2_7b,
    toy_opt,
)
from torch import Tensor
from torch.nn.functional import linear
from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig

from artkv.config import Config, KVModulationConfig, ModelConfig
from artkv.errors import UserError
from artkv.planning.activations import Activations, QuantisedExtras, activations, peak_activation_bytes
from artkv.planning.batch_shape import BatchShape
from artkv.planning.shapes import model_shapes

MEASURED = "measured"
OUT_OF_MEMORY = "out of memory"
OUT_OF_TIME = "left out: the time was up"

_MAX_ROUNDS = {"toy": 2, "full": 5}
_NEAR_RESIDENT = 1.1
_SLOW_STEP_SECONDS = 0.5
# What must be left for a mode of which nothing is known yet.
_UNKNOWN_SECONDS = {"toy": 1.0, "full": 15.0}
_WATCHDOG_GRACE_SECONDS = 20


@dataclass
class Row:
    """One mode at one size of micro-batch; None is what was not measured.

    status: `measured`, `out of memory`, or why not. step_seconds: median over rounds.
    peak_device_bytes, predicted_device_bytes: OPT alone: weights outside the blocks, blocks, activations.
    times_resident, times_recomputed: step_seconds over those of resident, without and with recomputation.
    stall_seconds_per_block: mean time that the computing stream stood at a wait for a block's copy.
    loads_per_step: blocks copied in a step after the first.
    """

    mode: str
    tokens: int
    status: str = OUT_OF_TIME
    step_seconds: float | None = None
    rounds: int = 0
    peak_device_bytes: int | None = None
    predicted_device_bytes: int | None = None
    times_resident: float | None = None
    times_recomputed: float | None = None
    stall_seconds_per_block: float | None = None
    loads_per_step: int | None = None


@dataclass
class GradientCheck:
    """A mode's gradient against the reference's, at the smallest micro-batch.

    equal: bit for bit, loss included. equal_when_delayed: the same with the copies delayed, against the mode's own
    gradient without delays; None where nothing could be delayed.
    """

    mode: str
    must_be_equal: bool
    equal: bool
    relative_difference: float
    equal_when_delayed: bool | None = None


@dataclass
class Report:
    """All that is printed and written."""

    card: str
    device: str
    model: dict[str, Any]
    software: dict[str, str]
    device_memory_bytes: int | None = None
    host_memory_is_pinned: bool | None = None
    pinned_bytes_per_second: float | None = None
    pageable_bytes_per_second: float | None = None
    matmul_flop_per_second: dict[int, float] = field(default_factory=dict)
    predicted_hidden_tokens: int | None = None
    near_resident_tokens: dict[str, int | None] = field(default_factory=dict)
    near_recomputed_tokens: dict[str, int | None] = field(default_factory=dict)
    gradient_reference: str | None = None
    reference_repeats_itself: bool | None = None
    skipped_waits_are_noticed: bool | None = None
    gradients: list[GradientCheck] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Clock:
    """The time that is left of the budget."""

    def __init__(self, budget_seconds: float) -> None:
        self._began = time.monotonic()
        self._budget_seconds = budget_seconds

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def has(self, seconds: float) -> bool:
        """Whether that much is left."""
        return self.seconds + seconds <= self._budget_seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--tokens", help="tokens of a micro-batch, ascending (default 256,512,1024,2048,4096)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a toy model, to try the script")
    parser.add_argument("--budget-seconds", type=float, default=440, help="of which imports are no part (default 440)")
    parser.add_argument(
        "--training", action="store_true", help="whole trainings: copies an optimizer step, and kept activations"
    )
    parser.add_argument("--batch", type=int, default=48, help="with --training: questions a micro-step (default 48)")
    parser.add_argument("--rows-file", type=Path, help="with --training: JSON lines, each row is appended at once")
    options = parser.parse_args(arguments)
    if options.training:
        measure_training(options)
        return
    clock = Clock(options.budget_seconds)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --device cpu --tiny tries the script without one")
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    num_visual, num_text = (8, 8) if options.tiny else (32, 32)  # of a question; BLIP-2 has 32 visual tokens
    try:
        tokens = options.tokens or ("32,64" if options.tiny else "256,512,1024,2048,4096")
        sizes = parse_tokens(tokens, num_visual + num_text)
    except ValueError as error:
        parser.error(f"--tokens: {error}")
    if device.type == "cuda":
        torch.cuda.set_device(device)

    size = "toy" if options.tiny else "full"
    config = toy_opt() if options.tiny else opt_2_7b()
    report = new_report(device, config)
    watchdog = threading.Timer(
        options.budget_seconds + _WATCHDOG_GRACE_SECONDS, give_up, args=(report, clock, options.json)
    )
    watchdog.daemon = True
    watchdog.start()
    opt = RandomOpt(config, device, num_visual, num_text)
    modes = all_modes(opt)
    opt.masters("int8")  # now, so that the mode's own time does not hold it
    report.rows += [Row(mode.name, tokens) for mode in modes for tokens in sizes]
    measure_link(opt, report)
    measure_matmul(opt, sizes, report)
    predict(opt, modes, sizes, report)
    gc.freeze()  # a collection between two modes need not look at all that was imported
    with ExitStack() as kept:
        bench = Bench(opt, sizes, report, clock, kept, _UNKNOWN_SECONDS[size])
        try:
            for mode in modes:
                bench.first_visit(mode)
            for mode in modes:
                bench.visit_with_delays(mode)
            bench.visit_without_waits(modes)
            for _ in range(1, _MAX_ROUNDS[size]):
                for mode in modes:
                    bench.next_visit(mode)
        finally:  # after a CUDA error nothing works any more, and closing the kept modes may fail: what there is counts
            finish(report, clock, options.json)
    watchdog.cancel()


def measure_training(options: argparse.Namespace) -> None:
    """Streamed trainings one after another, a process each; those whose setting is refused are skipped."""
    from random_world import open_world_without_weights
    from rows import Session
    from true_rows import Bench, streaming_rows, training_table

    size_name, paintings, seconds = ("tiny", 60, 0.5) if options.tiny else ("true", 320, 10.0)
    environment = {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    with tempfile.TemporaryDirectory() as temporary:
        world = open_world_without_weights(Path(temporary, "world"), size_name, paintings)
        bench = Bench(world, size_name, Path(temporary, "runs"), "auto", seconds, limit_seconds=90.0)
        session = Session(options.rows_file, options.budget_seconds, environment=environment)
        session.run_all(streaming_rows(bench, 12 if options.tiny else options.batch))
    print("\n".join(training_table(session.results)), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(session.results, indent=2), encoding="utf-8")


def parse_tokens(text: str, tokens_of_question: int) -> list[int]:
    """Sizes of micro-batches in ascending order.

    Raises:
        ValueError: if one is no multiple of a question's tokens.
    """
    sizes = sorted({int(part) for part in text.split(",")})
    if wrong := [tokens for tokens in sizes if tokens <= 0 or tokens % tokens_of_question]:
        raise ValueError(f"{wrong} are no multiples of {tokens_of_question}, the tokens of a question")
    return sizes


def new_report(device: torch.device, config: Any) -> Report:
    """What is known before anything is measured."""
    report = Report(
        card=torch.cuda.get_device_name(device) if device.type == "cuda" else "no card (CPU)",
        device=device.type,
        model={
            "blocks": config.num_hidden_layers, "width": config.hidden_size, "ffn": config.ffn_dim,
            "vocabulary": config.vocab_size,
        },
        software={"torch": torch.__version__, "cuda": str(torch.version.cuda)},
    )  # fmt: skip
    if device.type == "cuda":
        report.device_memory_bytes = torch.cuda.get_device_properties(device).total_memory
    else:
        report.notes.append(
            "not measured without CUDA: bandwidth, device memory, stalls, delayed copies, predicted hiding"
        )
    return report


def measure_link(opt: RandomOpt, report: Report) -> None:
    """Host to device bandwidth: from the masters as streaming registers them, and from pageable memory."""
    host = opt.masters("bf16")
    report.model["block_bytes"] = host.layout.packed_bytes
    if opt.device.type != "cuda":
        return
    host.pin()
    report.host_memory_is_pinned = host.is_pinned
    target = torch.empty_like(host.packed[0], device=opt.device)
    pageable = host.packed[0].clone()

    def rate(source_of: Callable[[int], Tensor]) -> float:
        target.copy_(source_of(0))
        seconds = [timed(opt.device, partial(target.copy_, source_of(n), non_blocking=True)) for n in range(8)]
        return target.nbytes / statistics.median(seconds)

    report.pinned_bytes_per_second = rate(lambda n: host.packed[n % len(host.packed)])
    report.pageable_bytes_per_second = rate(lambda n: pageable)


def measure_matmul(opt: RandomOpt, sizes: Sequence[int], report: Report) -> None:
    """FLOP/s of a block's six products at each size of micro-batch."""
    matrices = [shape for shape in opt.block_shapes.values() if len(shape) == 2]
    weights = [torch.randn(shape, device=opt.device, dtype=COMPUTE_DTYPE) for shape in matrices]
    for tokens in sizes:
        inputs = {width: torch.randn(tokens, width, device=opt.device, dtype=COMPUTE_DTYPE) for _, width in matrices}

        def products(repeats: int = 4, inputs: dict[int, Tensor] = inputs) -> None:
            for _ in range(repeats):
                for weight in weights:
                    inputs[weight.shape[1]] @ weight.T

        products()
        seconds = statistics.median(timed(opt.device, products) for _ in range(5)) / 4  # of the repeats
        flop = 2 * tokens * sum(weight.numel() for weight in weights)
        report.matmul_flop_per_second[tokens] = flop / seconds
    # cuBLAS takes its workspaces once for the forward and once for the backward thread; not on a mode's account.
    example = torch.randn(64, matrices[0][1], device=opt.device, dtype=COMPUTE_DTYPE, requires_grad=True)
    bias = torch.zeros(matrices[0][0], device=opt.device, dtype=COMPUTE_DTYPE)
    linear(example, weights[0], bias).sum().backward()
    if report.pinned_bytes_per_second is not None:
        # A block's forward pass is 2 FLOP a parameter and token; the next block's copy takes bytes / rate.
        copy_seconds = opt.masters("bf16").layout.packed_bytes / report.pinned_bytes_per_second
        flop_per_second = report.matmul_flop_per_second[sizes[-1]]
        report.predicted_hidden_tokens = round(copy_seconds * flop_per_second / (2 * opt.block_elements))


def predict(opt: RandomOpt, modes: Sequence[Mode], sizes: Sequence[int], report: Report) -> None:
    """Fills in the device memory that artkv's planner expects of OPT in each mode."""
    largest_bytes = max(torch.Size(shape).numel() for shape in opt.block_shapes.values()) * COMPUTE_DTYPE.itemsize
    for tokens in sizes:
        acts = opt_activations(opt, tokens // (opt.num_visual + opt.num_text))
        for mode in modes:
            if mode.blocks_bytes is None:
                continue
            activation_bytes = peak_activation_bytes(
                acts,
                opt.num_blocks,
                0 if mode.recompute else opt.num_blocks,
                encodes=False,
                # As `artkv plan` takes them: see artkv/planning/prediction.py.
                extras=QuantisedExtras(
                    outputs=2 if mode.quantisation == "int8" else 0,
                    workspace_bytes=0 if mode.quantisation is None else largest_bytes,
                ),
            )
            row_of(report, mode, tokens).predicted_device_bytes = (
                opt.outside_bytes + mode.blocks_bytes + activation_bytes
            )


def opt_activations(opt: RandomOpt, questions: int) -> Activations:
    """The planner's activations of OPT alone: everything else in the model is a toy and counts as nothing."""
    blip2 = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=14
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1, encoder_hidden_size=16
        ).to_dict(),
        text_config=opt.config.to_dict(),
        num_query_tokens=opt.num_visual,
    )
    with tempfile.TemporaryDirectory() as folder:
        blip2.save_pretrained(folder)
        config = Config(model=ModelConfig(blip2=folder), kv_modulation=KVModulationConfig(enabled=False))
        shapes = model_shapes(config, COMPUTE_DTYPE, ())
    found = activations(shapes, BatchShape(1, questions, opt.num_text), art_image_sizes=())
    return replace(
        found, inputs_bytes=0, features_bytes=0, encoding_bytes=0, qformer_bytes=0, qformer_backward_bytes=0,
        evaluation=None,
    )  # fmt: skip


class Bench:
    """Opens modes one after the other, each at most once a round, and fills in the report."""

    def __init__(
        self,
        opt: RandomOpt,
        sizes: Sequence[int],
        report: Report,
        clock: Clock,
        kept: ExitStack,
        unknown_seconds: float,
    ) -> None:
        self._opt = opt
        self._batches = [opt.micro_batch(tokens // (opt.num_visual + opt.num_text)) for tokens in sizes]
        self._report = report
        self._clock = clock
        self._kept = kept
        self._opened_for_good: dict[str, Opened] = {}
        self._unknown_seconds = unknown_seconds
        self._seconds: dict[tuple[str, int], list[float]] = {}
        self._open_seconds: dict[str, float] = {}
        self._outcomes: dict[str, tuple[Tensor, Tensor]] = {}
        self._can_be_delayed: set[str] = set()

    def first_visit(self, mode: Mode) -> None:
        """Measures everything of a mode once: gradient, peak memory, step time, stalls."""
        if not self._clock.has(self._unknown_seconds):
            return
        free_memory(self._opt.device)
        before_bytes = allocated_bytes(self._opt.device)
        status = self._attempt(mode, lambda opened: self._measure_all(mode, opened, before_bytes))
        for batch in self._batches:
            row = row_of(self._report, mode, batch.tokens)
            if status is not None and row.status == OUT_OF_TIME:
                row.status = status

    def next_visit(self, mode: Mode) -> None:
        """Times the steps once more where the first visit did and the time allows."""
        measured = [batch for batch in self._batches if (mode.name, batch.tokens) in self._seconds]
        # The largest size once more than it is timed, and at most three steps of each size.
        seconds = [statistics.median(self._seconds[mode.name, batch.tokens]) for batch in measured]
        if not measured or not self._has_for(mode, 3 * sum(seconds) + seconds[-1]):
            return

        def time_all(opened: Opened) -> None:
            opened.step(measured[-1])  # the largest first, for the allocator
            for batch in measured:
                self._time_steps(mode, opened, batch)

        status = self._attempt(mode, time_all)
        if status is not None:
            self._report.notes.append(f"{mode.name}, a later round: {status}")

    def visit_with_delays(self, mode: Mode) -> None:
        """Compares the gradients of two steps with delayed copies with the mode's own without delays."""
        check = next((check for check in self._report.gradients if check.mode == mode.name), None)
        if check is None or mode.name not in self._can_be_delayed:
            return
        if not self._has_for(mode, self._unknown_seconds / 2):
            self._report.notes.append(f"{mode.name}: delayed copies left out, the time was up")
            return
        expected = self._outcomes[mode.name]

        def compare(opened: Opened) -> None:
            assert isinstance(opened.transport, MeasuredTransport)
            opened.transport.is_delayed = True
            # The second step begins with slots that the first one left filled.
            cold, warm = self._outcome(opened), self._outcome(opened)
            check.equal_when_delayed = same(cold, expected) and same(warm, expected)

        status = self._attempt(mode, compare)
        if status is not None:
            self._report.notes.append(f"{mode.name}, delayed copies: {status}")

    def visit_without_waits(self, modes: Sequence[Mode]) -> None:
        """Delays copies and does not wait for them: if the gradient is still right, the check is blind."""
        delayed = [check.mode for check in self._report.gradients if check.equal_when_delayed is not None]
        mode = next((mode for mode in modes if mode.name in delayed), None)
        if mode is None or not self._has_for(mode, self._unknown_seconds / 2):
            return

        def compare(opened: Opened) -> None:
            assert isinstance(opened.transport, MeasuredTransport)
            opened.transport.is_delayed = opened.transport.skips_waits = True
            self._report.skipped_waits_are_noticed = not same(self._outcome(opened), self._outcomes[mode.name])

        status = self._attempt(mode, compare)
        if status is not None:
            self._report.notes.append(f"{mode.name}, skipped waits: {status}")

    def _has_for(self, mode: Mode, seconds: float) -> bool:
        """Whether there is time to open the mode and for that much beside it."""
        return self._clock.has(seconds + (0 if mode.is_kept else self._open_seconds.get(mode.name, 0.0)))

    def _attempt(self, mode: Mode, use: Callable[[Opened], None]) -> str | None:
        """Opens the mode, uses it and closes it; returns what went wrong, if anything did."""
        status = None
        try:
            self._open_and_use(mode, use)
        except torch.OutOfMemoryError:
            status = OUT_OF_MEMORY
        except UserError as error:
            status = f"skipped: {error}"
        except Exception as error:  # one library's failure must not take the other rows with it
            text = str(error)
            status = OUT_OF_MEMORY if "out of memory" in text else f"failed: {type(error).__name__}: {text[:300]}"
        # Here the exception is gone, and with it the frames that hold the mode's tensors.
        free_memory(self._opt.device)
        return status

    def _open_and_use(self, mode: Mode, use: Callable[[Opened], None]) -> None:
        began = self._clock.seconds
        if mode.is_kept:
            if mode.name not in self._opened_for_good:
                self._opened_for_good[mode.name] = self._kept.enter_context(mode.open())
            use(self._opened_for_good[mode.name])
            return
        with mode.open() as opened:
            self._open_seconds[mode.name] = self._clock.seconds - began
            use(opened)
            synchronize(self._opt.device)  # before slots that a copy may still fill are given back

    def _measure_all(self, mode: Mode, opened: Opened, before_bytes: int) -> None:
        if isinstance(opened.transport, MeasuredTransport):
            self._can_be_delayed.add(mode.name)
        if mode.is_exact or self._outcomes:
            self._check_gradient(mode, opened)
        step_seconds = 0.0
        for batch in self._batches:
            row = row_of(self._report, mode, batch.tokens)
            # One step to warm up, up to three to time, one with events, each about twice as long as at the size before.
            if not self._clock.has(8 * step_seconds):
                continue
            reset_peak(self._opt.device)
            opened.step(batch)
            synchronize(self._opt.device)
            if self._opt.device.type == "cuda":
                peak_bytes = torch.cuda.max_memory_allocated(self._opt.device)
                row.peak_device_bytes = peak_bytes - before_bytes + self._opt.outside_bytes
            loads_before = opened.total_loads() if opened.total_loads else 0
            num_steps, step_seconds = self._time_steps(mode, opened, batch)
            if opened.total_loads:
                row.loads_per_step = (opened.total_loads() - loads_before) // num_steps
            row.stall_seconds_per_block = self._stall_seconds(opened, batch)
            row.status = MEASURED

    def _check_gradient(self, mode: Mode, opened: Opened) -> None:
        report = self._report
        outcome = self._outcomes[mode.name] = self._outcome(opened)
        if report.gradient_reference is None:
            report.gradient_reference = mode.name
            report.reference_repeats_itself = same(self._outcome(opened), outcome)
        expected = self._outcomes[report.gradient_reference]
        difference = (outcome[1] - expected[1]).norm() / expected[1].norm()
        report.gradients.append(GradientCheck(mode.name, mode.is_exact, same(outcome, expected), float(difference)))

    def _outcome(self, opened: Opened) -> tuple[Tensor, Tensor]:
        """Loss and gradient at the smallest size, in fp32 on the host."""
        loss, gradient = opened.step(self._batches[0])
        return loss.float().cpu(), gradient.float().cpu()

    def _time_steps(self, mode: Mode, opened: Opened, batch: MicroBatch) -> tuple[int, float]:
        """Adds this round's figure, the median of three steps or a single one where it is slow.

        Returns the number of steps and the figure.
        """
        seconds = [timed(self._opt.device, lambda: opened.step(batch))]
        if seconds[0] < _SLOW_STEP_SECONDS:
            seconds += [timed(self._opt.device, lambda: opened.step(batch)) for _ in range(2)]
        rounds = self._seconds.setdefault((mode.name, batch.tokens), [])
        rounds.append(statistics.median(seconds))
        row = row_of(self._report, mode, batch.tokens)
        row.step_seconds, row.rounds = statistics.median(rounds), len(rounds)
        return len(seconds), rounds[-1]

    def _stall_seconds(self, opened: Opened, batch: MicroBatch) -> float | None:
        if not isinstance(opened.transport, MeasuredTransport):
            return None
        waits = opened.transport.waits = []
        opened.step(batch)
        synchronize(self._opt.device)
        opened.transport.waits = None
        return sum(before.elapsed_time(after) for before, after in waits) / 1e3 / max(len(waits), 1)


def compare_with_resident(report: Report) -> None:
    """Ratios, and the smallest micro-batches from which on streaming is near resident."""
    seconds_of = {(row.mode, row.tokens): row.step_seconds for row in report.rows}
    for row in report.rows:
        row.times_resident = ratio(row.step_seconds, seconds_of.get(("resident", row.tokens)))
        row.times_recomputed = ratio(row.step_seconds, seconds_of.get(("resident, recomputed", row.tokens)))
    for name in dict.fromkeys(row.mode for row in report.rows if row.mode.startswith("stream")):
        rows = [row for row in report.rows if row.mode == name]
        report.near_resident_tokens[name] = first_near(rows, lambda row: row.times_resident)
        report.near_recomputed_tokens[name] = first_near(rows, lambda row: row.times_recomputed)


def row_of(report: Report, mode: Mode, tokens: int) -> Row:
    """The report's row of that mode and size."""
    return next(row for row in report.rows if (row.mode, row.tokens) == (mode.name, tokens))


def same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    """Whether loss and gradient are equal bit for bit."""
    return all(map(torch.equal, found, expected))


def ratio(seconds: float | None, of: float | None) -> float | None:
    """None where either was not measured."""
    return None if seconds is None or of is None else seconds / of


def first_near(rows: Sequence[Row], times_of: Callable[[Row], float | None]) -> int | None:
    """The smallest size from which on the ratio stays within 1.1; None if not at the largest measured."""
    found = None
    for row in sorted(rows, key=lambda row: -row.tokens):
        times = times_of(row)
        if times is None:
            continue
        if times > _NEAR_RESIDENT:
            break
        found = row.tokens
    return found


def timed(device: torch.device, action: Callable[[], object]) -> float:
    """Seconds until the device is through with it."""
    synchronize(device)
    began = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Waits for all streams of a CUDA device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Gives back what is no longer referred to; models with wrapped forwards are cycles."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def allocated_bytes(device: torch.device) -> int:
    """What tensors take on a CUDA device now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def reset_peak(device: torch.device) -> None:
    """Begins a new maximum."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def give_up(report: Report, clock: Clock, path: Path | None) -> None:
    """Prints and writes what there is and ends the process: something took far longer than it should."""
    if report.seconds:  # all is written, and something hangs while it is closed
        os._exit(0)
    report.notes.append("stopped in the middle of a measurement: the time was up; rows without a time were not reached")
    finish(report, clock, path)
    os._exit(1)


def finish(report: Report, clock: Clock, path: Path | None) -> None:
    """Prints the report, and writes it where it is wanted."""
    compare_with_resident(report)
    report.seconds = round(clock.seconds, 1)
    print("\n".join(table(report)), flush=True)
    if path is not None:
        path.write_text(json.dumps(asdict(report), indent=2), encoding="utf-8")


def table(report: Report) -> list[str]:
    """The report as lines of Markdown."""
    gradient_of = {check.mode: gradient_text(check) for check in report.gradients}
    if report.gradient_reference is not None:
        gradient_of[report.gradient_reference] = "reference"
    lines = [
        f"Card: {report.card}, {scaled(report.device_memory_bytes, 1e9, '{:.1f} GB')}; "
        f"torch {report.software['torch']}, CUDA {report.software['cuda']}; {report.seconds:.0f} s",
        f"OPT: {report.model}",
        f"Host to device, page-locked{'' if report.host_memory_is_pinned in (None, True) else ' (FAILED: pageable)'}: "
        f"{scaled(report.pinned_bytes_per_second, 1e9, '{:.1f} GB/s')}; "
        f"pageable: {scaled(report.pageable_bytes_per_second, 1e9, '{:.1f} GB/s')}",
        "Products in bf16: "
        + ", ".join(f"{rate / 1e12:.2f} TFLOP/s at {tokens}" for tokens, rate in report.matmul_flop_per_second.items()),
        f"A copy is predicted to be hidden from {known(report.predicted_hidden_tokens)} tokens on",
        "",
        "| mode | tokens | step ms | x resident | x recomputed | peak GB | predicted GB | stall ms/block | gradient |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report.rows:
        if row.status != MEASURED and row.step_seconds is None:
            lines.append(f"| {row.mode} | {row.tokens} | {row.status} |  |  |  |  |  |  |")
            continue
        cells = [
            row.mode,
            str(row.tokens),
            scaled(row.step_seconds, 1e-3, "{:.1f}"),
            scaled(row.times_resident, 1, "{:.2f}"),
            scaled(row.times_recomputed, 1, "{:.2f}"),
            scaled(row.peak_device_bytes, 1e9, "{:.3f}"),
            scaled(row.predicted_device_bytes, 1e9, "{:.3f}"),
            scaled(row.stall_seconds_per_block, 1e-3, "{:.2f}"),
            gradient_of.get(row.mode, "not compared"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Gradients are compared with {report.gradient_reference}'s, which repeats itself: "
              f"{known(report.reference_repeats_itself)}. Skipped waits are noticed: "
              f"{known(report.skipped_waits_are_noticed)}."]  # fmt: skip
    lines += [
        f"{name}: within {_NEAR_RESIDENT} of resident from {known(tokens)} tokens on, of resident recomputed from "
        f"{known(report.near_recomputed_tokens[name])}"
        for name, tokens in report.near_resident_tokens.items()
    ]
    return [*lines, *(f"Note: {note}" for note in report.notes)]


def gradient_text(check: GradientCheck) -> str:
    """As in the table."""
    text = (
        "equal" if check.equal else f"{'DIFFERS' if check.must_be_equal else 'differs'} {check.relative_difference:.1e}"
    )
    if check.equal_when_delayed is None:
        return text
    return f"{text}, delayed {'equal' if check.equal_when_delayed else 'DIFFERS'}"


def scaled(value: float | None, unit: float, form: str) -> str:
    """The value in that unit; `-` where it was not measured."""
    return "-" if value is None else form.format(value / unit)


def known(value: object) -> str:
    """`-` for None."""
    return "-" if value is None else str(value)


if __name__ == "__main__":
    main()
