"""One run a folder: a lock that a second run is refused by, and that a dead run does not leave behind.

`run.lock` names its holder and counts heartbeats, a new count every few seconds. It is made by a hard link and
changed by renames, which are atomic on NFS too. Whether a holder on another host is alive is seen from its
count, which moves or does not; clocks of two hosts are never compared. On the same host the process itself is
looked for.
"""

import errno
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from artkv.errors import RunFailed, UserError
from artkv.files import NO_ROOM, overwrite, reason_of
from artkv.reading import Count, check_version, parse_json, read_regular, to_record
from artkv.run_folder.processes import is_anothers, machine, process_start

if TYPE_CHECKING:  # torch takes seconds, which `artkv status` need not wait for
    from artkv.distributed import World

LOCK = "run.lock"
FORMAT_VERSION = 1
HEARTBEAT_SECONDS = 10.0
# Heartbeats that may be missed, on a slow file server say, before a holder on another host counts as dead.
_MISSED_BEATS = 6
# Slurm ends a job before it starts it again, so a requeued job's predecessor needs less proof. Some it needs: a
# node that Slurm has lost may go on.
_MISSED_BEATS_OF_REQUEUED = 3
_SECONDS_BETWEEN_LOOKS = 1.0
_MOST_BYTES = 2**16
_REMEDY = "remove it, if no run uses the folder"


@dataclass(frozen=True)
class LockRecord:
    """What `run.lock` holds.

    machine: host name, boot and process namespace; where all are the same, `pid` means the same process.
    pid_start: when it began, in the kernel's ticks, since numbers are used again. beat: heartbeats so far.
    time: the holder's clock at the last one, for people.
    """

    token: str
    host: str
    machine: str
    pid: Count
    pid_start: Count | None
    job: str | None
    restart: Count
    beat: Count
    time: float
    format_version: int = FORMAT_VERSION

    def describe(self) -> str:
        """Such as `job 17 (process 4711 on n1)`."""
        process = f"process {self.pid} on {self.host}"
        return process if self.job is None else f"job {self.job} ({process})"

    def is_running_here(self) -> bool | None:
        """Whether the holder's process exists; None where this cannot be seen: on another machine, say."""
        if self.machine != machine() or self.pid_start is None:
            return None
        start = process_start(self.pid)
        return None if start is None and is_anothers(self.pid) else start == self.pid_start


def read_lock(run_dir: Path) -> LockRecord | None:
    """The lock of a run's folder, None where there is none; `UserError` if it cannot be understood.

    Raises an `OSError` for what the disk refuses, which may be well again at the next look.
    """
    path = run_dir / LOCK
    try:
        content = read_regular(path, _MOST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"{path}: {error.strerror}; {_REMEDY}") from None
    return _parse(content, path)


def _parse(content: bytes, path: Path) -> LockRecord:
    try:
        tree = parse_json(content)
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: is no lock of this artkv; {_REMEDY}")
    check_version(tree, FORMAT_VERSION, str(path))
    return to_record(LockRecord, tree, f"{path}: is no lock of this artkv", _REMEDY)


class RunLock:
    """The lock of one folder, as one process sees it; rank 0 alone has one."""

    def __init__(
        self,
        run_dir: Path,
        environment: Mapping[str, str] = os.environ,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        predecessor_seconds: float = 600.0,
        place: str = "run.output_dir =",
    ) -> None:
        """predecessor_seconds: how long a requeued job waits for its own run before, which may still be ending.

        place: what the folder was given as.
        """
        self._place = place
        self._path = run_dir / LOCK
        self._interval = heartbeat_seconds
        restart = environment.get("SLURM_RESTART_COUNT", "0")
        self._record = LockRecord(
            token=uuid.uuid4().hex, host=socket.gethostname(), machine=machine(), pid=os.getpid(),
            pid_start=process_start(os.getpid()), job=environment.get("SLURM_JOB_ID"),
            restart=int(restart) if restart.isdecimal() else 0, beat=0, time=time.time(),
        )  # fmt: skip
        self._temporary = self._path.with_name(f".{LOCK}.{self._record.token}.tmp")
        self._made_folders: list[Path] = []  # the innermost first
        self._watched: tuple[str, int] | None = None
        self._watched_since = 0.0
        self._predecessor_seconds = predecessor_seconds
        self._waits_until: float | None = None
        # Of the temporary file, which the heartbeat's thread and `check` write.
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._taken_by: str | None = None
        self._renewed_at = 0.0

    def try_take(self) -> bool:
        """Takes the lock, or looks at its holder once more; False if it is not clear yet whether that one lives.

        Blocks for about a second at most. Raises `UserError` if the holder lives, or the folder cannot be locked.
        """
        try:
            return self._take_or_look()
        except OSError as error:
            folder = self._path.parent
            remedy = "give a folder that can be written, on a file system with hard links"
            if error.errno == errno.EACCES:
                remedy = f"give this user permission to write there (chmod u+rwx {folder}, and u+rw {self._path})"
            raise UserError(f"{self._place} {folder}: cannot be locked ({reason_of(error)}); {remedy}") from None

    def _take_or_look(self) -> bool:
        absent = [folder for folder in self._path.parents if not folder.exists()]
        if absent:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._made_folders = absent
        began = _now()
        self._write()
        if self._link():
            self._renewed_at = began
            self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
            self._thread.start()
            return True
        holder = read_lock(self._path.parent)
        if holder is None:
            return False  # gone since
        runs_here = holder.is_running_here()
        if runs_here or self._has_moved(holder):
            if self._waits_for(holder):
                time.sleep(min(_SECONDS_BETWEEN_LOOKS, self._interval / 2))
                return False
            raise UserError(
                f"{self._place} {self._path.parent}: is in use by {holder.describe()}, which is alive; wait for it "
                "to end, stop it, or give another folder"
            )
        if runs_here is False or time.monotonic() - self._watched_since > self._patience(holder):
            self._remove(holder)
        else:
            time.sleep(min(_SECONDS_BETWEEN_LOOKS, self._interval / 2))
        return False

    def check(self) -> None:
        """Raises `RunFailed` if another run has taken the lock, as after a long stop of this process.

        Reads the file itself: the heartbeat's thread may not have had its turn since.
        """
        with self._guard:
            self._is_mine()
        if self._taken_by is not None:
            raise RunFailed(f"{self._path}: this run stood still so long that {self._taken_by} has taken its folder")

    def release(self) -> None:
        """Gives the lock back; also ends the heartbeat."""
        self._ended.set()
        try:
            if self._thread is not None:
                self._thread.join()
                holder = read_lock(self._path.parent)
                if holder is not None and holder.token == self._record.token:
                    self._path.unlink(missing_ok=True)
            self._temporary.unlink(missing_ok=True)
        except (OSError, UserError) as error:
            # What the run has come to is no matter of this: a lock that does not beat is taken over.
            reason = reason_of(error) if isinstance(error, OSError) else str(error)
            print(f"artkv: {self._path}: cannot be given back ({reason})", file=sys.stderr)
        with suppress(OSError):  # a run that was refused leaves no empty folder
            for folder in self._made_folders:
                folder.rmdir()

    def _link(self) -> bool:
        """Makes the temporary file the lock, if there is none."""
        try:
            os.link(self._temporary, self._path)
        except FileExistsError:
            # NFS may ask its server a second time, where the answer to the first was lost and the link is there.
            return self._temporary.stat().st_nlink == 2
        finally:
            self._temporary.unlink(missing_ok=True)
        return True

    def _next_beat(self) -> bytes:
        self._record = replace(self._record, beat=self._record.beat + 1, time=time.time())
        return json.dumps(asdict(self._record)).encode()

    def _write(self) -> None:
        with self._temporary.open("wb") as file:
            file.write(self._next_beat())
            file.flush()
            os.fsync(file.fileno())

    def _beat(self) -> None:
        while not self._ended.wait(self._interval):
            # A file server may be away for a moment; the next beat may get through.
            with suppress(OSError, UserError), self._guard:
                self._renew()
            if self._taken_by is not None:
                return

    def _renew(self) -> None:
        began = _now()
        try:
            # The slow part comes before the look: nothing may come between that and the rename.
            self._write()
        except OSError as error:
            self._temporary.unlink(missing_ok=True)
            if error.errno in NO_ROOM and self._overwrite():
                self._renewed_at = began
            return
        if self._is_mine():
            self._temporary.replace(self._path)
        elif self._taken_by is not None or not self._link():
            self._temporary.unlink(missing_ok=True)
            return
        self._renewed_at = began

    def _overwrite(self) -> bool:
        """Beats on a full disk, where the lock's file has its place already: to others a silent lock is a dead run's.

        False where the lock is not this run's any more. Another run that takes it has a file of its own, which this
        never writes into.
        """
        with self._path.open("r+b", buffering=0) as file:
            holder = _parse(file.read(_MOST_BYTES), self._path)
            if holder.token == self._record.token:
                overwrite(file.fileno(), self._next_beat())
        return self._is_mine()

    def _is_mine(self) -> bool:
        """Whether the lock's file is this run's; notes whose it is, if another's. False where there is none."""
        holder = read_lock(self._path.parent)
        if holder is not None and holder.token != self._record.token:
            self._taken_by = holder.describe()
        # Whoever took it over may have ended since, and its lock with it.
        if holder is None and _now() - self._renewed_at > self._interval * _MISSED_BEATS_OF_REQUEUED:
            self._taken_by = "another run"
        return holder is not None and holder.token == self._record.token

    def _has_moved(self, holder: LockRecord) -> bool:
        seen = (holder.token, holder.beat)
        if self._watched == seen:
            return False
        has_moved = self._watched is not None and self._watched[0] == holder.token
        if self._watched is None and holder.is_running_here() is None:
            print(
                f"artkv: {self._path.parent} is locked by {holder.describe()}; watching its heartbeat for up to "
                f"{self._patience(holder):.0f} s to see whether it is alive",
                file=sys.stderr,
                flush=True,
            )
        self._watched, self._watched_since = seen, time.monotonic()
        return has_moved

    def _waits_for(self, holder: LockRecord) -> bool:
        """Whether the holder lives and will not for long: it is this job before it was queued again."""
        if not self._is_predecessor(holder):
            return False
        if self._waits_until is None:
            self._waits_until = time.monotonic() + self._predecessor_seconds
            print(
                f"artkv: {self._path.parent} is still in use by {holder.describe()}, this job before it was queued "
                f"again; waiting up to {self._predecessor_seconds:.0f} s for it to end",
                file=sys.stderr,
                flush=True,
            )
        return time.monotonic() < self._waits_until

    def _is_predecessor(self, holder: LockRecord) -> bool:
        return holder.job is not None and holder.job == self._record.job and holder.restart < self._record.restart

    def _patience(self, holder: LockRecord) -> float:
        return self._interval * (_MISSED_BEATS_OF_REQUEUED if self._is_predecessor(holder) else _MISSED_BEATS)

    def _remove(self, holder: LockRecord) -> None:
        """Removes a dead run's lock, unless another run was quicker and the file is already that one's."""
        removed = self._path.with_name(f".{LOCK}.{self._record.token}.dead")
        try:
            self._path.rename(removed)
        except FileNotFoundError:
            return
        try:
            taken = _parse(removed.read_bytes(), removed)
            if (taken.token, taken.beat) != (holder.token, holder.beat):
                with suppress(FileExistsError):
                    os.link(removed, self._path)
                return
        finally:
            removed.unlink()
        print(f"artkv: {holder.describe()} is dead and left {self._path}; taking it over", file=sys.stderr, flush=True)


def _now() -> float:
    """Seconds of a clock that goes on while the machine is suspended, which `time.monotonic` does not count."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@contextmanager
def run_lock(
    run_dir: Path, world: "World", predecessor_minutes: float = 10.0, place: str = "run.output_dir ="
) -> Iterator[RunLock | None]:
    """Holds the lock of `run_dir` for all ranks; rank 0's lock, None on the others.

    predecessor_minutes: how long a requeued job waits for its own run before. place: what the folder was given as. The
    ranks meet after each look at a lock that is held, so that none waits for long at a time.
    """
    lock = RunLock(run_dir, predecessor_seconds=60 * predecessor_minutes, place=place) if world.is_main else None
    try:
        while not world.broadcast(world.together(lambda: lock.try_take() if lock else False)):
            pass
        yield lock
    finally:
        if lock is not None:
            lock.release()
