"""The supervisor around a real process, which dies, stops, fails or hangs by a script; what it does then."""

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from artkv.errors import UserError
from artkv.supervisor import supervising
from artkv.supervisor.policy import Fault
from artkv.supervisor.supervising import Settings, run_dir_of
from tests.supervisor import stub
from tests.system.run_files import beats_of

SECONDS = 120


class Supervised:
    """`artkv supervise` around the stub, in a folder of its own."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder = folder
        self.run_dir = folder / "a run"
        self.config = config

    def begin(self, script: Sequence[str], *options: str, **how: Any) -> "subprocess.Popen[str]":
        (self.folder / "script").write_text("\n".join(script))
        training = ["artkv", "train", "--config", str(self.config), "--set", f"run.output_dir={self.run_dir}"]
        return subprocess.Popen(
            [
                sys.executable, "-m", "artkv", "supervise", "--silence", "1", *options, "--",
                sys.executable, str(Path(stub.__file__)), str(self.run_dir), *training,
            ],
            text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            **{"stderr": subprocess.PIPE, **how},
        )  # fmt: skip

    def run(self, script: Sequence[str], *options: str) -> tuple[int, str]:
        """The exit code, and what was printed."""
        process = self.begin(script, *options)
        _, told = process.communicate(timeout=SECONDS)
        return process.returncode, told

    def starts(self) -> list[str]:
        """The arguments of each start."""
        return (self.folder / "starts").read_text().splitlines()

    def causes(self) -> list[str]:
        return [json.loads(line)["cause"] for line in (self.run_dir / "restarts.jsonl").read_text().splitlines()]


@pytest.fixture
def supervised(tmp_path: Path, tiny_world: Path) -> Supervised:
    return Supervised(tmp_path, tiny_world / "config.yaml")


def test_a_training_that_is_done_is_not_started_again(supervised: Supervised) -> None:
    assert supervised.run(["done"])[0] == 0
    (start,) = supervised.starts()
    assert re.search(f" --supervised {supervised.run_dir}/.heartbeats/[0-9a-f]{{12}}$", start)
    assert not supervised.run_dir.exists()  # of its own it leaves nothing


def test_a_killed_training_goes_on_from_its_checkpoint(supervised: Supervised) -> None:
    code, told = supervised.run(["die", "die", "done"])
    assert code == 0, told
    first, *later = supervised.starts()
    assert not first.endswith("--resume auto")
    assert all(" --supervised " in start and start.endswith(" --resume auto") for start in later)
    assert len(later) == 2
    assert [cause.partition("(")[0] for cause in supervised.causes()] == ["rank 0 "] * 2
    assert told.count("ended without a word (exit code -9): killed?; start ") == 2
    assert sorted(path.name for path in supervised.run_dir.iterdir()) == ["restarts.jsonl"]


def test_a_training_that_stands_still_is_ended_with_its_stacks_and_goes_on(supervised: Supervised) -> None:
    code, told = supervised.run(["stop", "hang", "done"])
    assert code == 0, told
    stopped, silent = supervised.causes()
    assert "is stopped (SIGSTOP), and the ranks are silent for " in stopped
    assert " is silent for " in silent
    assert "while saving, after step 1" in silent
    for cause in (stopped, silent):
        stacks = Path(cause.partition("stacks: ")[2]).read_text()
        assert stacks.startswith("=== rank 0 (process ")
        assert "stub.py" in stacks


def test_a_training_that_is_stopped_where_nothing_is_known_yet_has_no_pulse_and_goes_on(supervised: Supervised) -> None:
    """Ten minutes are allowed there, which `SECONDS` are not."""
    code, told = supervised.run(["stop_first", "done"])
    assert code == 0, told
    (cause,) = supervised.causes()
    assert "is stopped (SIGSTOP), and the ranks are silent for " in cause
    assert " while validating, after step 1; stacks: " in cause


def test_a_start_that_loads_for_long_after_its_first_sign_is_left_alone(supervised: Supervised) -> None:
    code, told = supervised.run(["load"])
    assert code == 0, told
    assert len(supervised.starts()) == 1


def test_an_error_that_comes_back_ends_it(supervised: Supervised) -> None:
    code, told = supervised.run(["error", "error", "done"])
    assert code == 3
    assert len(supervised.starts()) == 2
    assert told.splitlines()[-1].endswith(
        "RunFailed: step 1: it diverged; not started again: the same error as before, at the same step 1"
    )


def test_wrong_input_ends_it_at_once_and_leaves_no_folder(supervised: Supervised) -> None:
    code, told = supervised.run(["wrong", "done"])
    assert code == 1
    assert len(supervised.starts()) == 1
    assert "my.yaml: is wrong; not started again: another start would find the same" in told
    assert not supervised.run_dir.exists()


def test_there_are_no_more_starts_than_are_allowed(supervised: Supervised) -> None:
    code, told = supervised.run(["die", "die", "done"], "--restarts", "1")
    assert code == 3
    assert len(supervised.starts()) == 2
    assert "it was started again 1 times already (--restarts)" in told


def test_a_launcher_that_starts_no_rank_is_no_training_that_is_done(supervised: Supervised) -> None:
    training = ["artkv", "train", "--config", str(supervised.config), "--set", f"run.output_dir={supervised.run_dir}"]
    done = subprocess.run(
        [sys.executable, "-m", "artkv", "supervise", "--restarts", "0", "--", "true", *training],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "no rank has come up (exit code 0)" in done.stderr


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_is_passed_on_and_there_is_no_further_start(supervised: Supervised, number: signal.Signals) -> None:
    process = supervised.begin(["hang", "done"], "--silence", "60")
    wait_for(lambda: [beat.phase for beat in beats_of(supervised.run_dir).values()] == ["saving"])
    time.sleep(0.7)  # the stub listens only then
    process.send_signal(number)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 75
    assert len(supervised.starts()) == 1


def test_a_connection_that_drops_saves_the_run(supervised: Supervised) -> None:
    """The terminal sends SIGHUP, and takes no word any more."""
    terminal, shells_end = pty.openpty()
    process = supervised.begin(
        ["hang", "done"], "--silence", "60", stdin=shells_end, stdout=shells_end, stderr=shells_end,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(shells_end)
    wait_for(lambda: [beat.phase for beat in beats_of(supervised.run_dir).values()] == ["saving"])
    time.sleep(0.7)  # the stub listens only then
    os.close(terminal)
    assert process.wait(SECONDS) == 75
    assert (supervised.run_dir / "preempted.json").exists()
    assert len(supervised.starts()) == 1


def test_a_stop_before_the_first_heartbeat_waits_for_it(supervised: Supervised) -> None:
    """SIGUSR1 would end a process that does not listen yet, and a launcher, which never does."""
    process = supervised.begin(["late", "done"], "--silence", "60")
    wait_for((supervised.folder / "starts").exists)
    assert not beats_of(supervised.run_dir)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 75
    assert len(supervised.starts()) == 1


@pytest.mark.parametrize("order", [(signal.SIGTERM, signal.SIGUSR1), (signal.SIGUSR1, signal.SIGTERM)])
def test_before_the_first_heartbeat_what_ends_a_launcher_counts_more(
    order: Sequence[signal.Signals], tmp_path: Path
) -> None:
    """As of `scancel` just after Slurm's warning, or before it."""

    class Launcher:
        sent: list[int] = []  # noqa: RUF012

        def send(self, number: int) -> None:
            self.sent.append(number)

    supervisor, launcher = supervising._Supervisor(Settings([], restarts=1, silence=30.0), tmp_path), Launcher()
    for number in order:
        supervisor._note(number, None)
    supervisor._pass_on(launcher, {})  # type: ignore[arg-type]
    assert launcher.sent == [signal.SIGTERM]
    assert supervisor._asked == order[0]


def test_a_stop_while_a_launcher_is_started_reaches_it(supervised: Supervised) -> None:
    stopped_too_early = (
        "import os, signal, sys, artkv.supervisor.supervising as supervising\n"
        "class Launched(supervising.Launched):\n"
        "    def __init__(self, command):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        super().__init__(command)\n"
        "supervising.Launched = Launched\n"
        "from artkv.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    training = ["artkv", "train", "--config", str(supervised.config), "--set", f"run.output_dir={supervised.run_dir}"]
    launcher = [sys.executable, "-c", "import time; time.sleep(30)"]
    ended = subprocess.run(
        [sys.executable, "-c", stopped_too_early, "supervise", "--", *launcher, *training],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert ended.returncode == 128 + signal.SIGTERM


WITHOUT_KILL = (
    "import os, signal, sys, artkv.supervisor.ranks as ranks\n"
    "kill = os.kill\n"
    "ranks.os.kill = lambda pid, number: None if number == signal.SIGKILL else kill(pid, number)\n"
    "ranks._SECONDS_TO_END = 1.0\n"
    "from artkv.cli import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


def test_a_run_that_is_done_is_done_whatever_cannot_be_killed(supervised: Supervised) -> None:
    (supervised.folder / "script").write_text("done")
    rank = [sys.executable, str(Path(stub.__file__)), str(supervised.run_dir)]
    training = ["artkv", "train", "--config", str(supervised.config), "--set", f"run.output_dir={supervised.run_dir}"]
    shell = ["bash", "-c", 'sleep 30 >/dev/null 2>&1 & "$@"', "bash"]
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_KILL, "supervise", "--", *shell, *rank, *training],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, text=True, stderr=subprocess.PIPE,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"process \d+ \(sleep, state S\): not gone 1 s", ended.stderr)
    assert not supervised.run_dir.exists()  # no fault was written down


def test_a_fault_is_told_before_it_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a file server that hangs the latter has no end."""
    told = []
    for name in ("append_restart", "record_cause"):
        monkeypatch.setattr(supervising, name, lambda *_: told.append(capsys.readouterr().err))
    supervisor = supervising._Supervisor(Settings([], restarts=1, silence=30.0), tmp_path)
    supervisor._log(Fault("a rank died", 3, has_gained=True), None)
    assert told == ["artkv supervise: a rank died; start 1\n", ""]


def test_a_process_that_cannot_be_killed_is_named_and_ends_it(supervised: Supervised) -> None:
    """As one in state D, which a disk or a GPU holds: here SIGKILL does nothing."""
    supervised.run_dir.mkdir()
    training = ["artkv", "train", "--config", str(supervised.config), "--set", f"run.output_dir={supervised.run_dir}"]
    launcher = ["bash", "-c", "sleep 30 >/dev/null 2>&1 & exit 1", "bash"]
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_KILL, "supervise", "--", *launcher, *training],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, text=True, stderr=subprocess.PIPE,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert ended.returncode == 3
    told = r"no rank has come up \(exit code 1\); not started again: process \d+ \(sleep, state S\): not gone 1 s"
    assert re.search(told, ended.stderr)
    assert time.monotonic() - began < 25
    (line,) = (supervised.run_dir / "restarts.jsonl").read_text().splitlines()
    assert "(sleep, state S)" in json.loads(line)["gave_up"]


def test_a_console_that_is_full_costs_the_message_and_no_run(supervised: Supervised) -> None:
    with Path("/dev/full").open("w") as full:
        process = supervised.begin(["die", "done"], stderr=full)
        assert process.wait(SECONDS) == 0
    assert len(supervised.starts()) == 2
    assert "ended without a word" in supervised.causes()[0]


def test_a_stop_during_a_pause_ends_it(supervised: Supervised) -> None:
    """An input that was right before is waited for, five seconds at first."""
    process = supervised.begin(["die", "wrong", "done"])
    assert process.stderr is not None
    told = ""
    while "my.yaml: is wrong; start 3" not in told:
        told += process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    told += process.communicate(timeout=SECONDS)[1]
    assert time.monotonic() - began < 4
    assert process.returncode == 3
    assert "my.yaml: is wrong; not started again: stopped by SIGTERM" in told
    assert len(supervised.starts()) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a folder that is read-only to root too")
def test_a_restart_waits_for_a_folder_that_can_be_written_again(supervised: Supervised) -> None:
    process = supervised.begin(["hang", "done"], "--silence", "60")
    wait_for(lambda: [beat.phase for beat in beats_of(supervised.run_dir).values()] == ["saving"])
    folder = str(supervised.run_dir / ".heartbeats")
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        os.kill(beats_of(supervised.run_dir)[0].pid, signal.SIGKILL)
        assert process.stderr is not None
        told = ""
        while "cannot be written (Read-only file system)" not in told:
            told += process.stderr.readline()
        assert process.poll() is None
    finally:
        subprocess.run(["umount", folder], check=True)
    told += process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0, told
    assert len(supervised.starts()) == 2


def test_what_a_killed_launcher_leaves_behind_is_ended(supervised: Supervised) -> None:
    """Between the supervisor and its rank stands a shell, which is killed: the rank is nobody's child then."""
    (supervised.folder / "script").write_text("hang\ndone")
    rank = [sys.executable, str(Path(stub.__file__)), str(supervised.run_dir)]
    training = ["artkv", "train", "--config", str(supervised.config), "--set", f"run.output_dir={supervised.run_dir}"]
    shell = ["bash", "-c", '"$@" & wait', "bash"]
    with subprocess.Popen(
        [sys.executable, "-m", "artkv", "supervise", "--silence", "60", "--", *shell, *rank, *training],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:  # fmt: skip
        wait_for(lambda: [beat.phase for beat in beats_of(supervised.run_dir).values()] == ["saving"])
        orphan = beats_of(supervised.run_dir)[0].pid
        parent = int(Path(f"/proc/{orphan}/stat").read_text().rpartition(")")[2].split()[1])
        assert parent != process.pid
        os.kill(parent, signal.SIGKILL)
        _, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, told
    assert not Path(f"/proc/{orphan}").exists()
    assert len(supervised.starts()) == 2


def test_a_command_without_a_training_is_refused(tiny_world: Path) -> None:
    with pytest.raises(UserError, match="there is no `artkv train` in the command"):
        run_dir_of(["srun", "python", "-m", "artkv", "evaluate"])
    config = str(tiny_world / "config.yaml")
    with pytest.raises(UserError, match="there is another `artkv supervise` in the command"):
        run_dir_of(["artkv", "supervise", "--", "srun", "artkv", "train", "--config", config])
    shell = ["srun", "bash", "-c", 'exec python -m artkv "$@"', "artkv", "train", "--config", config]
    assert run_dir_of([*shell, "--set", "run.output_dir=here"]) == Path("here")


def test_a_file_in_its_folders_place_is_told(supervised: Supervised) -> None:
    supervised.run_dir.mkdir()
    (supervised.run_dir / ".heartbeats").touch()
    code, told = supervised.run(["done"])
    assert (code, told) == (
        1, f"artkv: {supervised.run_dir}/.heartbeats: is no folder, where the supervisor makes one; remove it\n",
    )  # fmt: skip


def test_another_supervisor_on_the_folder_ends_no_rank_of_the_first(supervised: Supervised) -> None:
    first = supervised.begin(["hang", "wrong"], "--silence", "60")
    wait_for(lambda: [beat.phase for beat in beats_of(supervised.run_dir).values()] == ["saving"])
    rank = beats_of(supervised.run_dir)[0]
    (supervised.folder / "script").write_text("wrong")  # as a run that finds the folder in use
    second = supervised.begin(["wrong"])
    second.communicate(timeout=SECONDS)
    assert second.returncode == 1
    assert rank.lives_here
    assert beats_of(supervised.run_dir)[0].pid == rank.pid
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=SECONDS)
    assert first.returncode == 75
