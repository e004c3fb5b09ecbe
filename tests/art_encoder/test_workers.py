"""A training whose decoding processes get the signals of the whole job too, or lose their rank."""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from artkv.art_encoder.workers import begin_worker, start_fork_server
from artkv.cli import main
from tests.art_encoder.conftest import FAST
from tests.art_encoder.test_ranks import wait_for
from tests.system.ranks import SECONDS, Ranks, run_to_end, started

pytestmark = pytest.mark.system

# So many that none of these comes to its end by itself.
EPOCHS = 10_000
HELD: list[Any] = []


def training(folders: Path, output: Path, epochs: int) -> list[str]:
    """Arguments for a small network whose pictures two processes decode."""
    options = FAST | {
        "architecture": "test_efficientnet",
        "workers": 2,
        "data": folders,
        "output-dir": output,
        "epochs": epochs,
    }
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["art-encoder", *words]


def of_a_terminal(arguments: Sequence[str]) -> int:
    """Shells have what they start in the background ignore SIGINT, and these tests may be of it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return main(arguments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_to_the_group_is_saved_and_leaves_no_process(
    folders: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As a terminal, torchrun and DeepSpeed send it; to the others first, so that they are needed after it."""
    output = tmp_path / "out"
    words = training(folders, output, EPOCHS)
    with started(words, tmp_path / "first", 1, of_a_terminal) as ranks:
        wait_for(output / "metrics.jsonl", ranks)
        for other in members(ranks.pid(0)) - {ranks.pid(0)}:
            os.kill(other, number)
        wait_for_epochs(output, epochs_done(output) + 2, ranks)
        ranks.send(number, [0])
        assert ranks.exit_codes() == [75], ranks.told()
        assert f"stopped by {number.name} after step" in ranks.told()
        assert "go on with --resume\n" in ranks.told()
        assert "Traceback" not in ranks.told()
        wait_for_end_of_group(ranks.pid(0))
    if number == signal.SIGTERM:  # without workers, which costs less: a result does not depend on them
        done = epochs_done(output)
        with started([*words, "--resume", "--workers", "0"], tmp_path / "second", 1) as ranks:
            wait_for_epochs(output, done + 1, ranks)
            ranks.send(number, [0])
            assert ranks.exit_codes() == [75], ranks.told()


def on_a_console_that_takes_nothing(arguments: Sequence[str]) -> int:
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), 2)
    return main(arguments)


def test_a_terminal_that_is_gone_ends_no_training(folders: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = [*training(folders, output, 2), "--workers", "0"]
    run_to_end(words, tmp_path, 1, on_a_console_that_takes_nothing)
    assert epochs_done(output) == 2


def test_a_killed_rank_leaves_no_process(folders: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with started(training(folders, output, EPOCHS), tmp_path, 1) as ranks:
        wait_for(output / "metrics.jsonl", ranks)
        os.kill(ranks.pid(0), signal.SIGKILL)
        assert ranks.exit_codes() == [-9], ranks.told()
        wait_for_end_of_group(ranks.pid(0))


def leave_a_loader(_: Sequence[str]) -> int:
    """Ends with a loader that somebody still holds, as an error does."""
    start_fork_server("torch.utils.data")
    loader = DataLoader(
        list(range(8)), num_workers=1, multiprocessing_context="forkserver", worker_init_fn=begin_worker
    )
    HELD.append(iter(loader))
    assert next(HELD[0]) == 0
    return 0


def test_a_loader_that_is_left_keeps_nothing_from_its_end(tmp_path: Path) -> None:
    with started([], tmp_path, 1, leave_a_loader) as ranks:
        assert ranks.exit_codes() == [0], ranks.told()
        wait_for_end_of_group(ranks.pid(0))


def epochs_done(output: Path) -> int:
    return len((output / "metrics.jsonl").read_text().splitlines())


def wait_for_epochs(output: Path, number: int, ranks: Ranks) -> None:
    deadline = time.monotonic() + SECONDS
    while epochs_done(output) < number:
        assert ranks.all_live(), ranks.told()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def members(group: int) -> set[int]:
    """The processes of a group."""
    found = set()
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(ProcessLookupError):
            if os.getpgid(pid) == group:
                found.add(pid)
    return found


def wait_for_end_of_group(group: int) -> None:
    deadline = time.monotonic() + SECONDS / 10
    while left := members(group):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
