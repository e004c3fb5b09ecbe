"""Many faults, at random moments, to supervised trainings: python -m tests.system.kill_test --faults 100

Runs with one rank, with two, and on the test cluster take turns. After each run its last checkpoint and its metrics are
compared with those of a run to which nothing happened. Prints a line for each fault and a table; exits with 1 if a run
differed, hung or gave up. Needs root, for disks that can be full and for the cluster.
"""

import argparse
import itertools
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from artkv.quickstart.tokenizer import train_tokenizer
from tests.conftest import TINY_TEXTS, write_tiny_world
from tests.system.cluster.conftest import ENVIRONMENT
from tests.system.cluster.mini_cluster import MiniCluster, missing_requirements
from tests.system.faults import KINDS, Fault, Place, differences, disturbed, local, on_cluster, small_disk, undisturbed

_FAULTS_A_RUN = 6


def main(given: Sequence[str] | None = None) -> int:
    """Runs the test and returns the exit code."""
    options = _parser().parse_args(given)
    rng = random.Random(options.seed)
    faults: list[Fault] = []
    failures: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        disk = stack.enter_context(small_disk(Path(name) / "disk", mebibytes=256))
        world = write_tiny_world(Path(name) / "world", train_tokenizer(TINY_TEXTS, vocab_size=320))
        places = [stack.enter_context(_place(where, Path(name), options.silence)) for where in options.where]
        wanted = {place.name: undisturbed(place, world, disk / f"undisturbed {n}") for n, place in enumerate(places)}
        for number, place in enumerate(itertools.cycle(places)):
            if len(faults) >= options.faults:
                break
            kinds = [rng.choice(options.kinds) for _ in range(min(_FAULTS_A_RUN, options.faults - len(faults)))]

            def tell(fault: Fault) -> None:
                faults.append(fault)
                print(
                    f"{len(faults):4d}  {fault.place:10s}  {fault.kind:20s}  {fault.phase:10s}  {fault.seconds:6.1f} s",
                    flush=True,
                )

            try:
                found = differences(
                    disturbed(place, world, disk / f"run {number}", kinds, rng, tell), wanted[place.name]
                )
            except AssertionError as error:
                found = [str(error)]
            failures += [f"run {number} on {place.name}: {text}" for text in found]
            print(f"      {place.name:10s}  {found or 'the undisturbed bytes'}", flush=True)
            shutil.rmtree(disk / f"run {number}", ignore_errors=True)  # else the disk is full without being told to
        if failures:
            print((Path(name) / "log").read_text(errors="replace")[-20_000:])
    print(_table(faults))
    minutes = (time.monotonic() - began) / 60
    print(f"{len(faults)} faults in {minutes:.0f} min, seed {options.seed}: {len(failures)} failures")
    print("\n".join(failures))
    return 1 if failures else 0


def _table(faults: Sequence[Fault]) -> str:
    """Seconds until the next training step, by place and kind."""
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for fault in faults:
        for kind in (fault.kind, "all"):
            seconds[fault.place, kind].append(fault.seconds)
    lines = ["| where | fault | times | median s | worst s |", "|---|---|---|---|---|"]
    for (place, kind), values in sorted(seconds.items()):
        lines.append(f"| {place} | {kind} | {len(values)} | {statistics.median(values):.1f} | {max(values):.1f} |")
    return "\n".join(lines)


@contextmanager
def _place(where: str, folder: Path, silence: int) -> Iterator[Place]:
    if where != "cluster":
        yield local({"one": 1, "two": 2}[where], folder, silence)
    elif missing := missing_requirements():
        sys.exit(f"no cluster here: {missing}; leave it out with --where one,two")
    else:
        with MiniCluster(folder / "cluster", ENVIRONMENT) as cluster:
            yield on_cluster(cluster, folder, silence)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--silence", type=int, default=30, help="of artkv supervise (default: its own, 30)")
    parser.add_argument(
        "--where", type=lambda text: text.split(","), default=["one", "two", "cluster"], metavar="PLACES"
    )
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=KINDS, help=f"of {', '.join(KINDS)}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
