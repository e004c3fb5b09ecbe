"""Real signals to real ranks: all stop after one step, save, say so, and the next start ends with the same bytes."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.system.ranks import SECONDS, Ranks, run_to_end, started
from tests.system.run_files import final_bytes, steps_logged
from tests.system.test_launchers import command, train

pytestmark = pytest.mark.system

# Validations, and threads that decode, as a real run has them.
SETTINGS = ["dataset.workers=2", "evaluation.each_epoch=true", "distributed.timeout_minutes=5", "training.num_epochs=3"]


@pytest.fixture(scope="module")
def undisturbed(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_to_end(train(tiny_world, folder / "run", SETTINGS), folder)
    return folder / "run"


Start = Callable[..., Ranks]


@pytest.fixture
def start(tiny_world: Path, tmp_path: Path) -> Iterator[Start]:
    """`start(*more settings)`: a run of two ranks in `tmp_path / "run"`, from its checkpoint if it has one."""
    with ExitStack() as stack:

        def start_ranks(*settings: str) -> Ranks:
            arguments = [*train(tiny_world, tmp_path / "run", [*SETTINGS, *settings]), "--resume", "auto"]
            return stack.enter_context(started(arguments, tmp_path))

        yield start_ranks


def wait_until(condition: Callable[[], bool], ranks: Ranks | None = None) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        assert ranks is None or ranks.all_live(), f"ended too early: {ranks.told()}"
        time.sleep(0.005)


def marker(output: Path) -> dict[str, Any]:
    return json.loads((output / "preempted.json").read_text())


def check_resumed(output: Path, undisturbed: Path) -> None:
    """Everything that the undisturbed run left is there, once."""
    assert not (output / "preempted.json").exists()
    assert not (output / "run.lock").exists()
    assert final_bytes(output) == final_bytes(undisturbed)
    for kind in ("train", "validation"):
        logged = []
        for folder in (output, undisturbed):
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            logged.append([record["step"] for record in map(json.loads, lines) if record["kind"] == kind])
        assert logged[0] == logged[1]
    tags = ("train/loss", "validation/exact_match")
    curves = [
        [[event.step for event in EventAccumulator(str(folder)).Reload().Scalars(tag)] for tag in tags]
        for folder in (output, undisturbed)
    ]
    assert curves[0] == curves[1]


# To every process of the job, as `scancel` and `--signal` send it; and to one rank alone.
@pytest.mark.parametrize(
    ("number", "ranks"), [(signal.SIGTERM, (0, 1)), (signal.SIGUSR1, (1,)), (signal.SIGHUP, (0, 1))]
)
def test_signals_stop_all_ranks_with_75_and_the_resume_gives_the_undisturbed_bytes(
    start: Start, undisturbed: Path, tmp_path: Path, number: signal.Signals, ranks: tuple[int, ...]
) -> None:
    output = tmp_path / "run"
    first = start()
    wait_until(lambda: steps_logged(output) >= 11, first)  # the second epoch is steps 10 to 18
    for _ in range(3):  # the later ones fall into the save
        first.send(number, ranks)
        time.sleep(0.02)
    assert first.exit_codes() == [75, 75]
    left = marker(output)
    assert (left["reason"], left["job"]) == (number.name, None)
    assert 11 < left["step"] < steps_logged(undisturbed)
    assert left["step"] == steps_logged(output)
    assert (output / "checkpoints" / "latest").read_text().strip() == f"step_{left['step']:08d}"
    assert f"artkv: stopped by {number.name} after step {left['step']}, which is saved" in first.told()
    assert "Traceback" not in first.told()
    assert (output / "logs" / "rank_00001.log").read_text().startswith("--- ")
    assert "Traceback" not in (output / "logs" / "rank_00001.log").read_text()

    second = start()
    assert second.exit_codes() == [0, 0]
    check_resumed(output, undisturbed)


def test_a_signal_before_the_first_step_stops_a_start(start: Start, tmp_path: Path) -> None:
    output = tmp_path / "run"
    ranks = start()
    wait_until((output / "run.lock").exists, ranks)
    ranks.send(signal.SIGTERM)
    assert ranks.exit_codes() == [75, 75]
    assert marker(output)["step"] in (0, 1)


def test_a_rank_that_waits_for_the_others_to_start_ends_at_sigterm_and_not_at_sigusr1(
    tiny_world: Path, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    with started(train(tiny_world, tmp_path / "run", SETTINGS), tmp_path, num_ranks=1) as rank:
        wait_until(lambda: listens_on(rank.pid(0), free_port), rank)
        os.kill(rank.pid(0), signal.SIGUSR1)
        time.sleep(1)
        assert rank.all_live()
        os.kill(rank.pid(0), signal.SIGTERM)
        began = time.monotonic()
        assert rank.exit_codes() == [-signal.SIGTERM]
        assert time.monotonic() - began < 30  # the others may take 5 minutes


def listens_on(pid: int, port: int) -> bool:
    return any(
        c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in psutil.Process(pid).net_connections("tcp")
    )


def test_a_signal_after_the_last_step_changes_nothing(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    state = output / "status.json"
    ranks = start()
    wait_until(lambda: state.exists() and json.loads(state.read_text())["state"] == "finished")
    ranks.send(signal.SIGTERM)
    assert ranks.exit_codes() == [0, 0]
    check_resumed(output, undisturbed)


def test_under_a_launcher_the_marker_tells_what_its_exit_code_does_not(
    tiny_world: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with subprocess.Popen(
        command("deepspeed", train(tiny_world, output, SETTINGS)),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            wait_until(lambda: steps_logged(output) >= 11)
            children = psutil.Process(process.pid).children(recursive=True)
            ranks = [child for child in children if child.cmdline()[1:4] == ["-u", "-m", "artkv"]]
            assert len(ranks) == 2
            for rank in ranks:  # a batch script's USR1 spares launchers, which it would kill
                rank.send_signal(signal.SIGUSR1)
            _, told = process.communicate(timeout=SECONDS)
        finally:
            for left in psutil.Process().children(recursive=True):
                if left.pid != process.pid and os.getsid(left.pid) == process.pid:
                    left.kill()
    assert process.returncode != 0  # 75 where all ranks have ended before the launcher ends them
    assert "stopped by SIGUSR1 after step" in told
    assert marker(output)["reason"] == "SIGUSR1"
    run_to_end([*train(tiny_world, output, SETTINGS), "--resume", "auto"], tmp_path)
    check_resumed(output, undisturbed)


def test_a_second_run_on_the_folder_is_refused_while_the_first_lives(
    start: Start, tiny_world: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    first = start("training.num_epochs=1000")  # outlasts the second one's start
    wait_until((output / "run.lock").exists, first)
    with started([*train(tiny_world, output), "--resume", "auto"], tmp_path / "second", num_ranks=1) as second:
        assert second.exit_codes() == [1]
        assert first.all_live(), "the first run was over before the second one had looked"
        assert f"is in use by process {first.pid(0)}" in second.told()
    first.send(signal.SIGTERM)
    assert first.exit_codes() == [75, 75]
