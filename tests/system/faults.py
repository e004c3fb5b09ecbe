"""Faults, and the supervised trainings that they are done to; what those leave is compared with what others leave.

A place is where a training runs: one or two ranks on this machine, or a job of the test cluster. Its run's folder lies
on a disk of its own, which can be full.
"""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from artkv.run_folder.checkpoint import ADAPTER, OPTIMIZER
from artkv.run_folder.heartbeat import Beat, Phase
from tests.system.cluster.jobs import shape
from tests.system.cluster.mini_cluster import MiniCluster
from tests.system.ranks import free_port
from tests.system.run_files import beats_of, final

Kind = Literal["SIGKILL", "SIGSTOP", "SIGTERM", "full disk", "read-only disk", "truncated checkpoint"]
KINDS: tuple[Kind, ...] = ("SIGKILL", "SIGSTOP", "SIGTERM", "full disk", "read-only disk", "truncated checkpoint")
PHASES: tuple[Phase, ...] = ("training", "saving", "validating", "starting")
# Seconds that a disk stays full or read-only, and that a fault may take to be over: it hangs if it takes longer.
DISK_SECONDS = 3.0
HANGS = 300.0
_SETTINGS = (
    "training.batch_size=2", "evaluation.each_epoch=true", "run.log_every=1", "run.checkpoint_every=7",
    "distributed.timeout_minutes=30", "training.num_epochs=30", "frozen.opt=stream",
)  # fmt: skip
# What a step does not decide: how long it took, and how much memory was used.
_OF_THE_MACHINE = ("time", "seconds", "_gib", "_bytes", "per_second", "slowest", "utilization", "share", "flops")


@dataclass(frozen=True)
class Fault:
    """What was done. phase: what the rank was at. seconds: until the next training step of any start."""

    kind: Kind
    phase: Phase
    place: str
    seconds: float


@dataclass(frozen=True)
class Place:
    """Where a training runs.

    start: starts a supervised training with its arguments, and gives what ends with it. signal: sends a signal to the
    process of a rank. within: runs a shell command where the ranks see the folder, once on each host.
    """

    name: str
    num_ranks: int
    start: Callable[[Path, Sequence[str]], "subprocess.Popen[bytes]"]
    signal: Callable[[Beat, signal.Signals], None]
    within: Callable[[str], None]


def local(num_ranks: int, folder: Path, silence: int) -> Place:
    """One process, or two of the deepspeed launcher's."""

    def start(run_dir: Path, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
        launcher = [sys.executable, "-m"]
        if num_ranks > 1:
            launcher = [
                str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", str(num_ranks),
                "--master_port", free_port(), "--module",
            ]  # fmt: skip
        supervisor = [sys.executable, "-m", "artkv", "supervise", "--restarts", "1000", "--silence", str(silence), "--"]
        with (folder / "log").open("ab") as log:
            return subprocess.Popen([*supervisor, *launcher, *arguments], stdout=log, stderr=log)

    def send(beat: Beat, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(beat.pid, number)

    def within(command: str) -> None:
        subprocess.run(["sh", "-c", command], check=True, capture_output=True)

    return Place(f"{num_ranks} rank{'s' if num_ranks > 1 else ''}", num_ranks, start, send, within)


def on_cluster(cluster: MiniCluster, folder: Path, silence: int) -> Place:
    """A job of train.sbatch with a rank on each of two nodes."""
    inside = {cluster.output(node, ["hostname"]): node for node in cluster.nodes}

    def start(run_dir: Path, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
        variables = {
            "CONFIG": arguments[arguments.index("--config") + 1], "OUTPUT_DIR": str(run_dir), "RESTARTS": "1000",
            "SILENCE": str(silence),
        }  # fmt: skip
        options = ["--wait", f"--output={folder}/log", *shape("train.sbatch", 2, 1)]
        return cluster.begin(
            "head", ["sbatch", *options, "launch/train.sbatch", *arguments[arguments.index("--set") :]], variables
        )

    def send(beat: Beat, number: signal.Signals) -> None:
        cluster.on(inside[beat.host], ["kill", f"-{number.name.removeprefix('SIG')}", str(beat.pid)])

    def within(command: str) -> None:
        for node in cluster.nodes:
            cluster.output(node, ["sh", "-c", command])

    return Place("cluster", 2, start, send, within)


def arguments(world: Path, run_dir: Path) -> list[str]:
    """What `artkv` is given."""
    settings = (*_SETTINGS, f"run.output_dir={run_dir}")
    return [
        "artkv", "train", "--config", str(world / "config.yaml"), "--resume", "auto",
        *(word for setting in settings for word in ("--set", setting)),
    ]  # fmt: skip


@contextmanager
def small_disk(folder: Path, mebibytes: int = 64) -> Iterator[Path]:
    """A file system of that size; needs root."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def outcome(run_dir: Path) -> dict[str, Any]:
    """All that a run decides: the last checkpoint's bytes, and the metrics but for times and memory."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [
        {name: value for name, value in json.loads(line).items() if not any(part in name for part in _OF_THE_MACHINE)}
        for line in lines
    ]
    return {name: (final(run_dir) / name).read_bytes() for name in (ADAPTER, OPTIMIZER)} | {"metrics": records}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What is not the same in two outcomes."""
    found = [name for name in (ADAPTER, OPTIMIZER) if one[name] != other[name]]
    if len(one["metrics"]) != len(other["metrics"]):
        found.append(f"{len(one['metrics'])} metrics for {len(other['metrics'])}")
    for a, b in zip(one["metrics"], other["metrics"], strict=False):
        found += [
            f"step {b['step']}: {n} is {a.get(n)} for {b.get(n)}" for n in a.keys() | b.keys() if a.get(n) != b.get(n)
        ]
    return found[:5]


def undisturbed(place: Place, world: Path, run_dir: Path) -> dict[str, Any]:
    """The outcome of a run to which nothing happens."""
    process = place.start(run_dir, arguments(world, run_dir))
    assert process.wait() == 0, f"{run_dir}: the undisturbed run ended with {process.returncode}"
    return outcome(run_dir)


def disturbed(
    place: Place, world: Path, run_dir: Path, faults: Sequence[Kind], rng: random.Random, tell: Callable[[Fault], None]
) -> dict[str, Any]:
    """The outcome of a run to which the faults are done, each once the one before has been overcome.

    `tell` hears of each that was. The run may end before all are done. Raises `AssertionError` where it hangs, or ends
    without being at its end.
    """
    process = place.start(run_dir, arguments(world, run_dir))
    try:
        for kind in faults:
            phase = rng.choice(PHASES)
            if phase == "starting":  # again, that is
                if not _wait_for_phase(process, run_dir, "training", rng):
                    break
                before = list(beats_of(run_dir).values())
                place.signal(before[0], signal.SIGKILL)
                while process.poll() is None and {beat.pid for beat in beats_of(run_dir).values()} & {before[0].pid}:
                    time.sleep(0.01)
            if not _wait_for_phase(process, run_dir, phase, rng):
                break
            began, before = time.monotonic(), list(beats_of(run_dir).values())
            _do(kind, place, run_dir, rng)
            if not _wait_for_step(process, run_dir, before, ends="disk" not in kind):
                break
            tell(Fault(kind, phase, place.name, time.monotonic() - began))
        deadline = time.monotonic() + HANGS
        while process.poll() is None:
            assert time.monotonic() < deadline, "the run does not end"
            time.sleep(0.05)
        assert process.returncode == 0, f"the run ended with {process.returncode}"
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    return outcome(run_dir)


def _do(kind: Kind, place: Place, run_dir: Path, rng: random.Random) -> None:
    """The fault itself; a disk is well again when it returns."""
    victim = beats_of(run_dir)[rng.randrange(place.num_ranks)]
    disk = run_dir.parent
    if kind == "full disk":
        filler = disk / "filler"
        subprocess.run(["sh", "-c", f"cat /dev/zero >{filler}"], capture_output=True, check=False)
        time.sleep(DISK_SECONDS)
        filler.unlink()
    elif kind == "read-only disk":
        # Over itself: what is open stays open, and whatever is opened, made or renamed from here on is refused.
        quoted = shlex.quote(str(run_dir))
        place.within(f"mount --bind {quoted} {quoted} && mount -o remount,bind,ro {quoted}")
        time.sleep(DISK_SECONDS)
        place.within(f"umount {quoted}")
    else:
        if kind == "truncated checkpoint":
            folders = sorted((run_dir / "checkpoints").glob("step_????????"))
            if folders:
                os.truncate(folders[-1] / rng.choice([ADAPTER, OPTIMIZER]), 1000)
        number = {"SIGSTOP": signal.SIGSTOP, "SIGTERM": signal.SIGTERM}.get(kind, signal.SIGKILL)
        place.signal(victim, number)


def _wait_for_phase(process: "subprocess.Popen[bytes]", run_dir: Path, phase: Phase, rng: random.Random) -> bool:
    """Waits for a moment in which a rank is at `phase`, after a few more steps; False if the run is over before."""
    deadline = time.monotonic() + HANGS
    while process.poll() is None:
        assert time.monotonic() < deadline, f"the run is never {phase}"
        beats = beats_of(run_dir)
        if beats and all(beat.phase == phase for beat in beats.values()):
            if phase in ("training", "starting"):
                time.sleep(rng.uniform(0.0, 2.0))
            return process.poll() is None
        time.sleep(0.002)
    return False


def _wait_for_step(process: "subprocess.Popen[bytes]", run_dir: Path, before: Sequence[Beat], ends: bool) -> bool:
    """Waits for a step after `before`, of a new start where the fault ends the old one; False if the run is over."""
    deadline = time.monotonic() + HANGS
    starts, step = {beat.pid_start for beat in before}, max(beat.step for beat in before)
    while process.poll() is None:
        assert time.monotonic() < deadline, "the run does not go on"
        beats = beats_of(run_dir).values()
        is_new = all(beat.pid_start not in starts for beat in beats)
        if beats and all(beat.step > (beat.first_step if is_new else step) for beat in beats) and (is_new or not ends):
            return True
        time.sleep(0.01)
    return False
