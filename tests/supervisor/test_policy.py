"""Which ends are started again, and which cause is told, from what the ranks said last."""

from dataclasses import replace

import pytest

from artkv.run_folder.heartbeat import Beat
from artkv.supervisor.policy import Fault, Policy, fault_of
from tests.supervisor.test_watch import BEAT

RANKS = {0: BEAT, 1: replace(BEAT, rank=1, pid=12)}


def ended(rank: int, error: str, is_wrong_input: bool = False) -> dict[int, Beat]:
    """All ranks, of which one has ended with an error."""
    return RANKS | {rank: replace(RANKS[rank], phase="ended", error=error, is_wrong_input=is_wrong_input)}


def test_a_killed_rank_is_told_though_the_other_one_has_an_error_of_its_own() -> None:
    lost = "RuntimeError: [pair.cc:545] Read error [127.0.0.1]:11502: Connection reset by peer"
    fault = fault_of(ended(0, lost), exit_code=1)
    assert fault.cause == "rank 1 (process 12 on n1) ended without a word (exit code 1): killed?"
    assert (fault.step, fault.has_gained, fault.is_error) == (5, True, False)


@pytest.mark.parametrize(
    "lost",
    [
        "DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited or network error",
        "RuntimeError: [unbound_buffer.cc:129] Timed out waiting 300000ms for send operation to complete",
        "DistNetworkError: The client socket has timed out after 60000ms",
    ],
)
def test_who_noticed_a_lost_rank_is_not_its_cause(lost: str) -> None:
    assert fault_of(ended(0, lost), exit_code=1).cause.startswith("rank 1 (process 12 on n1) ended without a word")


def test_an_error_of_a_ranks_own_is_the_cause_whoever_else_was_ended_for_it() -> None:
    fault = fault_of(ended(1, "ZeroDivisionError: division by zero"), exit_code=3)
    assert fault == Fault("rank 1 (process 12 on n1): ZeroDivisionError: division by zero", 5, True, is_error=True)


def test_wrong_input_is_told_in_its_own_words_and_never_started_again() -> None:
    fault = fault_of(ended(0, "UserError: config my.yaml: nothing trains", is_wrong_input=True), exit_code=1)
    assert fault.cause == "config my.yaml: nothing trains"
    assert Policy(20).reason_to_give_up(fault) == "another start would find the same"


def test_a_rank_that_was_asked_to_stop_is_started_again() -> None:
    fault = fault_of(ended(0, "Preempted: stopped by SIGTERM after step 5"), exit_code=75)
    assert fault.cause == "rank 0 was stopped by SIGTERM after step 5"
    assert Policy(20).reason_to_give_up(fault) is None


def test_the_same_error_at_the_same_step_is_not_tried_a_third_time() -> None:
    """The second start has shown that it comes back; another step, or another error, is another matter."""
    policy = Policy(20)
    errors = [("ValueError: a", 5), ("ValueError: a", 9), ("ValueError: b", 9)]
    for text, step in errors:
        beats = {0: replace(BEAT, step=step, phase="ended", error=text)}
        assert policy.reason_to_give_up(fault_of(beats, 3)) is None
    again = {0: replace(BEAT, pid=99, step=9, phase="ended", error="ValueError: b")}
    assert policy.reason_to_give_up(fault_of(again, 3)) == "the same error as before, at the same step 9"


def test_kills_are_survived_as_often_as_is_allowed_but_not_where_no_start_comes_to_a_step() -> None:
    killed = Fault("killed?", step=5, has_gained=True)
    policy = Policy(4)
    assert [policy.reason_to_give_up(killed) for _ in range(4)] == [None] * 4
    assert policy.reason_to_give_up(killed) == "it was started again 4 times already (--restarts)"
    policy = Policy(100)
    at_the_start = Fault("killed?", step=5, has_gained=False)
    for fault in (at_the_start, at_the_start, killed, at_the_start, at_the_start):
        assert policy.reason_to_give_up(fault) is None
    assert policy.reason_to_give_up(at_the_start) == "3 starts in a row did not come to a step"


def test_a_launcher_whose_ranks_never_came_up_is_tried_once_more() -> None:
    policy = Policy(20)
    fault = fault_of({}, exit_code=127)
    assert policy.pause == 0
    assert fault.cause == "no rank has come up (exit code 127)"
    assert policy.reason_to_give_up(fault) is None
    assert policy.reason_to_give_up(fault) == "the same error as before, at the same step 0"


def test_in_a_job_a_lost_node_is_waited_for_as_long_as_slurm_takes_to_notice() -> None:
    policy = Policy(20, waits_for_nodes=True)
    fault = fault_of({}, exit_code=1)
    pauses = []
    while policy.reason_to_give_up(fault) is None:
        pauses.append(policy.pause)
    assert sum(pauses) > 300
    assert pauses[-1] == 0.0  # and then as anywhere


def test_an_input_that_was_right_before_is_waited_for() -> None:
    """A disk that is full at a restart refuses the run's folder, and is not full for ever."""
    policy = Policy(20)
    assert policy.reason_to_give_up(Fault("killed?", step=5, has_gained=True)) is None
    full = Fault("run.output_dir = run: no space", 5, has_gained=False, is_error=True, is_wrong_input=True)
    assert [policy.reason_to_give_up(full) for _ in range(3)] == [None] * 3
    assert policy.pause == 20.0
    while (reason := policy.reason_to_give_up(full)) is None:
        assert policy.restarts <= 20
    assert reason == "another start would find the same"


def test_a_folder_that_could_be_written_before_is_waited_for_though_no_start_has_gained_a_step() -> None:
    full = Fault("run.output_dir = x: cannot be written", 0, False, is_error=True, is_wrong_input=True, was_right=True)
    policy = Policy(20)
    pauses = []
    while policy.reason_to_give_up(full) is None:
        pauses.append(policy.pause)
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0]
