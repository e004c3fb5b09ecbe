"""What a rank says of itself is read back by another process, and says nothing where nobody supervises."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from artkv.errors import UserError
from artkv.run_folder.heartbeat import STACKS_SIGNAL, Heartbeat, beat_path, heartbeat, read_beats, stacks_file


def test_steps_and_phases_are_read_back(tmp_path: Path) -> None:
    alive = Heartbeat(tmp_path, 3, {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "2"})
    alive.beat("starting", 10)
    alive.beat("training", 10)
    alive.beat(step=11)
    alive.beat("saving")
    (beat,) = read_beats(tmp_path).values()
    assert (beat.rank, beat.phase, beat.step, beat.first_step, beat.slurm_step) == (3, "saving", 11, 10, "17.2")
    assert (beat.pid, beat.is_here, beat.lives_here, beat.error) == (os.getpid(), True, True, "")


def test_the_longest_time_between_two_signs_is_told_for_each_phase(tmp_path: Path) -> None:
    alive = Heartbeat(tmp_path, 0, {})
    alive.beat("training", 1)
    time.sleep(0.1)
    alive.beat(step=2)
    alive.beat(step=3)
    alive.beat("saving")
    time.sleep(0.05)
    alive.beat("training")
    longest = read_beats(tmp_path)[0].longest
    assert longest["training"] >= 0.1
    assert 0.05 <= longest["saving"] < longest["training"]


def test_of_a_phase_of_several_parts_the_longest_is_told_once_it_is_over(tmp_path: Path) -> None:
    """A start that has imported says nothing yet of how long it will read weights."""
    alive = Heartbeat(tmp_path, 0, {})
    alive.beat()
    time.sleep(0.05)
    alive.beat()
    alive.beat("starting", 3)
    assert alive._beat.longest == {}
    alive.beat("training", 3)
    assert alive._beat.longest["starting"] >= 0.05
    alive.beat(step=4)
    assert alive._beat.longest.keys() == {"starting", "training"}
    alive.beat("saving")
    alive.beat("starting")
    alive.beat("training")
    assert alive._beat.longest["starting"] >= 0.05  # of the longer one


def test_many_signs_are_few_writes_of_one_length(tmp_path: Path) -> None:
    alive = Heartbeat(tmp_path, 0, {})
    alive.beat("training", 1)
    path = beat_path(tmp_path, 0)
    before = path.read_bytes()
    for step in range(2, 1000):
        alive.beat(step=step)
    assert path.read_bytes() in (before, path.read_bytes())
    assert len(path.read_bytes()) == len(before)
    assert read_beats(tmp_path)[0].step < 999  # the last ones are not written yet
    alive.end(None)
    assert read_beats(tmp_path)[0].step == 999


def test_an_end_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError), heartbeat(tmp_path, 0):
        raise UserError("my.yaml: is wrong\nand more " * 100)
    beat = read_beats(tmp_path)[0]
    assert (beat.phase, beat.error, beat.is_wrong_input) == ("ended", "UserError: my.yaml: is wrong", True)
    with heartbeat(tmp_path, 0):
        pass
    assert read_beats(tmp_path)[0].error == ""


def test_a_file_that_is_being_written_or_is_no_heartbeat_is_left_out(tmp_path: Path) -> None:
    Heartbeat(tmp_path, 0, {})
    content = beat_path(tmp_path, 0).read_bytes()
    beat_path(tmp_path, 1).write_bytes(content[:100])
    beat_path(tmp_path, 2).write_bytes(json.dumps({"rank": 2}).encode())
    assert list(read_beats(tmp_path)) == [0]


def test_a_folder_that_cannot_be_written_harms_no_rank(tmp_path: Path) -> None:
    alive = Heartbeat(tmp_path / "nowhere", 0, {})
    alive.beat("training", 1)
    alive.end(None)
    assert read_beats(tmp_path / "nowhere") == {}


def test_stacks_are_written_when_asked_for(tmp_path: Path) -> None:
    Heartbeat(tmp_path, 0, {})
    signal.raise_signal(STACKS_SIGNAL)
    assert "test_stacks_are_written_when_asked_for" in stacks_file(beat_path(tmp_path, 0)).read_text()


def test_without_a_supervisor_nothing_is_written(tmp_path: Path) -> None:
    with heartbeat(None, 0) as alive:
        alive.beat("training", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_process_has_a_pulse_while_it_says_nothing_and_none_after_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artkv.run_folder.heartbeat.PULSE_SECONDS", 0.02)
    alive = Heartbeat(tmp_path, 0, {})
    alive.beat("saving", 7)
    deadline = time.monotonic() + 20
    while (beat := read_beats(tmp_path).get(0)) is None or beat.pulse < 3:
        assert time.monotonic() < deadline
    assert (beat.count, beat.phase, beat.step) == (2, "saving", 7)
    alive.end(None)
    time.sleep(0.1)
    pulse = read_beats(tmp_path)[0].pulse
    time.sleep(0.2)
    assert read_beats(tmp_path)[0].pulse == pulse
