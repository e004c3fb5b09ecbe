"""Everything that has to be measured on a card, the most wanted first: eight minutes of it, or what is given.

    python benchmarks/card_session.py --rows-file card.jsonl
    CUDA_VISIBLE_DEVICES= python benchmarks/card_session.py --size tiny --rows-file /tmp/card.jsonl      # a rehearsal

Nothing is downloaded: BLIP2-OPT-2.7b at its true size has random weights, made on the device. Each row is a process
with a time limit of its own and is appended to the file at once, so a session that is killed keeps what it had; a row
that fails says so and the next one runs. It ends at once, and measures nothing, if something cannot be imported.
docs/throughput.md says what of it was measured, and where.
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from random_world import open_world_without_weights
from rows import Row, Session, tell
from true_rows import DEFAULT, RESIDENT, STREAMED, Bench, row_name, training_table

ROOT = Path(__file__).resolve().parents[1]
_NEEDED = (
    "torch", "transformers", "deepspeed", "accelerate", "safetensors", "tokenizers", "PIL", "timm", "pytest",
    "artkv.cli", "artkv.quickstart.run", "artkv_row", "peer_rows", "answering_rows", "card_profile", "step_clock",
    "device_weights", "gpu_offload_modes",
)  # fmt: skip
_BUDGET_SECONDS = {"true": 465.0, "tiny": 900.0}
_SECONDS = {"true": 5.0, "tiny": 0.4}
_LIMIT_SECONDS = {"true": 60.0, "tiny": 90.0}
_PAINTINGS = {"true": 320, "tiny": 60}
# All that has the marker gpu, so that the others need not be collected.
_TESTS_FOR_A_CARD = (
    "models/opt/test_tree_kernels.py", "models/test_cuda_graphs.py", "frozen/test_cuda_transport.py",
    "monitoring/test_run_log.py",
)  # fmt: skip
_FEW, _USUAL, _MANY = 8, 48, 192


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows-file", type=Path, required=True, help="JSON lines: each row is appended at once")
    parser.add_argument("--size", choices=("true", "tiny"), default="true", help="tiny: a rehearsal, on a CPU too")
    parser.add_argument("--budget-seconds", type=float, help="of all rows (default 465)")
    parser.add_argument("--seconds", type=float, help="of timed steps in a row (default 5)")
    parser.add_argument("--only", nargs="*", help="only rows whose names hold one of these texts")
    parser.add_argument("--list", action="store_true", help="print the rows and their limits, and measure nothing")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(
            Path(temporary, "world"), options.size, Path(temporary, "runs"), "auto",
            options.seconds or _SECONDS[options.size], _LIMIT_SECONDS[options.size],
        )  # fmt: skip
        rows = all_rows(bench, Path(temporary))
        if options.only:
            rows = [row for row in rows if any(wanted in row.name for wanted in options.only)]
        if options.list:
            print("\n".join(f"{row.limit_seconds:5.0f} s  {row.name}" for row in rows))
            return
        is_cuda = import_everything()
        if options.size == "true" and not is_cuda:
            raise SystemExit("no CUDA device; --size tiny is a rehearsal without one")
        spent = time.monotonic() - began
        session = Session(options.rows_file, (options.budget_seconds or _BUDGET_SECONDS[options.size]) - spent)
        session.note("the machine", **the_machine(is_cuda, began))
        open_world_without_weights(bench.world, bench.size_name, _PAINTINGS[bench.size_name])
        session.run_all(rows)
    print("\n".join(table(session.results)), flush=True)
    print(f"{time.monotonic() - began:.0f} s in all", flush=True)


def all_rows(bench: Bench, temporary: Path) -> list[Row]:
    """In the order in which they are wanted."""
    rows = [
        *(row(size) for size in (_USUAL, _MANY) for row in (bench.default, bench.trainer)),
        *least_memory(bench),
        *bench.answers(RESIDENT),
        bench.placed(STREAMED, _USUAL),
        start_from_files(bench, temporary),
        *bench.answers(STREAMED),
        gradient_tests(),
        Row("quickstart", 240, command=(
            sys.executable, "-m", "artkv", "quickstart", "--ranks", "1", "--output-dir", str(temporary / "quickstart"),
        )),
        Row("link", 45, "card_session:run_link", {"tiny": bench.size_name == "tiny"}),
        *(profile_of(bench, size) for size in (_USUAL, _MANY)),
        bench.placed(RESIDENT, _USUAL),
        bench.artkv(f"{STREAMED}, 4 micro-steps", _USUAL, {"opt": "stream"}, gradient_accumulation_steps=4),
        bench.artkv(
            f"{STREAMED}, keeps 2GiB", _USUAL, {"opt": "stream"}, may_be_refused=True, activation_checkpointing="2GiB"
        ),
    ]  # fmt: skip
    if bench.size_name == "tiny":  # the quickstart's time is up there: a rehearsal of that, too
        return [replace(row, limit_seconds=20) if row.name == "quickstart" else row for row in rows]
    return rows


def least_memory(bench: Bench) -> list[Row]:
    """Few questions streamed and recomputed: what is the least of all memory, and PyTorch's other way to hold it."""

    def row(how: str, slots: int = 2, variables: dict[str, str] | None = None, **training: Any) -> Row:
        name, frozen = f"{STREAMED}, recomputed{how}", {"opt": "stream", "slots": slots}
        named = bench.artkv(name, _FEW, frozen, activation_checkpointing=True, **training)
        return replace(named, environment=variables or {})

    return [
        row(""),
        row(", expandable segments", variables={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
        row(", one slot", slots=1),
        row(", optimizer in host memory", deepspeed="zero2_bf16_offload_optimizer.json"),
    ]


def profile_of(bench: Bench, batch_size: int) -> Row:
    """Where a step's time goes, OPT resident."""
    name = row_name(f"{RESIDENT}, profile", batch_size)
    return Row(
        name,
        bench.limit_seconds,
        "card_profile:run_profile",
        {"tree": bench.tree(name, batch_size, {"opt": "resident"})},
    )


def gradient_tests() -> Row:
    """Tests that only a card can run: gradients of what replays recorded kernels against eager ones, bit for bit."""
    files = (str(ROOT / "tests" / file) for file in _TESTS_FOR_A_CARD)
    return Row("tests of CUDA", 60, command=(sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu", *files))


def start_from_files(bench: Bench, temporary: Path) -> Row:
    """How long it takes from the command to the first step where weights are in files, as they are in use.

    They were just written, so the files are in the page cache. Twice: at first no digests of the weights are
    remembered, and no features are cached.
    """
    name = row_name(f"{DEFAULT}, weights from files", _USUAL)
    arguments = {
        "tree": bench.tree(name, _USUAL, None), "world": str(bench.world), "folder": str(temporary / "files"),
    }  # fmt: skip
    return Row(name, 2.4 * bench.limit_seconds, "card_session:run_start_from_files", arguments)


def run_start_from_files(path: Path, tree: dict[str, Any], world: str, folder: str) -> None:
    """The process of a row: writes the weights, and then starts a training twice, in a process of its own each.

    Its figures are the first one's; `again` has the second's start.
    """
    import device_weights

    source, target = Path(world, "blip2"), Path(folder)
    shutil.copytree(source, target, dirs_exist_ok=True)
    began = time.monotonic()
    device_weights.write_where_missing(target)
    written = time.monotonic() - began
    tree["model"]["blip2"] = str(target)
    # Nothing is remembered of earlier rows.
    session = Session(None, environment={"XDG_CACHE_HOME": str(target / "cache"), "ARTKV_CACHE": str(target / "artkv")})
    starts = []
    for _ in range(2):
        arguments = {"tree": tree, "seconds": 1.0, "takes_losses": False, "waits": False}
        found = session.run(Row("start", 600, "true_rows:run_artkv_row", arguments))
        starts.append({name: value for name, value in found.items() if name not in ("row", "wall_seconds")})
        figures = {**starts[0], "writing_seconds": written}
        if len(starts) == 2:
            figures["again"] = {name: found.get(name) for name in ("imported_seconds", "start_seconds")}
        path.write_text(json.dumps(figures), encoding="utf-8")
        if found["status"] != "measured":
            raise RuntimeError("\n".join([found["status"], *found.get("log", [])]))
        tree["run"]["output_dir"] += "_again"


def run_link(path: Path, tiny: bool) -> None:
    """The process of a row: the link's rate, by which streaming is judged, as gpu_offload.py measures it."""
    import torch
    from gpu_offload import measure_link, new_report
    from gpu_offload_modes import RandomOpt, opt_2_7b, toy_opt

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    opt = RandomOpt(toy_opt() if tiny else opt_2_7b(), device, 32, 32)
    report = new_report(device, opt.config)
    measure_link(opt, report)
    path.write_text(
        json.dumps(
            {
                "pinned_bytes_per_second": report.pinned_bytes_per_second,
                "pageable_bytes_per_second": report.pageable_bytes_per_second,
                "host_memory_is_pinned": report.host_memory_is_pinned,
                "block_bytes": report.model["block_bytes"],
            }
        ),
        encoding="utf-8",
    )


def import_everything() -> bool:
    """Imports in a process of its own, which opens no context here; ends this one where something is not there.

    Returns whether there is a CUDA device.
    """
    tell("imports")
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "import torch\nprint('CUDA:', torch.cuda.is_available())"
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    os.environ["PYTHONPATH"] = path
    done = subprocess.run([sys.executable, "-c", code, *_NEEDED], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"something cannot be imported, so nothing is measured:\n{done.stderr[-2000:]}")
    return "CUDA: True" in done.stdout


def the_machine(is_cuda: bool, began: float) -> dict[str, Any]:
    """The card's name and memory, and versions."""
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "card": "none (CPU)"}
    if is_cuda:
        asked = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used,driver_version", "--format=csv,noheader"]
        try:
            found["card"] = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            found["card"] = f"CUDA, and nvidia-smi said {error}"
    for name in ("torch", "transformers", "deepspeed"):
        found[name] = importlib.import_module("importlib.metadata").version(name)
    return found | {"seconds_before": round(time.monotonic() - began, 1)}


def table(results: list[dict[str, Any]]) -> list[str]:
    """All rows as Markdown: trainings, answers, the link, the rest."""
    from answering_rows import answering_table
    from card_profile import profile_lines

    machine = results[0]
    lines = [
        f"{machine['date']}; {machine['card']}; {machine['cores']} cores; torch {machine['torch']}, transformers "
        f"{machine['transformers']}, deepspeed {machine['deepspeed']}",
        "",
        *training_table([result for result in results[1:] if not is_another(result)]),
        "",
        *answering_table(results),
        "",
        *link_lines(results),
        "",
        *profile_lines(results),
    ]
    commands = [result for result in results if "exit_status" in result]
    return lines + [f"{r['row']}: {r['status']}, {r['wall_seconds']} s; {r['output'][-1:]}" for r in commands]


def is_another(result: dict[str, Any]) -> bool:
    """Whether the row is no training."""
    return "exit_status" in result or any(name in result["row"] for name in ("answer", "link", "profile"))


def link_lines(results: list[dict[str, Any]]) -> list[str]:
    """What streaming reached of the link's rate."""
    link = next((result for result in results if result.get("pinned_bytes_per_second")), None)
    if link is None:
        return ["link: not measured"]
    rate = link["pinned_bytes_per_second"]
    lines = [f"link: {rate / 1e9:.1f} GB/s page-locked, {link['pageable_bytes_per_second'] / 1e9:.1f} pageable"]
    for result in results:
        if result.get("loads_per_step") and result.get("step_seconds"):
            reached = result["loads_per_step"] * link["block_bytes"] / result["step_seconds"]
            lines.append(f"{result['row']}: {reached / 1e9:.1f} GB/s of copies over a whole step, {reached / rate:.0%}")
    return lines


if __name__ == "__main__":
    main()
