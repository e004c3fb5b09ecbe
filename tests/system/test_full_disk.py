"""Two ranks on a disk that fills up, and one that is gone: neither hangs, and what is told is what happened."""

import json
import signal
import socket
from pathlib import Path

import pytest

from tests.mounted import Disk
from tests.system.ranks import started
from tests.system.run_files import logged_steps, progress, steps_logged
from tests.system.test_launchers import train
from tests.system.test_preemption import wait_until

pytestmark = [pytest.mark.system, pytest.mark.parametrize("disk", [16], indirect=True)]

SETTINGS = [
    "distributed.timeout_minutes=2",
    "training.num_epochs=40",
    "run.checkpoint_every=5",
    "run.keep_checkpoints=1",
]
NO_ROOM = "No space left on device"


def test_all_ranks_go_on_and_end_together(tiny_world: Path, tmp_path: Path, disk: Disk) -> None:
    run = disk.folder / "run"
    with started(train(tiny_world, run, SETTINGS), tmp_path) as ranks:
        wait_until(lambda: steps_logged(run) >= 6, ranks)
        disk.fill()
        wait_until(lambda: "could not be saved" in ranks.told(), ranks)
        disk.free()
        assert ranks.exit_codes() == [0, 0], ranks.told()
        told = ranks.told()
    assert NO_ROOM in told
    assert "Traceback" not in told
    assert " is saved\n" in told
    steps = logged_steps(run)
    assert steps == sorted(steps)
    assert progress(run)["step"] == steps[-1]
    assert json.loads((run / "status.json").read_text())["state"] == "finished"

    # And a stop that cannot be saved is none: each rank says so, and none says that it is.
    again = [*train(tiny_world, run, [*SETTINGS, "training.num_epochs=400"]), "--resume", "auto"]
    with started(again, tmp_path / "again") as ranks:
        wait_until(lambda: steps_logged(run) > steps[-1] + 4, ranks)
        disk.fill()
        ranks.send(signal.SIGTERM)
        assert ranks.exit_codes() == [3, 3], ranks.told()
        told = ranks.told()
    assert "which could not be saved" in told
    assert "which is saved" not in told
    assert not (run / "preempted.json").exists()
    assert json.loads((run / "status.json").read_text())["state"] == "failed"


def test_a_rank_that_is_gone_is_named(tiny_world: Path, tmp_path: Path, disk: Disk) -> None:
    run = disk.folder / "run"
    with started(train(tiny_world, run, SETTINGS), tmp_path) as ranks:
        wait_until(lambda: steps_logged(run) >= 6, ranks)
        ranks.send(signal.SIGKILL, [1])
        ranks.processes[0].join(200)
        assert ranks.processes[0].exitcode == 3, ranks.told()
    record = json.loads((run / "status.json").read_text())
    assert record["state"] == "failed"
    assert (
        record["error"] == f"rank 1 on {socket.gethostname()} did not answer: lost connection; see logs/rank_00001.log"
    )
