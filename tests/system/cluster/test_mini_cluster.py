"""The test cluster itself: what the other tests here take for granted."""

from pathlib import Path

import psutil
import pytest

from tests.system.cluster.conftest import ENVIRONMENT
from tests.system.cluster.mini_cluster import MiniCluster

pytestmark = pytest.mark.system


def mentions(folder: Path) -> list[str]:
    """Processes and mounts of this machine that name `folder`."""
    processes = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in [*processes, *mounts] if f"{folder}/" in line or f"{folder} " in line]


def own_shared_memory() -> list[str]:
    """What lies on the machine's /dev/shm, but for what trainings beside these tests put there and take away."""
    names = sorted(path.name for path in Path("/dev/shm").iterdir())
    return [name for name in names if not name.startswith(("torch_", "sem.", "psm_", "pym-"))]


def test_two_clusters_run_side_by_side_and_leave_nothing(cluster: MiniCluster, tmp_path: Path) -> None:
    shared_memory = own_shared_memory()
    with MiniCluster(tmp_path, ENVIRONMENT) as other:
        for each in (cluster, other):
            assert sorted(each.output("head", ["srun", "--nodes=2", "hostname"]).split()) == ["n1", "n2"]
        assert mentions(tmp_path)
        # Neither a daemon's files nor a job's are on the machine's own /dev/shm, and nodes see no one else's.
        other.output("n1", ["touch", "/dev/shm/left"])
        assert other.leftovers() == ["n1: /dev/shm/left"]
        assert cluster.leftovers() == []
    assert mentions(tmp_path) == []
    assert own_shared_memory() == shared_memory


def test_a_killed_node_is_gone_at_once_and_comes_back(cluster: MiniCluster) -> None:
    cluster.kill("n2")
    assert cluster.on("head", ["ping", "-c1", "-W1", "10.77.0.2"]).returncode != 0
    cluster.boot("n2")
    cluster.wait_until_idle()
    assert cluster.output("head", ["srun", "--nodelist=n2", "hostname"]) == "n2"
