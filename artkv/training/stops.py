"""The stops of one run: asked for on any rank, made on all of them after the same step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from artkv.distributed import ToHost, World
from artkv.errors import Preempted, RunFailed
from artkv.run_folder.heartbeat import Heartbeat, Phase
from artkv.run_folder.marker import write_marker
from artkv.training.preemption import StopRequests


class RunStops:
    """What stops a run, and what it leaves when it does.

    requests: what asks this process to stop. step: the optimizer steps that are saved, or will be before the next
    `stop_if_asked`. heartbeat: tells a supervisor that this rank goes on; it does so wherever a stop would be noticed.
    """

    def __init__(
        self, requests: StopRequests, world: World, run_dir: Path, step: int, heartbeat: Heartbeat | None = None
    ) -> None:
        self._requests = requests
        self._world = world
        self._run_dir = run_dir
        self._step = step
        self._heartbeat = heartbeat or Heartbeat(None, world.rank)
        self._has_gained = False

    def is_asked(self) -> bool:
        """Whether this rank is asked to stop; also a sign of life."""
        self._heartbeat.beat()
        return self._requests.reason is not None

    def begin(self, phase: Phase) -> None:
        """Says what this rank is at from here on."""
        self._heartbeat.beat(phase, self._step)

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Something else is done for a while, which takes its own time."""
        before = self._heartbeat.phase
        self.begin(phase)
        yield
        self.begin(before)

    def note_gain(self, step: int | None = None) -> None:
        """Notes that this start has done what the next one need not do again: a step, a validation, a cache's shard.

        Called on all ranks. step: the optimizer steps done, where that changes.
        """
        self._has_gained = True
        self._step = self._step if step is None else step
        self._heartbeat.beat(step=self._step)

    def stop_if_asked(self) -> None:
        """Stops all ranks if any of them is asked to; called on all ranks, where all that was gained is on the disk.

        The ranks meet in it: call it between the parts of a start, and in the loop once it is known that one of them
        is asked. Raises `Preempted`, on all ranks, after rank 0 has written the marker; `RunFailed`, with no marker,
        where the job's time is over before anything was gained, since a next start would do no better.
        """
        self._heartbeat.beat()
        reasons = [reason for reason in self._world.gather(self._requests.reason) if reason is not None]
        if not reasons:
            return
        if reasons[0] in (signal.SIGUSR1.name, "walltime") and not self._has_gained:
            self._world.barrier()
            raise RunFailed(
                f"stopped by {reasons[0]} before this start had gained anything on step {self._step}; another like it "
                "would not either: give the job more time, or signal it later (sbatch --time, --signal, "
                "run.stop_before_walltime_minutes)"
            )
        self._world.on_main(lambda: write_marker(self._run_dir, self._step, reasons[0]))
        raise Preempted(self._step, reasons[0])

    def meet(self, number: Tensor) -> tuple[Tensor, ToHost]:
        """The sum over all ranks of a number, shape (), on the device, and how many of the ranks are asked to stop.

        The votes travel with a number that a step sums up anyway, at no cost. Read them once the step is
        launched: that waits until the device has begun it, so that the host is at most a step ahead.
        """
        totals = self._world.all_reduce_sum(
            torch.stack([number, torch.full_like(number, float(self._requests.reason is not None))])
        )
        return totals[0], ToHost(totals[1])
