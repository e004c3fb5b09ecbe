"""Rows of a card: whole trainings of BLIP2-OPT-2.7b, of artkv's and of its peers', each with the card to itself.

`python benchmarks/throughput.py --size true` runs `training_rows`, `python benchmarks/gpu_offload.py --training` the
`streaming_rows`, and card_session.py some of each. Every row is a process, and weights are made on the device.
"""

import importlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rows import MEASURED, Row

from artkv.heavy_imports import heavy_imports

TRAINER = "transformers Trainer"
DEFAULT, RESIDENT, STREAMED = "artkv, default config", "artkv, resident", "artkv, streamed"
# Random weights never end an answer, and where OPT streams each token costs a tenth of a second.
ANSWER_TOKENS = 16
_PLACEMENTS = {DEFAULT: None, RESIDENT: "resident", STREAMED: "stream"}


@dataclass(frozen=True)
class Bench:
    """What rows have in common.

    world: folder of `random_world`, whose BLIP-2 may lack its weights. output: folder for runs. seconds: of timed
    steps; limit_seconds: of a row, its start included.
    """

    world: Path
    size_name: str
    output: Path
    dtype: str
    seconds: float
    limit_seconds: float

    def tree(self, name: str, batch_size: int, frozen: dict[str, Any] | None, **training: Any) -> dict[str, Any]:
        """The settings of an artkv run; frozen: None leaves that section to its defaults, feature cache included."""
        from random_world import run_settings

        switches = {"cache": True, "packing": True}
        output = self.output / name.replace(" ", "_").replace(",", "").replace("/", "_")
        tree = run_settings(self.world, self.size_name, "alike", output, batch_size, self.dtype, switches)
        tree["training"] |= training
        if frozen is None:
            del tree["frozen"]
        else:
            tree["frozen"] |= frozen
        return as_json(tree)

    def artkv(
        self, name: str, batch_size: int, frozen: dict[str, Any] | None, may_be_refused: bool = False, **training: Any
    ) -> Row:
        """A training of artkv; the figures' name says how many questions a step it had."""
        name = row_name(name, batch_size)
        # An epoch of eight questions a step would be too long to wait for its end.
        arguments = {
            "tree": self.tree(name, batch_size, frozen, **training), "seconds": self.seconds, "waits": batch_size > 8,
        }  # fmt: skip
        return Row(name, self.limit_seconds, "true_rows:run_artkv_row", arguments, may_be_refused=may_be_refused)

    def peer(self, name: str, batch_size: int, function: str, *more: Any) -> Row:
        """A peer's training, whose loss is taken on the questions that artkv's default row began with."""
        arguments = {
            "function": function, "world": str(self.world), "size_name": self.size_name, "batch_size": batch_size,
            "output": str(self.output / function), "dtype": self.dtype, "more": list(more), "seconds": self.seconds,
        }  # fmt: skip
        needs = {"first_rows": (row_name(DEFAULT, batch_size), "first_rows")}
        return Row(row_name(name, batch_size), self.limit_seconds, "true_rows:run_peer_row", arguments, needs=needs)

    def default(self, batch_size: int) -> Row:
        """artkv with nothing set that need not be: no feature cache either, so that each step encodes its pictures."""
        return self.artkv(DEFAULT, batch_size, None)

    def placed(self, name: str, batch_size: int) -> Row:
        """artkv with OPT resident or streamed, and features from a cache."""
        return self.artkv(name, batch_size, {"opt": _PLACEMENTS[name]})

    def trainer(self, batch_size: int) -> Row:
        """transformers' Trainer around stock BLIP-2."""
        return self.peer(TRAINER, batch_size, "peer_rows:run_trainer", False)

    def deepspeed(self, batch_size: int) -> Row:
        """DeepSpeed around stock BLIP-2."""
        return self.peer("DeepSpeed ZeRO-2, LLaVA style", batch_size, "peer_rows:run_deepspeed")

    def answers(self, placement: str) -> list[Row]:
        """artkv's evaluation with OPT resident or streamed, and stock BLIP-2's `generate` in the same memory."""
        name = f"{placement}, answers"
        tree = self.tree(name, 48, {"opt": _PLACEMENTS[placement]})
        del tree["frozen"]["feature_cache"]
        tree["dataset"]["test"] = tree["dataset"]["train"]
        tree["evaluation"] = tree.get("evaluation", {}) | {"max_new_tokens": ANSWER_TOKENS}
        artkv = {"tree": tree, "seconds": self.seconds}
        stock = {
            "world": str(self.world), "size_name": self.size_name, "dtype": self.dtype, "seconds": self.seconds,
            "streams": placement == STREAMED,
        }  # fmt: skip
        needs = {"memory_bytes": (name, "peak_bytes"), "max_new_tokens": (name, "max_new_tokens")}
        peer = f"stock BLIP-2 generate{', accelerate cpu_offload' if placement == STREAMED else ''}, answers"
        return [
            Row(name, self.limit_seconds, "answering_rows:run_artkv_answers", artkv),
            Row(peer, self.limit_seconds, "answering_rows:run_stock_answers", stock, needs=needs),
        ]


def row_name(name: str, batch_size: int) -> str:
    """Such as `artkv, resident; 48`."""
    return f"{name}; {batch_size}"


def training_rows(bench: Bench, batch_sizes: list[int]) -> list[Row]:
    """Those of docs/throughput.md, the most wanted first."""
    rows: list[Row] = []
    for size in batch_sizes:
        rows += [bench.default(size), bench.trainer(size), bench.placed(RESIDENT, size), bench.placed(STREAMED, size),
                 bench.deepspeed(size)]  # fmt: skip
    return rows


def streaming_rows(bench: Bench, batch_size: int, kept: str = "2GiB") -> list[Row]:
    """Copies an optimizer step with and without accumulation, and what kept activations give; kept: a size."""
    rows = [
        bench.artkv(
            f"{STREAMED}, {steps} micro-steps", batch_size, {"opt": "stream"}, gradient_accumulation_steps=steps
        )
        for steps in (1, 4)
    ]
    rows.append(
        bench.artkv(
            f"{STREAMED}, 4 micro-steps, keeps {kept}",
            batch_size,
            {"opt": "stream"},
            may_be_refused=True,
            gradient_accumulation_steps=4,
            activation_checkpointing=kept,
        )
    )
    for placement in (STREAMED, RESIDENT):
        for keeps in (kept, True, False):
            text = f"keeps {keeps}" if isinstance(keeps, str) else f"recomputes {str(keeps).lower()}"
            rows.append(
                bench.artkv(
                    f"{placement}, {text}",
                    batch_size,
                    {"opt": _PLACEMENTS[placement]},
                    may_be_refused=True,
                    activation_checkpointing=keeps,
                )
            )
    return rows


def run_artkv_row(
    path: Path, tree: dict[str, Any], seconds: float, waits: bool = True, takes_losses: bool = True
) -> None:
    """The process of an artkv row: `artkv train` by the settings of `tree`.

    waits: for a checkpoint at an epoch's end. takes_losses: before the first step, which then is not the first to
    compute.
    """
    with heavy_imports():  # as `artkv train` does
        from artkv_row import CHECKPOINT, run_artkv
        from step_clock import StepClock
        from turns import EndOfTurns

    clock = StepClock(path, tree["training"]["batch_size"], seconds, CHECKPOINT if waits else None)
    clock.takes_losses = takes_losses
    with suppress(EndOfTurns):
        run_artkv(clock, tree)


def run_peer_row(
    path: Path,
    function: str,
    world: str,
    size_name: str,
    batch_size: int,
    output: str,
    dtype: str,
    more: list[Any],
    seconds: float,
    first_rows: list[int] | None,
) -> None:
    """The process of a peer's row: a function of peer_rows.py."""
    from step_clock import StepClock
    from turns import EndOfTurns

    clock = StepClock(path, batch_size, seconds, first_rows=first_rows or list(range(batch_size)))
    module, name = function.split(":")
    with suppress(EndOfTurns):
        getattr(importlib.import_module(module), name)(
            clock, Path(world), size_name, "alike", Path(output), batch_size, dtype, *more
        )


def as_json(tree: Any) -> Any:
    """The settings with paths as texts."""
    if isinstance(tree, dict):
        return {key: as_json(value) for key, value in tree.items()}
    return str(tree) if isinstance(tree, Path) else tree


def training_table(results: list[dict[str, Any]]) -> list[str]:
    """Rows of trainings as Markdown; the ratio is to the Trainer's with as many questions a step."""
    rates = {result["row"]: result.get("questions_per_second") for result in results}
    lines = [
        "| row; questions a step | questions/s | x Trainer | ms a step (fastest to slowest) | checkpoint s | start s | "
        "first step s | peak GB, PyTorch | GB of the device in all | copies a step | loss off / on |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if "batch_size" not in result:
            if result["status"] != MEASURED:
                lines.append(f"| {result['row']} | {result['status']} | | | | | | | | | |")
            continue
        reference = rates.get(row_name(TRAINER, result["batch_size"]))
        rate = result.get("questions_per_second")
        asides = result.get("asides", {}).get("checkpoint", [])
        copies = result.get("loads_per_step")
        cells = [
            result["row"] if result["status"] == MEASURED else f"{result['row']} ({result['status']})",
            text(rate, "{:.1f}"),
            text(rate / reference if rate and reference else None, "{:.2f}"),
            f"{text(result['step_seconds'], '{:.0f}', 1e3)} ({text(result['fastest_step_seconds'], '{:.0f}', 1e3)} to "
            f"{text(result['slowest_step_seconds'], '{:.0f}', 1e3)})",
            text(sorted(asides)[len(asides) // 2] if asides else None, "{:.2f}"),
            text(result["start_seconds"], "{:.1f}"),
            text(result["first_step_seconds"], "{:.2f}"),
            text(result["peak_bytes"], "{:.2f}", 1e-9),
            text(result["device_bytes"], "{:.2f}", 1e-9),
            text(copies, "{:.1f}"),
            f"{text(result['loss_off'], '{:.4f}')} / {text(result['loss_on'], '{:.4f}')}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *loss_lines(results)]


def loss_lines(results: list[dict[str, Any]]) -> list[str]:
    """Whether rows with as many questions a step begin with the same loss, prefix off, on the same questions."""
    lines = []
    for size in sorted({result["batch_size"] for result in results if result.get("loss_off") is not None}):
        of_size = [result for result in results if result.get("batch_size") == size and result.get("loss_off")]
        first = [sorted(result["first_rows"]) for result in of_size]
        losses = [result["loss_off"] for result in of_size if sorted(result["first_rows"]) == first[0]]
        worst = (max(losses) - min(losses)) / min(losses)
        lines.append(f"{size} questions: losses of {len(losses)} of {len(of_size)} rows, on the same questions and "
                     f"with the prefix off, differ by {worst:.1e} at most")  # fmt: skip
    return lines


def text(value: float | None, form: str, factor: float = 1.0) -> str:
    """The value in that unit; `-` where it was not measured."""
    return "-" if value is None else form.format(value * factor)
