"""Submitting launch/*.sbatch to the test cluster, and watching the jobs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.system.cluster.mini_cluster import MiniCluster, WaitedInVain, wait_for
from tests.system.run_files import steps_logged

# The files' headers ask for GPUs and many CPUs; what stands on sbatch's command line goes before them.
NO_GPUS = ["--gres=none", "--cpus-per-task=1"]
# More than any wait takes on a busy machine of two cores: it fails, and the tests after it are not run (conftest.py).
LONGEST_WAIT = 150
# Seconds for which all nodes are idle before a job is started again; Slurm compares times in whole seconds.
SETTLED = 2
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


@dataclass(frozen=True)
class Job:
    """A submitted job. log: what its tasks and its script print, over all its starts."""

    cluster: MiniCluster
    number: str
    log: Path

    def fields(self) -> dict[str, str]:
        """What `scontrol show job` says, by name."""
        text = self.cluster.output("head", ["scontrol", "show", "job", "--oneliner", self.number])
        return {name: value for name, _, value in (word.partition("=") for word in text.split())}

    @property
    def state(self) -> str:
        return self.fields()["JobState"]

    @property
    def starts(self) -> int:
        """How often Slurm has requeued it."""
        return int(self.fields()["Restarts"])

    def wait_for_step(self, output: Path, step: int, seconds: float = LONGEST_WAIT) -> None:
        """Waits until the run has logged `step`."""

        def logged() -> bool:
            assert self.state not in ENDED, f"ended before step {step}: {self.log.read_text()}"
            return steps_logged(output) >= step

        self._wait_for(logged, seconds, f"step {step}")

    def wait_until_ended(self, seconds: float = LONGEST_WAIT) -> float:
        """Waits until the job has ended for good, and returns the seconds it took."""
        return self._wait_for(lambda: self.state in ENDED, seconds, "its end")

    def wait_until_requeued(self, seconds: float, starts: int = 1) -> float:
        """Waits until Slurm has queued the job again `starts` times, and returns the seconds it took."""

        def requeued() -> bool:
            fields = self.fields()
            assert fields["JobState"] not in ENDED, f"not requeued: {self.log.read_text()}"
            return int(fields["Restarts"]) >= starts

        return self._wait_for(requeued, seconds, "it requeued")

    def start_now(self) -> None:
        """Slurm holds a requeued job back for two minutes; this does so only until the start before is over everywhere.

        A node refuses a start in the second in which it was told the end of the one before (`Job credential
        revoked`), and a job that starts while a lost node is coming back can be left with a part of its nodes.
        """
        since = time.monotonic()

        def is_over() -> bool:
            nonlocal since
            if not (self.state == "PENDING" and self.cluster.is_idle()):
                since = time.monotonic()
            return time.monotonic() - since > SETTLED

        self._wait_for(is_over, 60, "the end of the start before")
        self.cluster.output("head", ["scontrol", "update", f"jobid={self.number}", "StartTime=now"])

    def send(self, *scancel: str) -> None:
        self.cluster.output("head", ["scancel", *scancel, self.number])

    def _wait_for(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        try:
            return wait_for(condition, seconds, f"job {self.number}: {what}")
        except WaitedInVain as error:
            log = self.log.read_text() if self.log.exists() else "(no output)"
            daemon = (self.cluster.folder / "log" / "slurmctld").read_text().splitlines()[-20:]
            raise WaitedInVain("\n".join([f"{error}; it is {self.state}", log, *daemon])) from None


def submit(
    cluster: MiniCluster, script: str, options: Sequence[str], log: Path,
    variables: dict[str, str], arguments: Sequence[str] = (),
) -> Job:  # fmt: skip
    """Submits launch/`script` with sbatch's options, the script's variables and artkv's arguments."""
    result = cluster.on(
        "head",
        ["sbatch", "--parsable", f"--output={log}", *options, f"launch/{script}", *arguments],
        environment=variables,
    )
    assert result.returncode == 0, result.stderr
    return Job(cluster, result.stdout.strip(), log)


def shape(script: str, nodes: int, ranks: int) -> list[str]:
    """sbatch's options for so many nodes with so many ranks on each, without GPUs."""
    tasks = 1 if script == "train_deepspeed.sbatch" else ranks
    return [f"--nodes={nodes}", f"--ntasks-per-node={tasks}", *NO_GPUS]
