"""Whether a training that has ended is to be started again."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from artkv.run_folder.heartbeat import Beat
from artkv.run_folder.state_record import is_lost_peer

# Faults from outside in a row, between which no step was done: a machine that kills each start will kill the next one.
_MOST_WITHOUT_A_STEP = 3
# Together longer than Slurm's default SlurmdTimeout, 300 s.
_PAUSES = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0)


@dataclass(frozen=True)
class Fault:
    """Why a start ended before its time.

    cause: a sentence. step: the last optimizer step done. has_gained: this start did a step. is_error: an error that
    the program raised itself, which may come again; else something came from outside. is_wrong_input: it will.
    has_ranks: some rank has come up. was_right: an earlier start has found the same input right.
    """

    cause: str
    step: int
    has_gained: bool
    is_error: bool = False
    is_wrong_input: bool = False
    has_ranks: bool = True
    was_right: bool = False


def reached(beats: Mapping[int, Beat]) -> tuple[int, bool]:
    """The last optimizer step done, and whether this start did one."""
    step = max((beat.step for beat in beats.values()), default=0)
    return step, any(beat.step > beat.first_step for beat in beats.values())


def fault_of(beats: Mapping[int, Beat], exit_code: int) -> Fault:
    """What the ranks' last words tell of an end. exit_code: the launcher's, which may be one of its own."""
    step, has_gained = reached(beats)
    if not beats:
        return Fault(f"no rank has come up (exit code {exit_code})", step, has_gained, is_error=True, has_ranks=False)
    told = [beats[rank] for rank in sorted(beats) if beats[rank].error]
    for beat in told:
        if beat.is_wrong_input:
            return Fault(beat.error.partition(": ")[2], step, has_gained, is_error=True, is_wrong_input=True)
    for beat in told:
        if beat.error.startswith("Preempted"):
            return Fault(f"rank {beat.rank} was {beat.error.partition(': ')[2]}", step, has_gained)
    # Who says that another one is gone has noticed it, and did not die first.
    own = [beat for beat in told if not is_lost_peer(beat.error)]
    if own:
        return Fault(f"{own[0].describe()}: {own[0].error}", step, has_gained, is_error=True)
    silent = [beats[rank] for rank in sorted(beats) if beats[rank].phase != "ended"]
    if silent:
        who = ", ".join(beat.describe() for beat in silent)
        return Fault(f"{who} ended without a word (exit code {exit_code}): killed?", step, has_gained)
    if told:
        return Fault(f"{told[0].describe()}: {told[0].error}", step, has_gained)
    return Fault(f"the launcher ended with exit code {exit_code}, though all ranks were done", step, has_gained)


class Policy:
    """Decides after each fault.

    most: starts after the first one. waits_for_nodes: a start of which no rank comes up may be one on a node that is
    lost: Slurm takes minutes to notice, and then queues the job again, which a job that has ended is not. In the same
    way an input that was right for an earlier start may be so again: a disk that is full has told so.
    pause: seconds to wait before the next start.
    """

    def __init__(self, most: int, waits_for_nodes: bool = False) -> None:
        self._most = most
        self._waits_for_nodes = waits_for_nodes
        self._pauses = list(_PAUSES)
        self._has_worked = False
        self.pause = 0.0
        self.restarts = 0
        self._errors: set[tuple[str, int]] = set()
        self._without_a_step = 0

    def reason_to_give_up(self, fault: Fault) -> str | None:
        """Why there is to be no further start; None if there is, which this counts."""
        self.pause = 0.0
        was_right = fault.is_wrong_input and (fault.was_right or self._has_worked)
        may_pass = was_right if fault.has_ranks else self._waits_for_nodes
        self._has_worked |= fault.has_gained
        if may_pass and self._pauses and self.restarts < self._most:
            self.pause = self._pauses.pop(0)
            self.restarts += 1
            return None
        self._without_a_step = 0 if fault.has_gained else self._without_a_step + 1
        if fault.is_wrong_input:
            return "another start would find the same"
        # Numbers of processes and addresses differ from start to start.
        seen = (re.sub(r"\d+", "", fault.cause), fault.step)
        if fault.is_error and seen in self._errors:
            return f"the same error as before, at the same step {fault.step}"
        if fault.is_error:
            self._errors.add(seen)
        if self._without_a_step >= _MOST_WITHOUT_A_STEP:
            return f"{self._without_a_step} starts in a row did not come to a step"
        if self.restarts >= self._most:
            return f"it was started again {self.restarts} times already (--restarts)"
        self.restarts += 1
        return None
