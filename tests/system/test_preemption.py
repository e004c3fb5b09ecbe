"""Real signals to real ranks: all stop after one step, save, say so, and the next start ends with the same bytes."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.system.test_launchers import command, final_bytes, free_port, steps_logged

pytestmark = pytest.mark.system

SECONDS = 300  # on a machine busy with other work; seconds where it is not
# Validations, and threads that decode, as a real run has them.
SETTINGS = [
    "--set",
    "dataset.workers=2",
    "--set",
    "evaluation.each_epoch=true",
    "--set",
    "distributed.timeout_minutes=5",
]


def run(arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, capture_output=True, text=True, timeout=SECONDS, check=False)


@pytest.fixture(scope="module")
def undisturbed(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    result = run(command("torchrun", tiny_world, output, SETTINGS))
    assert result.returncode == 0, result.stderr
    return output


class Ranks:
    """Two ranks that nothing stands above, as srun starts them; their whole groups end with the test."""

    def __init__(self, arguments: Sequence[str], logs: Path, stack: ExitStack) -> None:
        port = free_port()
        self.processes = []
        for rank in range(2):
            environment = os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
            log = stack.enter_context((logs / f"rank{rank}.txt").open("w"))
            process = subprocess.Popen(arguments, env=environment, stdout=log, stderr=log, start_new_session=True)
            stack.callback(self._end, process)
            self.processes.append(process)

    def send(self, number: signal.Signals, ranks: Sequence[int] = (0, 1)) -> None:
        for rank in ranks:
            os.killpg(self.processes[rank].pid, number)

    def exit_codes(self) -> list[int]:
        return [process.wait(timeout=SECONDS) for process in self.processes]

    @staticmethod
    def _end(process: "subprocess.Popen[bytes]") -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def start(tiny_world: Path, tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """`start(*extra arguments)`: a run in `tmp_path / "run"`."""
    with ExitStack() as stack:
        yield lambda *extra: Ranks(
            command("alone", tiny_world, tmp_path / "run", [*SETTINGS, "--resume", "auto", *extra]), tmp_path, stack
        )


def wait_until(condition: Callable[[], bool], ranks: Ranks | None = None) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        assert ranks is None or all(process.poll() is None for process in ranks.processes), "ended too early"
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
@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGTERM, (0, 1)), (signal.SIGUSR1, (1,))])
def test_signals_stop_all_ranks_with_75_and_the_resume_gives_the_undisturbed_bytes(
    start: Callable[..., Ranks], undisturbed: Path, tmp_path: Path, number: signal.Signals, ranks: tuple[int, ...]
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
    told = (tmp_path / "rank0.txt").read_text()
    assert f"artkv: stopped by {number.name} after step {left['step']}, which is saved" in told
    assert "Traceback" not in told
    assert (output / "logs" / "rank_00001.log").read_text().startswith("--- ")
    assert "Traceback" not in (output / "logs" / "rank_00001.log").read_text()

    second = start()
    assert second.exit_codes() == [0, 0]
    check_resumed(output, undisturbed)


def test_a_signal_before_the_first_step_stops_a_start(start: Callable[..., Ranks], tmp_path: Path) -> None:
    output = tmp_path / "run"
    ranks = start()
    wait_until((output / "run.lock").exists, ranks)
    ranks.send(signal.SIGTERM)
    assert ranks.exit_codes() == [75, 75]
    assert marker(output)["step"] in (0, 1)


def test_a_rank_that_waits_for_the_others_to_start_ends_at_sigterm_and_not_at_sigusr1(
    tiny_world: Path, tmp_path: Path
) -> None:
    port = free_port()
    environment = os.environ | {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    with subprocess.Popen(command("alone", tiny_world, tmp_path / "run", SETTINGS), env=environment) as rank:
        try:
            wait_until(lambda: listens_on(rank.pid, int(port)))
            rank.send_signal(signal.SIGUSR1)
            time.sleep(1)
            assert rank.poll() is None
            rank.send_signal(signal.SIGTERM)
            assert rank.wait(timeout=30) == -signal.SIGTERM  # the others may take 5 minutes
        finally:
            rank.kill()


def listens_on(pid: int, port: int) -> bool:
    return any(
        c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in psutil.Process(pid).net_connections("tcp")
    )


def test_a_signal_after_the_last_step_changes_nothing(
    start: Callable[..., Ranks], undisturbed: Path, tmp_path: Path
) -> None:
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
        command("deepspeed", tiny_world, output, SETTINGS),
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
    again = run(command("deepspeed", tiny_world, output, [*SETTINGS, "--resume", "auto"]))
    assert again.returncode == 0, again.stderr
    check_resumed(output, undisturbed)


def test_a_second_run_on_the_folder_is_refused_while_the_first_lives(
    start: Callable[..., Ranks], tiny_world: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    first = start("--set", "training.num_epochs=1000")  # outlasts the second one's start
    wait_until((output / "run.lock").exists, first)
    second = subprocess.run(
        command("alone", tiny_world, output, ["--resume", "auto"]), capture_output=True, text=True, check=False,
        timeout=SECONDS, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert first.processes[0].poll() is None, "the first run was over before the second one had looked"
    assert second.returncode == 1
    assert f"is in use by process {first.processes[0].pid}" in second.stderr
    first.send(signal.SIGTERM)
    assert first.exit_codes() == [75, 75]
