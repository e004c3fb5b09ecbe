"""Where a training step's time goes, what makes the host wait for the device, and what DeepSpeed's buckets cost.

    python benchmarks/profile_step.py --trace step.trace.json --json step.json
    python benchmarks/profile_step.py --tiny --trace step.trace.json      # a toy model: whether the script works

It is the very run of `artkv train`, on the random model and questions of throughput.py, seen in three stretches of
steps: timed in spans, with nothing else on; under torch's profiler, for a trace that chrome://tracing and Perfetto
read; and with every operation that makes the host wait counted, and the code that asked for it named.

The model's own time is forward and backward without what DeepSpeed does inside backward. All else is outside: waiting
for data, moving a batch, DeepSpeed's reduction and optimizer, logging, Python between them. On CUDA the device is
waited for at the end of each span, which overstates what is outside.
"""

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from random_world import add_options, open_world, run_settings, write_report
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

import artkv.training.loop
from artkv.config import Config
from artkv.config.deepspeed import load_deepspeed_config
from artkv.distributed import process_group
from artkv.monitoring.memory import peak_device_bytes, peak_host_bytes
from artkv.monitoring.run_log import RunLog
from artkv.training.engine import TrainingEngine
from artkv.training.measures import StepMeasures
from artkv.training.part_norms import PartNorms
from artkv.training.run import train
from artkv.training.stops import ToHost

FORWARD, BACKWARD = "forward", "backward"
_INSIDE = (FORWARD, BACKWARD)
_GOAL_OUTSIDE = 0.05
_LOG_EVERY = 10
# ZeRO-2's work inside backward: as gradients get ready, and when the last one was.
_REDUCTION_METHODS = (
    "reduce_ready_partitions_and_remove_grads",
    "reduce_independent_p_g_buckets_and_remove_grads",
    "independent_gradient_partition_epilogue",
    "overlapping_partition_gradients_reduce_epilogue",
)
# Operations whose result the host needs, or whose shape it does: on CUDA each one waits for the device.
_WAITING = {
    "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::masked_select", "aten::equal",
    "aten::unique_dim", "aten::_unique2", "aten::repeat_interleave",
}  # fmt: skip


class EndOfProfile(BaseException):
    """Leaves the training loop."""


class Spans:
    """Seconds by name, each without those of the spans inside it."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: Counter[str] = Counter()
        self._device = device
        self._stack = ["python between"]
        self._since = time.perf_counter()

    def restart(self) -> None:
        """Forgets what was measured so far."""
        self.seconds.clear()
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Adds the time since the last change to whose it is."""
        self._switch()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._switch()
        self._stack.append(name)
        try:
            with record_function(name):
                yield
        finally:
            self._switch()
            self._stack.pop()

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Makes each call of `owner.method` a span."""
        inner = getattr(owner, method)

        @functools.wraps(inner)
        def spanned(*inputs: Any, **options: Any) -> Any:
            with self(name):
                return inner(*inputs, **options)

        setattr(owner, method, spanned)

    def _switch(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now


class HostWaits(TorchDispatchMode):
    """Counts operations for which the host would wait on CUDA, by the library whose code asked for them and its line.

    Also on a CPU, but for what `ToHost` reads: on CUDA its copy has been queued long before, and its event is
    all that is waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        if name in _WAITING or _copies_to_host(name, args, kwargs):
            frame = _who_asked()
            if frame is None:
                self.counts[(name, "torch", "-")] += 1
            elif frame.f_code is not ToHost.read.__code__:
                module = frame.f_globals["__name__"]
                self.counts[(name, module.split(".")[0], f"{module}:{frame.f_lineno}")] += 1
        return func(*args, **(kwargs or {}))

    def take(self) -> Counter[tuple[str, str, str]]:
        """What was counted since the last call."""
        taken, self.counts = self.counts, Counter()
        return taken


@dataclass
class Report:
    """All that is printed and written.

    span_seconds: a step's, by span. outside_share: of a step. waits_between, waits_at_logging: of one step, as
    `operation, library, place, count`. communication buffers in bytes: as configured, with DeepSpeed's default, and
    the trainables in fp32.
    """

    device: str
    threads: int
    dtype: str
    batch_size: int
    steps: int
    step_seconds: float
    span_seconds: dict[str, float]
    outside_share: float
    waits_between: list[list[Any]] = field(default_factory=list)
    waits_at_logging: list[list[Any]] = field(default_factory=list)
    cuda_synchronisations: int | None = None
    bucket_elements: int = 0
    trainable_elements: int = 0
    buffer_bytes: int = 0
    default_bucket_bytes: int = 0
    peak_host_bytes: int = 0
    peak_device_bytes: int = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--trace", type=Path, help="write a Chrome trace of five steps there")
    parser.add_argument("--steps", type=int, default=60, help="timed steps (default 60)")
    parser.add_argument("--bucket", type=int, help="elements of DeepSpeed's buckets (default: as artkv sizes them)")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.steps = min(options.steps, 10)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as temporary:
        folder, size_name = open_world(options, Path(temporary))
        switches = {"cache": True, "packing": True, "answer_logits": True}
        tree = run_settings(folder, size_name, "alike", Path(temporary) / "run", options.batch, options.dtype, switches)
        tree["run"]["log_every"] = _LOG_EVERY
        if options.bucket is not None:
            tree["training"]["deepspeed"] = str(with_buckets(options.bucket, Path(temporary)))
        report = measure(tree, options.steps, options.trace)
    print("\n".join(table(report)), flush=True)
    write_report(report, options.json)


def with_buckets(elements: int, folder: Path) -> Path:
    """artkv's DeepSpeed JSON with buckets of another size."""
    config = load_deepspeed_config("zero2_bf16.json")
    config["zero_optimization"] |= {"reduce_bucket_size": elements, "allgather_bucket_size": elements}
    path = folder / "buckets.json"
    path.write_text(json.dumps(config))
    return path


def measure(tree: dict[str, Any], num_steps: int, trace: Path | None) -> Report:
    """Trains until all three stretches are done."""
    config = Config.model_validate(tree)
    with process_group(timeout_minutes=10) as world:
        observer = _Observer(Spans(world.device), num_steps, trace)
        with _patched(observer), suppress(EndOfProfile):
            train(config, None, world)
        assert observer.engine is not None
        report = observer.report(config, world.device)
    return report


class _Observer:
    """Stands at the boundary between two steps and decides what is measured in the next one."""

    def __init__(self, spans: Spans, num_steps: int, trace: Path | None) -> None:
        self.spans = spans
        self.engine: TrainingEngine | None = None
        self._num_steps = num_steps
        self._trace = trace
        self._profiler: Any = None
        self._waits = HostWaits()
        self._waits_of_step: list[Counter[tuple[str, str, str]]] = []
        self._seconds: dict[str, float] = {}
        self._stages = self._run()

    def boundary(self, engine: TrainingEngine) -> None:
        """Called before each step."""
        if self.engine is None:
            self.engine = engine
            optimizer = engine._engine.optimizer
            for method in _REDUCTION_METHODS:
                if hasattr(optimizer, method):
                    self.spans.wrap(optimizer, method, "DeepSpeed's reduction")
        next(self._stages)

    def _run(self) -> Iterator[None]:
        for _ in range(_LOG_EVERY):  # first allocations, and what the loader had ready
            yield
        self.spans.restart()
        for _ in range(self._num_steps):
            yield
        self.spans.stop()
        self._seconds = dict(self.spans.seconds)
        if self._trace is not None or torch.cuda.is_available():
            with profile(activities=_activities()) as self._profiler:
                for _ in range(5):
                    yield
            if self._trace is not None:
                self._profiler.export_chrome_trace(str(self._trace))
            for _ in range(_LOG_EVERY - 5):
                yield
        with self._waits:
            self._waits.take()
            for _ in range(2 * _LOG_EVERY):
                yield
                self._waits_of_step.append(self._waits.take())
        raise EndOfProfile

    def report(self, config: Config, device: torch.device) -> Report:
        """What the stretches gave."""
        assert self.engine is not None
        per_step = {name: seconds / self._num_steps for name, seconds in self._seconds.items()}
        whole = sum(per_step.values())
        inside = sum(per_step.get(name, 0.0) for name in _INSIDE)
        # A step that logs is one in ten; the median of the others has no more than they have in common.
        totals = sorted(self._waits_of_step, key=lambda counts: sum(counts.values()))
        between, at_logging = totals[len(totals) // 2], totals[-1]
        optimizer = self.engine._engine.optimizer
        trainable = sum(p.numel() for p in self.engine.model.parameters())
        element_bytes = next(self.engine.model.parameters()).element_size()
        return Report(
            device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            threads=torch.get_num_threads(),
            dtype=str(self.engine.model.backbone.dtype).removeprefix("torch."),
            batch_size=config.training.batch_size,
            steps=self._num_steps,
            step_seconds=whole,
            span_seconds=dict(sorted(per_step.items(), key=lambda item: -item[1])),
            outside_share=1 - inside / whole,
            waits_between=_rows(between),
            waits_at_logging=_rows(at_logging - between),
            cuda_synchronisations=_synchronisations(self._profiler),
            bucket_elements=int(optimizer.reduce_bucket_size),
            trainable_elements=trainable,
            buffer_bytes=_buffer_bytes(optimizer, element_bytes),
            default_bucket_bytes=500_000_000 * element_bytes,
            peak_host_bytes=peak_host_bytes(),
            peak_device_bytes=peak_device_bytes(),
        )


@contextmanager
def _patched(observer: _Observer) -> Iterator[None]:
    """artkv's own functions with spans around them, and its step with the observer before it."""
    loop: Any = artkv.training.loop
    patched: list[tuple[Any, str]] = [
        (loop, "step_together"), (loop, "training_loader"), (TrainingEngine, "forward"), (TrainingEngine, "backward"),
        (TrainingEngine, "step"), (TrainingEngine, "part_metrics"), (PartNorms, "_before_step"),
        (PartNorms, "_after_step"), (StepMeasures, "take"), (RunLog, "write_pending"), (RunLog, "advance"),
    ]  # fmt: skip
    originals = [getattr(owner, name) for owner, name in patched]
    spans = observer.spans

    def step(engine: TrainingEngine, *others: Any) -> Any:
        observer.boundary(engine)
        with spans("batch to the device, count of tokens"):
            return originals[0](engine, *others)

    def loader(*inputs: Any, **options: Any) -> Iterator[Any]:
        return _spanned_items(spans, originals[1](*inputs, **options))

    loop.step_together, loop.training_loader = step, loader
    spans.wrap(TrainingEngine, "forward", FORWARD)
    spans.wrap(TrainingEngine, "backward", BACKWARD)
    spans.wrap(TrainingEngine, "step", "DeepSpeed's optimizer step")
    for owner, method in ((TrainingEngine, "part_metrics"), (PartNorms, "_before_step"), (PartNorms, "_after_step")):
        spans.wrap(owner, method, "norms of parts")
    for owner, method in ((StepMeasures, "take"), (RunLog, "write_pending")):
        spans.wrap(owner, method, "logging")
    spans.wrap(RunLog, "advance", "progress bar")
    try:
        yield
    finally:
        for (owner, name), original in zip(patched, originals, strict=True):
            setattr(owner, name, original)


def _spanned_items(spans: Spans, items: Iterator[Any]) -> Iterator[Any]:
    while True:
        with spans("waiting for data"):
            item = next(items, None)
        if item is None:
            return
        yield item


def _copies_to_host(name: str, args: Any, kwargs: Any) -> bool:
    if name not in ("aten::_to_copy", "aten::copy_"):
        return False
    tensors = [value for value in args if isinstance(value, torch.Tensor)]
    if name == "aten::copy_":
        is_asynchronous = tensors[0].is_pinned() and ((len(args) > 2 and args[2]) or (kwargs or {}).get("non_blocking"))
        return tensors[0].device.type == "cpu" and tensors[1].device.type != "cpu" and not is_asynchronous
    target = (kwargs or {}).get("device")
    return target is not None and torch.device(target).type == "cpu" and tensors[0].device.type != "cpu"


def _who_asked() -> FrameType | None:
    """The innermost frame that is neither torch's nor this script's."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        library = frame.f_globals.get("__name__", "").split(".")[0]
        if library not in ("torch", "contextlib", "functools", __name__.split(".")[0]):
            return frame
        frame = frame.f_back
    return None


def _rows(counts: Counter[tuple[str, str, str]]) -> list[list[Any]]:
    return [[*key, number] for key, number in sorted(counts.items(), key=lambda item: -item[1])]


def _activities() -> list[ProfilerActivity]:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    return activities


def _synchronisations(profiler: Any) -> int | None:
    """Calls of the CUDA runtime that wait, of five steps; None without CUDA."""
    if profiler is None or not torch.cuda.is_available():
        return None
    names = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    return sum(event.count for event in profiler.key_averages() if event.key in names)


def _buffer_bytes(optimizer: Any, element_bytes: int) -> int:
    """DeepSpeed's reduction buffers: one of the bucket's size, two where communication overlaps."""
    return int(optimizer.reduce_bucket_size) * element_bytes * (2 if optimizer.overlap_comm else 1)


def table(report: Report) -> list[str]:
    """The report as lines of Markdown."""
    outside = "reached" if report.outside_share <= _GOAL_OUTSIDE else "MISSED"
    lines = [
        f"{report.device}, {report.threads} threads, {report.dtype}, {report.batch_size} questions a step; "
        f"{report.steps} steps of {1e3 * report.step_seconds:.1f} ms",
        "",
        "| span | ms a step | share | |",
        "|---|---|---|---|",
    ]
    for name, seconds in report.span_seconds.items():
        place = "model" if name in _INSIDE else "outside"
        lines.append(f"| {name} | {1e3 * seconds:.2f} | {seconds / report.step_seconds:.1%} | {place} |")
    lines += [
        "",
        f"Outside the model: {report.outside_share:.1%}; goal at most {_GOAL_OUTSIDE:.0%}: {outside}",
        f"Waiting for data: {report.span_seconds.get('waiting for data', 0.0) / report.step_seconds:.1%}",
        "",
        "| what the host waits for | asked by | at | a step |",
        "|---|---|---|---|",
        *(f"| {operation} | {library} | {place} | {n} |" for operation, library, place, n in report.waits_between),
        *(
            f"| {operation} | {library} | {place} | {n} at logging |"
            for operation, library, place, n in report.waits_at_logging
        ),
        "",
        f"Waits that artkv asks for between two loggings: {waits_of(report, 'artkv')} a step; DeepSpeed: "
        f"{waits_of(report, 'deepspeed')}; others: {waits_of(report, None)}",
        f"DeepSpeed's bucket: {report.bucket_elements:,} elements for {report.trainable_elements:,} trainable ones, "
        f"{report.buffer_bytes / 1e6:.1f} MB; its default would take {report.default_bucket_bytes / 1e6:.0f} MB",
        f"Peak: {report.peak_host_bytes / 1e6:.0f} MB of host memory, {report.peak_device_bytes / 1e6:.0f} MB of the "
        "device's",
    ]
    if report.cuda_synchronisations is not None:
        lines.append(f"CUDA runtime calls that wait, in five steps: {report.cuda_synchronisations}")
    return lines


def waits_of(report: Report, library: str | None) -> int:
    """Waits of a step without logging that a library asks for; None: all but artkv and DeepSpeed."""
    known = ("artkv", "deepspeed")
    return sum(n for _, found, _, n in report.waits_between if (found == library if library else found not in known))


if __name__ == "__main__":
    main()
