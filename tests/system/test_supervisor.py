"""Faults to a supervised training of two ranks under the real launcher; `kill_test.py` does more, and elsewhere too."""

import os
import random
from pathlib import Path

import pytest

from tests.system.faults import Fault, Kind, Place, differences, disturbed, local, small_disk, undisturbed

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a disk that is full")]

FAULTS: tuple[Kind, ...] = ("SIGKILL", "full disk", "SIGSTOP")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return local(num_ranks=2, folder=tmp_path_factory.mktemp("launcher"), silence=5)


def test_whatever_happens_to_it_a_supervised_training_ends_with_the_undisturbed_bytes(
    place: Place, tiny_world: Path, tmp_path: Path
) -> None:
    done: list[Fault] = []
    with small_disk(tmp_path / "disk") as disk:
        wanted = undisturbed(place, tiny_world, disk / "undisturbed")
        found = disturbed(place, tiny_world, disk / "a run", FAULTS, random.Random(0), done.append)
    assert differences(found, wanted) == []
    assert len(done) >= 2, "the run was over before the faults were"
