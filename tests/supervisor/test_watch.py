"""How long a rank may be silent, counted in looks: no clock is involved."""

from dataclasses import replace

import pytest

from artkv.run_folder.heartbeat import Beat
from artkv.supervisor.watch import Watch

BEAT = Beat(
    rank=0, count=1, phase="training", step=5, first_step=0, longest={}, host="n1", machine="n1", pid=11, pid_start=1,
    slurm_step=None, error="", is_wrong_input=False,
)  # fmt: skip


def looks_until_silent(watch: Watch, beats: dict[int, Beat], most: int = 5000) -> int:
    for number in range(1, most):
        if watch.look(beats) is not None:
            return number
    raise AssertionError("never silent")


def test_what_is_learned_is_allowed_three_times_over_and_half_a_minute_always() -> None:
    watch = Watch(least=30.0, interval=0.5)
    assert watch.allowed("saving") == 600.0  # nothing is known of it
    watch.look({0: replace(BEAT, longest={"saving": 40.0, "training": 0.1})})
    assert watch.allowed("saving") == 120.0
    assert watch.allowed("training") == 30.0
    watch.look({0: replace(BEAT, count=2, longest={"saving": 20.0, "training": 0.1})})
    assert watch.allowed("saving") == 120.0  # the longest ever


def test_a_rank_that_says_nothing_new_is_silent_after_what_is_allowed() -> None:
    watch = Watch(least=30.0, interval=0.5)
    beat = replace(BEAT, longest={"training": 0.1})
    assert looks_until_silent(watch, {0: beat}) == 62  # the first look is the sign, and 30 s have to be over
    watch.look({0: replace(beat, count=2)})
    assert looks_until_silent(watch, {0: replace(beat, count=2)}) == 61


def test_of_several_it_is_the_one_that_fell_silent_first() -> None:
    watch = Watch(least=5.0, interval=0.5)
    first, second = (replace(BEAT, rank=rank, longest={"training": 0.1}) for rank in (0, 1))
    for count in range(1, 4):
        assert watch.look({0: replace(first, count=count), 1: second}) is None
    beats = {0: replace(first, count=3), 1: second}
    silence = next(found for found in (watch.look(beats) for _ in range(100)) if found is not None)
    assert silence.beat.rank == 1
    assert silence.seconds == 5.5


def test_a_phase_that_is_not_known_may_take_long() -> None:
    watch = Watch(least=30.0, interval=0.5)
    watch.look({0: replace(BEAT, phase="training", longest={"training": 0.1})})
    assert looks_until_silent(watch, {0: replace(BEAT, count=2, phase="validating")}) == 1202


def test_a_start_that_says_nothing_at_all_is_noticed_and_may_take_three_times_as_long_as_the_one_before() -> None:
    watch = Watch(least=30.0, interval=0.5)
    for _ in range(40):
        watch.look({})
    watch.look({0: BEAT})  # after 20.5 s
    watch.begin()
    for _ in range(123):
        assert not watch.is_silent_from_the_first
        watch.look({})
    watch.look({})
    assert watch.is_silent_from_the_first  # 62 s


def test_a_rank_that_was_well_may_be_silent_for_twice_as_long_from_then_on() -> None:
    watch = Watch(least=30.0, interval=0.5)
    beat = replace(BEAT, longest={"training": 0.1})
    silence = next(found for found in (watch.look({0: beat}) for _ in range(100)) if found is not None)
    watch.was_alive(silence)
    assert watch.allowed("training") == pytest.approx(2 * silence.seconds)


def test_who_says_nothing_for_five_seconds_is_quiet_and_so_is_a_start_of_which_nothing_is_heard() -> None:
    watch = Watch(least=30.0, interval=0.5)
    assert [watch.is_quiet for _ in range(12) if watch.look({}) is None] == [False] * 10 + [True] * 2
    watch.begin()
    for count in range(1, 30):
        watch.look({0: replace(BEAT, count=count)})
        assert not watch.is_quiet
    quiet = [watch.is_quiet for _ in range(12) if watch.look({0: replace(BEAT, count=29)}) is None]
    assert quiet == [False] * 10 + [True] * 2
