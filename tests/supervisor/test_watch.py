"""How long a rank may be silent, counted in looks: no clock is involved."""

from dataclasses import replace

import pytest

from artkv.run_folder.heartbeat import Beat
from artkv.supervisor.watch import Watch

BEAT = Beat(
    rank=0, count=1, phase="training", step=5, first_step=0, longest={}, pulse=0, host="n1", machine="n1", pid=11,
    pid_start=1, slurm_step=None, error="", is_wrong_input=False,
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
    looks = (watch.look({0: replace(beat, pulse=look)}) for look in range(100))
    silence = next(found for found in looks if found is not None)
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


def test_a_rank_without_a_pulse_is_silent_soon_in_a_phase_that_is_not_known_and_before_those_who_wait_for_it() -> None:
    watch = Watch(least=30.0, interval=0.5)
    stopped, waiting = (replace(BEAT, rank=rank, phase="saving") for rank in (1, 0))
    for look in range(1, 200):
        silence = watch.look({1: stopped, 0: replace(waiting, pulse=look // 10)})
        if silence is not None:
            break
    assert silence is not None
    assert (look, silence.beat.rank, silence.seconds, silence.has_pulse) == (62, 1, 30.5, False)


def test_a_phase_that_is_not_known_may_take_long_with_a_pulse_and_a_start_without_one() -> None:
    watch = Watch(least=30.0, interval=0.5)
    for look in range(1, 1202):
        assert watch.look({0: replace(BEAT, phase="saving", pulse=look // 10)}) is None
    silence = watch.look({0: replace(BEAT, phase="saving", pulse=120)})
    assert silence is not None
    assert silence.has_pulse
    watch = Watch(least=30.0, interval=0.5)
    # Its first sign comes before it loads anything, and says nothing of how long that may take.
    assert looks_until_silent(watch, {0: replace(BEAT, phase="starting")}) == 1202


def test_between_two_pulses_there_may_be_three_times_what_was_ever_between_them() -> None:
    watch = Watch(least=30.0, interval=0.5)
    beat = replace(BEAT, phase="saving")
    assert [watch.look({0: replace(beat, pulse=number)}) for number in (0, *50 * [1], *50 * [2])] == 101 * [None]
    assert looks_until_silent(watch, {0: replace(beat, pulse=3)}) == 152  # 25 s, three times over
    silence = watch.look({0: replace(beat, pulse=3)})
    assert silence is not None
    watch.was_alive(silence)
    assert watch.look({0: replace(beat, pulse=3)}) is None


def test_without_a_pulse_a_start_is_silent_after_three_times_the_longest_pause_of_an_earlier_one() -> None:
    watch = Watch(least=5.0, interval=0.5)
    beat = replace(BEAT, phase="starting")
    for pulse in [0, *40 * [1], *4 * [2]]:
        assert watch.look({0: replace(beat, pulse=pulse)}) is None  # 20 s are more than is allowed later
    watch.look({0: replace(BEAT, count=2, pulse=2)})
    watch.begin()
    assert looks_until_silent(watch, {0: beat}) == 122  # the first look is the sign, and 60 s have to be over
