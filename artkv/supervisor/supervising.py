"""The supervisor's loop: starts a launcher, watches its ranks, and starts it again."""

import itertools
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from artkv.arguments import parse_arguments
from artkv.config import load_config
from artkv.errors import RunFailed, UserError
from artkv.failures import DONE, PREEMPTED, RUN_FAILED, WRONG_INPUT
from artkv.monitoring.rank_log import lossy_console
from artkv.run_folder.heartbeat import FOLDER, STACKS_SIGNAL, Beat, beat_path, read_beats, stacks_file
from artkv.run_folder.marker import read_marker
from artkv.run_folder.processes import is_stopped
from artkv.run_folder.restarts import Restart, append_restart
from artkv.run_folder.state_record import record_cause
from artkv.supervisor.policy import Fault, Policy, fault_of, reached
from artkv.supervisor.ranks import Launched, signal_ranks
from artkv.supervisor.watch import Silence, Watch
from artkv.training.preemption import SIGNALS, heeded

_SECONDS_BETWEEN_LOOKS = 0.5
# For ranks to write their stacks, and then for one that was stopped and goes on.
_SECONDS_FOR_STACKS = 2.0


@dataclass(frozen=True)
class Settings:
    """What `artkv supervise` was told; see its help. command: a launcher's, with `artkv train` in it."""

    command: Sequence[str]
    restarts: int
    silence: float


def run_dir_of(command: Sequence[str]) -> Path:
    """The run's folder, from the `artkv train` with its options at the end of a launcher's command.

    Raises `UserError` if there is none, or its config is wrong.
    """
    pairs = enumerate(itertools.pairwise(command), start=1)
    starts = [place for place, (before, word) in pairs if word == "train" and _is_artkv(before)]
    if not starts:
        raise UserError(
            "supervise: there is no `artkv train` in the command; give a launcher and all, such as "
            "artkv supervise -- deepspeed --module artkv train --config my.yaml"
        )
    if any(word == "supervise" and _is_artkv(before) for before, word in itertools.pairwise(command[: starts[-1]])):
        raise UserError("supervise: there is another `artkv supervise` in the command; leave one of them out")
    options = parse_arguments(list(command[starts[-1] :]))
    return load_config(options.config, options.set).run.output_dir


def supervise(settings: Settings) -> int:
    """Keeps a training going until it is done, is asked to stop, or cannot go on; returns the exit code.

    Signals that ask to stop are passed on to the training, which saves; then there is no further start. Raises
    `RunFailed` where it gives up.
    """
    with lossy_console():
        return _Supervisor(settings, run_dir_of(settings.command)).run()


def _is_artkv(word: str) -> bool:
    return Path(word).name in ("artkv", "artkv.py")


class _Supervisor:
    def __init__(self, settings: Settings, run_dir: Path) -> None:
        self._settings = settings
        self._run_dir = run_dir
        # Of one start each: on a disk that cannot be written what a start has said cannot be taken away for the next.
        self._folders: list[Path] = []
        self._watch = Watch(settings.silence, _SECONDS_BETWEEN_LOOKS)
        self._policy = Policy(settings.restarts, waits_for_nodes="SLURM_JOB_ID" in os.environ)
        self._beats: Mapping[int, Beat] = {}  # at the end of the last start
        self._asked: signal.Signals | None = None  # first
        self._not_passed_on: signal.Signals | None = None

    def run(self) -> int:
        for number in heeded(*SIGNALS):
            signal.signal(number, self._note)
        try:
            while True:
                fault = self._start()
                if isinstance(fault, int):
                    return fault
                reason = self._policy.reason_to_give_up(fault)
                self._log(fault, reason)
                self._pause(self._policy.pause)
                if reason is None and self._asked is not None:
                    raise RunFailed(f"{fault.cause}; not started again: stopped by {self._asked.name}")
                if reason is not None:
                    if fault.is_wrong_input:  # a rank has told it
                        return WRONG_INPUT
                    raise RunFailed(f"{fault.cause}; not started again: {reason}")
        finally:
            for folder in self._folders:
                shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # a start that was wrong from the first leaves no folder
                (self._run_dir / FOLDER).rmdir()
                self._run_dir.rmdir()

    @property
    def _folder(self) -> Path:
        """Of the ranks of the last start."""
        return self._folders[-1]

    def _start(self) -> Fault | int:
        """One start, watched to its end; why it is to be started again, or the exit code where it is not."""
        try:
            self._make_folder()
        except UserError as error:
            if not self._folders:
                raise
            step, _ = reached(self._beats)
            return Fault(str(error), step, has_gained=False, is_error=True, is_wrong_input=True, was_right=True)
        self._watch.begin()
        return self._until_ended(Launched(self._command()))

    def _command(self) -> list[str]:
        again = ["--resume", "auto"] if self._policy.restarts else []
        return [*self._settings.command, "--supervised", str(self._folder), *again]

    def _until_ended(self, launched: Launched) -> Fault | int:
        silence = None
        while (code := launched.exit_code()) is None and silence is None:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            beats = read_beats(self._folder)
            self._pass_on(launched, beats)
            if self._watch.is_quiet and not self._can_write():
                continue  # so nor can the ranks: a disk that is full or read-only has not made them silent
            silence = self._watch.look(beats)
            if silence is None and self._watch.is_silent_from_the_first:
                fault = Fault("no rank has come up in time", 0, has_gained=False)
                self._end(launched, beats, fault)
                return fault
        beats = self._beats = read_beats(self._folder)
        # `deepspeed` ends with 0 too where its inner process was killed.
        if code == 0 and beats and all(beat.phase == "ended" and not beat.error for beat in beats.values()):
            try:
                launched.end(beats)
            except RunFailed as error:  # the run is done, and nothing is to be started beside what is left
                print(f"artkv supervise: {error}", file=sys.stderr, flush=True)
            return DONE
        fault = fault_of(beats, code or 0) if silence is None else self._fault_of_silence(silence, beats)
        self._end(launched, beats, fault)  # what the launcher has left behind
        marker = None
        with suppress(UserError, OSError):
            marker = read_marker(self._run_dir)
        if self._asked is not None:
            if marker is not None:
                return PREEMPTED
            return 128 - code if code and code < 0 else code or RUN_FAILED  # of a signal as a shell says it
        if marker is not None and marker.reason not in (signal.SIGTERM.name, signal.SIGHUP.name):
            return PREEMPTED  # whoever gives the time is asked for more of it
        return fault

    def _end(self, launched: Launched, beats: Mapping[int, Beat], fault: Fault) -> None:
        """Ends all that is left of a start; where that cannot be, no other may begin beside it."""
        try:
            launched.end(beats)
        except RunFailed as error:
            self._log(fault, str(error))
            raise RunFailed(f"{fault.cause}; not started again: {error}") from None

    def _fault_of_silence(self, silence: Silence, beats: Mapping[int, Beat]) -> Fault:
        """Has the ranks write their stacks, and learns from who answers; nobody has ended yet."""
        beat = silence.beat
        stopped = [other for other in beats.values() if other.lives_here and is_stopped(other.pid)]
        path, answered = self._stacks(beats, stopped)
        if not stopped and answered == set(beats):
            self._watch.was_alive(silence)
        told = (
            f"{stopped[0].describe()} is stopped (SIGSTOP), and the ranks are silent"
            if stopped
            else f"{beat.describe()} is silent"
        )
        cause = f"{told} for {silence.seconds:.0f} s while {beat.phase}, after step {beat.step}; stacks: {path}"
        return Fault(cause, *reached(beats))

    def _stacks(self, beats: Mapping[int, Beat], stopped: Sequence[Beat]) -> tuple[Path, set[int]]:
        """Collects the stacks of all ranks in one file; which of them answered without being woken."""
        files = {rank: stacks_file(beat_path(self._folder, rank)) for rank in beats}
        signal_ranks(STACKS_SIGNAL, beats)
        _wait_for_content(list(files.values()), len(files) - len(stopped))
        answered = {rank for rank, file in files.items() if _size(file) > 0}
        if stopped:
            signal_ranks(signal.SIGCONT, {beat.rank: beat for beat in stopped})
            _wait_for_content(list(files.values()), len(files))
        path = self._run_dir / "logs" / f"stacks_{time.strftime('%Y%m%d-%H%M%S')}.txt"
        parts = []
        for rank, file in sorted(files.items()):
            beat = beats[rank]
            text = file.read_text(encoding="utf-8", errors="replace") if _size(file) else "no answer\n"
            parts.append(f"=== {beat.describe()}, {beat.phase}, after step {beat.step}\n{text}")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(parts), encoding="utf-8")
        return path, answered

    def _make_folder(self) -> None:
        """Makes a folder for the ranks, in which those of the start before have said nothing."""
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        folder = self._run_dir.absolute() / FOLDER / uuid.uuid4().hex[:12]
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            if self._run_dir.is_dir() and os.path.lexists(folder.parent) and not folder.parent.is_dir():
                raise UserError(f"{folder.parent}: is no folder, where the supervisor makes one; remove it") from None
            raise UserError(
                f"run.output_dir = {self._run_dir}: cannot be written ({error.strerror}); make room, or give another "
                "folder"
            ) from None
        self._folders.append(folder)

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._asked is None:
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _can_write(self) -> bool:
        try:
            probe = self._folder / "supervisor"
            probe.write_text("alive", encoding="ascii")
        except OSError:
            return False
        return True

    def _note(self, number: int, frame: FrameType | None) -> None:
        asked = signal.Signals(number)
        if asked != signal.SIGUSR1 or self._not_passed_on is None:  # which waits for ranks, where others do not
            self._not_passed_on = asked
        self._asked = self._asked or asked

    def _pass_on(self, launched: Launched, beats: Mapping[int, Beat]) -> None:
        """Hands on what was asked since the last look, or while there was nobody yet to hand it to."""
        asked, self._not_passed_on = self._not_passed_on, None
        if asked is None:
            return
        if beats:
            # To the ranks themselves: a launcher would end without them, or give them less time than a save takes.
            signal_ranks(signal.SIGUSR1 if asked == signal.SIGUSR1 else signal.SIGTERM, beats)
        elif asked == signal.SIGUSR1:  # which ends a process that does not listen yet
            self._not_passed_on = self._not_passed_on or asked
        else:
            launched.send(signal.SIGTERM)

    def _log(self, fault: Fault, reason: str | None) -> None:
        again = f"not started again: {reason}" if reason else f"start {self._policy.restarts + 1}"
        # First: what holds a process may be the server that has the run's folder, and then holds this one too.
        print(f"artkv supervise: {fault.cause}; {again}", file=sys.stderr, flush=True)
        if not fault.is_wrong_input:  # else the folder may be another run's, in use
            append_restart(self._run_dir, Restart(time.time(), fault.cause, fault.step, reason))
            record_cause(self._run_dir, fault.cause)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _wait_for_content(files: Sequence[Path], number: int) -> None:
    """Waits until so many files have content, and for a moment more, or for as long as is allowed."""
    deadline = time.monotonic() + _SECONDS_FOR_STACKS
    while sum(_size(file) > 0 for file in files) < number and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)
