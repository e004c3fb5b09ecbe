"""How long a start takes on the host, from the command to the first step.

    python benchmarks/start_time.py --json start.json
    python benchmarks/start_time.py --size true --folder /big/disk/true    # 7.5 GB of weights, made if missing

What only a card does is not in it: its context, weights on their way to it, kernels that are compiled, the trial of the
largest micro-batch. A device of 80 GiB is made up, so that memory is predicted and a placement chosen as there. The
first start knows no digests of the weights and no features; the others do, and their files are in the page cache.
Beside them stands what importing torch, transformers' BLIP-2 and DeepSpeed takes alone, which any trainer does.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from random_world import is_made, make_world, open_world_without_weights
from rows import MEASURED, Row, Session
from step_clock import since_start, write_figures
from step_proxies import settings

from artkv.heavy_imports import heavy_imports

IMPORTS, FIRST, AGAIN = "torch, transformers and DeepSpeed imported", "first start", "start"
STAGES = {
    "imported": "imports",
    "placed": "digests, placement",
    "loaded": "model and features",
    "ready": "engine and log",
}
WITH_WEIGHTS = "blip2 with weights"
_GIB = 2**30
_QUESTIONS = 48
_PAINTINGS = 24


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("true", "deep", "tiny"), default="deep", help="of the model (default deep)")
    parser.add_argument("--folder", type=Path, help="of the random world, made if missing (default: temporary)")
    parser.add_argument("--turns", type=int, default=7, help="starts after the first one (default 7)")
    parser.add_argument("--label", default="", help="of this state of the code, kept in the figures")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        report = measure(options, Path(temporary))
    print("\n".join(table(report)), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


def measure(options: argparse.Namespace, temporary: Path) -> dict[str, Any]:
    """Seconds of each turn."""
    world = options.folder or temporary / "world"
    if options.size == "true":
        import device_weights

        open_world_without_weights(world, "true", _PAINTINGS)
        # Beside the folder without weights, from which other scripts make theirs on a card.
        shutil.copytree(world / "blip2", world / WITH_WEIGHTS, dirs_exist_ok=True)
        device_weights.write_where_missing(world / WITH_WEIGHTS)
    elif not is_made(world, options.size, _PAINTINGS):
        make_world(world, options.size, _PAINTINGS)
    cache = {"XDG_CACHE_HOME": str(temporary / "cache"), "ARTKV_CACHE": str(temporary / "artkv")}
    session, found = Session(None, environment=cache), []
    for number in range(options.turns + 1):
        tree = settings(world, options.size, "alike", temporary / f"run {number}", _QUESTIONS)
        del tree["frozen"]
        if options.size == "true":
            tree["model"]["blip2"] = str(world / WITH_WEIGHTS)
        session.run(Row(AGAIN if number else FIRST, 1200, "start_time:run_start", {"tree": tree}))
        session.run(Row(IMPORTS, 120, "start_time:run_imports"))
    for result in session.results:
        if result["status"] != MEASURED:
            raise SystemExit("\n".join([f"{result['row']}: {result['status']}", *result.get("log", [])]))
        found.append({name: value for name, value in result.items() if name != "status"})
    return {"label": options.label, "date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "turns": found}


def run_imports(path: Path) -> None:
    """The process of a row: the libraries alone, as anybody imports them."""
    import deepspeed  # noqa: F401
    import torch  # noqa: F401
    from transformers import Blip2ForConditionalGeneration  # noqa: F401

    write_figures(path, {"imported": since_start()})


def run_start(path: Path, tree: dict[str, Any]) -> None:
    """The process of a row: `artkv train` up to its first step."""
    with heavy_imports():  # as `artkv train` does
        import artkv.session
        import artkv.training.loop
        import artkv.training.placing
        import artkv.training.run
    figures = {"imported": since_start()}

    from turns import EndOfTurns

    from artkv.config import Config
    from artkv.distributed import process_group
    from artkv.planning.device import Device

    def timed(module: Any, name: str, stage: str) -> None:
        original = getattr(module, name)

        def call(*inputs: Any, **options: Any) -> Any:
            result = original(*inputs, **options)
            figures.setdefault(stage, since_start())
            return result

        setattr(module, name, call)

    def end(*_: Any, **__: Any) -> None:
        figures["ready"] = since_start()
        write_figures(path, figures)
        raise EndOfTurns

    artkv.session.shared_device = lambda world: Device("NVIDIA A100-SXM4-80GB", 80 * _GIB, 80 * _GIB)  # type: ignore[attr-defined]
    timed(artkv.session.Session, "place", "placed")
    timed(artkv.session.Session, "load", "loaded")
    artkv.training.placing.forward_backward = lambda *_: None  # type: ignore[assignment]
    artkv.training.loop.train_step = end  # type: ignore[attr-defined]
    config = Config.model_validate(tree)
    with suppress(EndOfTurns), process_group(config.distributed.timeout_minutes, on_cpu=True) as world:
        artkv.training.run.train(config, None, world)


def table(report: dict[str, Any]) -> list[str]:
    """Medians as Markdown."""
    turns = report["turns"]
    lines = [
        f"{report['date']}; {report['cores']} cores; {report['label']}",
        "",
        f"| seconds | {' | '.join(STAGES.values())} | in all (fastest to slowest) |",
        f"|---|{'---|' * (len(STAGES) + 1)}",
    ]
    for name in (IMPORTS, FIRST, AGAIN):
        chosen = [turn for turn in turns if turn["row"] == name]
        if not chosen:
            continue
        before, parts = [0.0] * len(chosen), []
        for stage in STAGES:
            ends = [turn[stage] for turn in chosen if stage in turn]
            parts.append(f"{statistics.median(b - a for a, b in zip(before, ends, strict=True)):.2f}" if ends else "")
            before = ends or before
        median = statistics.median(before)
        lines.append(f"| {name} | {' | '.join(parts)} | **{median:.2f}** ({min(before):.2f} to {max(before):.2f}) |")
    return lines


if __name__ == "__main__":
    main()
