"""What can be known of a training step's speed without a card: operations, host time, shapes, copies, bytes kept.

    python benchmarks/step_proxies.py --json proxies.json
    python benchmarks/step_proxies.py --tiny                  # whether the script works

A card waits for the host wherever launching takes longer than computing. So a model of BLIP2-OPT-2.7b's true depth (39,
12 and 32 blocks) and next to no width shows on a CPU what launching costs: how many operations a step hands to the
device, and how long the host takes for them beside stock BLIP-2's step, in turns. Beside these: the shapes of an
epoch's batches, copies of streamed blocks an optimizer step, and the bytes that a block of the true width keeps for
backward, against what `artkv plan` thinks. docs/throughput.md has the figures.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from random_world import SIZES, VARIED, is_made, make_world, run_settings
from rows import MEASURED, Row, Session, tell
from throughput import cpu_name
from true_rows import as_json
from turns import Contestant

ARTKV, STREAMED, PLAIN, TRAINER = "artkv", "artkv, streamed", "stock BLIP-2, plain step", "transformers Trainer"
REPLAYED = "artkv, a graph one operation"
_PICTURE_SIZE = (48, 40)  # nothing here looks at them
_COUNTER = "step_counts:StepOperations"
_ACCUMULATIONS = (1, 4)
_QUESTIONS = 48
_FEW_QUESTIONS = 6  # one painting's, where time is measured: the less there is to compute the better
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--label", default="", help="of this state of the code, kept in the figures")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each step that is timed (default 7)")
    parser.add_argument("--steps-of-a-turn", type=int, default=5, help="timed in a turn (default 5)")
    parser.add_argument("--epoch-steps", type=int, default=250, help="of 48 questions, for the shapes (default 250)")
    parser.add_argument("--folder", type=Path, help="of the random worlds, made if missing (default: temporary)")
    parser.add_argument("--tiny", action="store_true", help="toy models and few steps, to try the script")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.rounds, options.steps_of_a_turn, options.epoch_steps = 2, 2, 3
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        report = measure(options, Path(temporary))
    report["seconds"] = round(time.monotonic() - began, 1)
    print("\n".join(table(report)), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


def measure(options: argparse.Namespace, temporary: Path) -> dict[str, Any]:
    """All figures."""
    import torch

    folder = options.folder or temporary
    deep, wide = ("tiny", "tiny") if options.tiny else ("deep", "wide")
    # So many paintings that no epoch ends while steps are timed, and that one has the steps that are to be counted.
    deep_world = world_of(folder, deep, 60 if options.tiny else 600)
    wide_world = world_of(folder, wide, 60 if options.tiny else options.epoch_steps * _QUESTIONS // 6)
    report: dict[str, Any] = {
        "label": options.label,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    report |= of_steps(options, deep_world, deep, temporary)
    session = Session(None)
    for text in ("alike", VARIED):
        tree = settings(wide_world, wide, text, temporary / f"shapes {text}", _QUESTIONS)
        arguments = {"tree": tree, "steps": options.epoch_steps}
        session.run(Row(f"shapes, {text}", 600, "epoch_shapes:run_epoch_shapes", arguments))
    tree = settings(wide_world, wide, "alike", temporary / "kept", _QUESTIONS)
    arguments = {"tree": tree, "paintings": 8, "questions": _QUESTIONS, "text_tokens": 28}
    session.run(Row("kept bytes", 600, "step_counts:run_kept_bytes", arguments))
    for result in session.results:
        if result["status"] != MEASURED:
            raise SystemExit("\n".join([f"{result['row']}: {result['status']}", *result.get("log", [])]))
    report["shapes"] = {text: session.results[place] for place, text in enumerate(("alike", VARIED))}
    report["blocks"] = session.results[2]["blocks"]
    return report


def of_steps(options: argparse.Namespace, world: Path, size_name: str, temporary: Path) -> dict[str, Any]:
    """Operations, host seconds and copies of a step."""
    found: dict[str, Any] = {"operations": {}, "host_seconds": {}, "loads": {}}
    with contestants(world, size_name, temporary, _QUESTIONS, "bfloat16", has_trainer=False) as counted:
        for name, contestant in counted.items():
            # A graph takes the place of the third step of its shape; twenty steps have seen the usual shapes so often.
            contestant.run(20 if name == REPLAYED else 3, 1)
            contestant.begin_count(_COUNTER)
            found["operations"][name], _ = contestant.finish()
    # In float32, since the CPU's kernels of attention in bfloat16 compute for longer than the host takes for all else.
    with contestants(world, size_name, temporary, _FEW_QUESTIONS, "float32", has_trainer=True) as timed:
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for contestant in timed.values():
            contestant.run(3, 1)
        for number in range(options.rounds):
            tell(f"round {number + 1} of {options.rounds}")
            for name, contestant in timed.items():
                took, _ = contestant.run(1, options.steps_of_a_turn)
                seconds[name].append(took / options.steps_of_a_turn)
    found["host_seconds"] = {
        name: {"median": statistics.median(values), "fastest": min(values), "slowest": max(values)}
        for name, values in seconds.items()
    }
    for accumulation in _ACCUMULATIONS:
        found["loads"][str(accumulation)] = loads_of_a_step(world, size_name, accumulation, temporary)
    return found


@contextmanager
def contestants(
    world: Path, size_name: str, temporary: Path, questions: int, dtype: str, has_trainer: bool
) -> Iterator[dict[str, Contestant]]:
    """artkv resident, streamed and perhaps replayed, stock BLIP-2's plain step, perhaps the Trainer: none has begun."""
    started: dict[str, Contestant] = {}
    peer = (world, size_name, "alike", temporary / "peer", questions, dtype)

    def start(name: str, target: str, *arguments: Any) -> None:
        tell(f"starting {name}")
        started[name] = Contestant(name, target, arguments, temporary / f"{name}.log", _ENVIRONMENT)
        started[name].wait_until_ready()

    try:
        ways = [(ARTKV, "resident", "run_artkv_as_on_a_card"), (STREAMED, "stream", "run_artkv_as_on_a_card")]
        if not has_trainer:  # a replay on a CPU computes all the same: it can be counted and not timed
            ways.insert(1, (REPLAYED, "resident", "run_artkv_replayed"))
        for name, opt, target in ways:
            output = temporary / f"{name} {questions}"
            tree = settings(world, size_name, "alike", output, questions, opt=opt, dtype=dtype)
            start(name, f"step_counts:{target}", tree)
        start(PLAIN, "peer_rows:run_plain", *peer, "sdpa")
        if has_trainer:
            start(TRAINER, "peer_rows:run_trainer", *peer, False)
        yield started
    finally:
        for contestant in started.values():
            contestant.close()


def loads_of_a_step(world: Path, size_name: str, accumulation: int, temporary: Path) -> dict[str, Any]:
    """Copies of blocks in an optimizer step of so many micro-steps, after the first few."""
    tree = settings(world, size_name, "alike", temporary / f"loads {accumulation}", _FEW_QUESTIONS, opt="stream")
    tree["training"]["gradient_accumulation_steps"] = accumulation
    log = temporary / f"loads {accumulation}.log"
    contestant = Contestant("loads", "step_counts:run_artkv_as_on_a_card", (tree,), log, _ENVIRONMENT)
    try:
        contestant.wait_until_ready()
        contestant.run(1, 1)
        before = contestant.ask("loads")
        contestant.run(1, 1)  # two steps
        per_step = (contestant.ask("loads") - before) / 2
    finally:
        contestant.close()
    return {"per_optimizer_step": per_step, "blocks": SIZES[size_name].opt_layers, "slots": 2}


def settings(
    world: Path, size_name: str, text: str, output: Path, questions: int, opt: str = "", dtype: str = "bfloat16"
) -> dict[str, Any]:
    """Settings of an artkv run; opt: where its blocks are, with features from a cache; empty: encoded in each step."""
    switches = {"cache": bool(opt), "packing": True}
    tree = run_settings(world, size_name, text, output, questions, dtype, switches)
    tree["frozen"]["opt"] = opt or "resident"
    return as_json(tree)


def world_of(folder: Path, size_name: str, paintings: int) -> Path:
    """A world with small pictures, made if it is missing."""
    world = folder / f"world {size_name} {paintings}"
    if not is_made(world, size_name, paintings):
        make_world(world, size_name, paintings, picture_size=_PICTURE_SIZE)
    return world


def table(report: dict[str, Any]) -> list[str]:
    """The report as lines of Markdown."""
    lines = [
        f"{report['date']}; {report['machine']}; {report['seconds']:.0f} s; {report['label']}",
        "",
        f"| a step of {_QUESTIONS} questions | operations: forward | backward | optimizer | between | in all | "
        "x plain | views |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, counted in report["operations"].items():
        by_phase = counted["computing"]
        cells = [name, *(str(by_phase.get(phase, 0)) for phase in ("forward", "backward", "optimizer", "between"))]
        cells += [str(total(counted)), f"{total(counted) / total(report['operations'][PLAIN]):.2f}"]
        lines.append(f"| {' | '.join([*cells, str(sum(counted['views'].values()))])} |")
    lines += [
        "",
        f"| a step of {_FEW_QUESTIONS} questions | host ms | fastest to slowest turn | x plain |",
        "|---|---|---|---|",
    ]
    plain_seconds = report["host_seconds"][PLAIN]["median"]
    for name, seconds in report["host_seconds"].items():
        lines.append(
            f"| {name} | {1e3 * seconds['median']:.1f} | {1e3 * seconds['fastest']:.1f} to "
            f"{1e3 * seconds['slowest']:.1f} | {seconds['median'] / plain_seconds:.2f} |"
        )
    lines += [
        "",
        "| an epoch of | steps | distinct rows x columns | with answer columns | with answers | all tensors | "
        "tokens a question | padding |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for text, shapes in report["shapes"].items():
        lines.append(
            f"| questions {text} | {shapes['steps']} | {shapes['rows_columns']} | {shapes['with_answer_columns']} | "
            f"{shapes['with_answers']} | {shapes['all_tensors']} | {shapes['tokens_per_question']:.1f} | "
            f"{shapes['padding_share']:.1%} |"
        )
    lines += ["", "| micro-steps an optimizer step | copies of blocks | blocks, slots |", "|---|---|---|"]
    for accumulation, loads in report["loads"].items():
        copies, blocks, slots = loads["per_optimizer_step"], loads["blocks"], loads["slots"]
        lines.append(f"| {accumulation} | {copies:g} | {blocks}, {slots} |")
    lines += [
        "",
        "| a block's kept bytes | rows x columns | kept MB | planned MB | kept a token |",
        "|---|---|---|---|---|",
    ]
    for block in report["blocks"]:
        lines.append(
            f"| {'packed' if block['is_packed'] else 'one row a question'} | {block['rows']} x {block['columns']} | "
            f"{block['kept_bytes'] / 1e6:.2f} | {block['planned_bytes'] / 1e6:.2f} | {block['bytes_per_token']:.0f} |"
        )
    return lines


def total(counted: dict[str, dict[str, int]]) -> int:
    """Operations that compute, of all phases."""
    return sum(counted["computing"].values())


if __name__ == "__main__":
    main()
