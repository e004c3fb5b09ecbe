"""The cluster of the tests here, and how long each fault took."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.cluster.mini_cluster import MiniCluster, WaitedInVain, missing_requirements, wait_for

_WAITED_IN_VAIN = pytest.StashKey[str]()
# launch/*.sh take the environment of the tests in place of .venv.
ENVIRONMENT = {
    "VENV": "none",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(Path(__file__).parents[3]),
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniCluster]:
    """Two nodes, for four ranks each."""
    if missing := missing_requirements():
        pytest.skip(f"no Slurm cluster here: {missing}")
    with MiniCluster(tmp_path_factory.mktemp("cluster"), ENVIRONMENT) as running:
        yield running


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.excinfo is not None and call.excinfo.errisinstance(WaitedInVain):
        item.config.stash.setdefault(_WAITED_IN_VAIN, item.name)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """After a wait in vain the rest is not run, so that the whole group ends within minutes whatever hangs."""
    if hung := item.config.stash.get(_WAITED_IN_VAIN, None):
        pytest.skip(f"not run, since {hung} waited in vain")


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: MiniCluster) -> Iterator[None]:
    """After each test no process of a job lives on any node, and /dev/shm is empty everywhere."""
    yield
    try:
        wait_for(lambda: not cluster.leftovers(), 20, "the end of all processes of jobs")
    except WaitedInVain as error:
        left = "\n".join(cluster.leftovers())
        raise AssertionError(f"{error}\n{left}") from None
    finally:
        cluster.on("head", ["scancel", "--user=root"])
        cluster.wait_until_idle()


@pytest.fixture
def fault_seconds(request: pytest.FixtureRequest) -> Iterator[dict[str, float]]:
    """What happened to a job -> the seconds until it ended or was queued again; printed after all tests."""
    measured: dict[str, float] = {}
    yield measured
    request.node.user_properties.extend(("fault_seconds", pair) for pair in measured.items())
