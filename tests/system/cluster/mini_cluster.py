"""A Slurm cluster on one machine: a head and nodes made of Linux namespaces, with real daemons.

Each node has a network, host name, processes, /run and /dev/shm of its own, and runs sshd, munged and slurmd; the head
runs slurmctld. They share the file system, as the nodes of a cluster do. The network exists inside the namespaces only,
so that clusters do not see each other, and all files are below one folder. A node is gone with its process 1, with all
that ran on it.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

NODE_SCRIPT = Path(__file__).with_name("node.sh")
NETWORK = "10.77.0"

SLURM_CONF = """
ClusterName=tests
SlurmctldHost=head({network}.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge/munge.socket.2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# More CPUs and memory than the machine has.
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
# Far shorter than a real cluster's (300, 30), so that a test need not wait.
SlurmdTimeout=10
KillWait=5
ReturnToService=2
NodeName={nodes} CPUs={cpus} RealMemory={memory} State=UNKNOWN {node_gres}
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
{gres_types}
"""

SSHD_CONFIG = """
HostKey {folder}/host_key
PidFile /run/sshd.pid
AuthorizedKeysFile {folder}/user_key.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
"""

SSH_CONFIG = """
Host *
  IdentityFile {folder}/user_key
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def missing_requirements() -> str | None:
    """Why no cluster can be started here, or None."""
    programs = ("slurmctld", "slurmd", "munged", "sshd", "pdsh", "ip", "ps", "nsenter", "unshare", "setpriv")
    missing = [name for name in programs if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if os.geteuid() != 0:
        return "needs root"
    if missing:
        return f"needs {', '.join(missing)}: run tests/install_packages.sh"
    trial = "ip link add br0 type bridge && ip link add n1 type veth peer name eth0 && mount -t tmpfs tmpfs /run"
    unshared = subprocess.run(
        ["unshare", "-n", "-u", "-i", "-m", "-p", "--fork", "--mount-proc", "sh", "-c", trial],
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}, capture_output=True, check=False,
    )  # fmt: skip
    return None if unshared.returncode == 0 else f"no namespaces or networks: {unshared.stderr.decode().strip()}"


class WaitedInVain(AssertionError):
    """Something did not come within its time."""


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Polls until `condition` holds and returns the seconds it took; fails with `what` after `seconds`."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise WaitedInVain(f"not within {seconds} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - start


def _has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class MiniCluster:
    """A running cluster; leaving the context ends every process of it."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], num_nodes: int = 2, cpus: int = 4, gpus: int = 0
    ) -> None:
        """folder: empty, for configuration, logs and keys. environment: what commands on the nodes find set, beside
        this process's own. cpus, gpus: of each node; the GPUs can be allocated, no more.
        """
        self.folder = folder
        self.environment = {**os.environ, **environment, "SLURM_CONF": f"{folder}/slurm.conf"}
        self.nodes = [f"n{number}" for number in range(1, num_nodes + 1)]
        self._outer: dict[str, subprocess.Popen[bytes]] = {}
        self._daemons: set[str] = set()
        self._cpus = cpus
        self._gpus = gpus

    def __enter__(self) -> "MiniCluster":
        self._write_configuration()
        try:
            for name in ("head", *self.nodes):
                self.boot(name)
            self.wait_until_idle()
            self._daemons = {line for name in self._outer for line in self._processes(name)}
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name in [*self._outer]:
            self.kill(name)

    def boot(self, name: str) -> None:
        """Starts a node, new or killed before, and waits until its daemons are up."""
        up = self.folder / f"{name}.up"
        up.unlink(missing_ok=True)
        # --kill-child ends process 1, and so the whole node, with unshare; --pdeathsig ends unshare with the tests,
        # however those end.
        unshare = ["unshare", "-n", "-u", "-i", "-m", "-p", "--fork", "--kill-child", "--mount-proc"]
        with (self.folder / "log" / f"init.{name}").open("ab") as log:
            self._outer[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *unshare, "bash", str(NODE_SCRIPT), str(self.folder), name],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
            )  # fmt: skip
        wait_for(lambda: self._process_1(name) is not None, 10, f"process 1 of {name}")
        if name != "head":
            cable = f"ip link add {name} type veth peer name eth0 netns {self._process_1(name)}"
            plug = f"ip link set {name} master br0 up"
            in_heads_network = ["nsenter", "--target", str(self._process_1("head")), "--net"]
            subprocess.run([*in_heads_network, "sh", "-c", f"{cable} && {plug}"], check=True)
        wait_for(up.exists, 20, f"{name} up; see {self.folder}/log")

    def kill(self, name: str) -> None:
        """Takes a node's power away: no process of it gets a chance to say goodbye."""
        outer = self._outer.pop(name)
        process_1 = self._process_1_of(outer)
        outer.kill()
        outer.wait()
        # The kernel ends process 1 last, when all other processes of the node are gone.
        if process_1 is not None:
            wait_for(lambda: _has_ended(process_1), 20, f"the end of {name}")

    def on(
        self, name: str, command: Sequence[str], seconds: float = 60, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on a node, in the working directory of the tests, for at most `seconds`."""
        return subprocess.run(
            [*self._enter(name), "timeout", "--kill-after=5", str(seconds), *command],
            env={**self.environment, **(environment or {})},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def begin(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """Starts a command on a node, in the working directory of the tests; what it prints is dropped."""
        return subprocess.Popen(
            [*self._enter(name), *command], env={**self.environment, **environment},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def output(self, name: str, command: Sequence[str]) -> str:
        """What a command that must succeed prints."""
        result = self.on(name, command)
        assert result.returncode == 0, f"{' '.join(command)}: {result.stdout}{result.stderr}"
        return result.stdout.strip()

    def is_idle(self) -> bool:
        """Whether Slurm would give any node to a job."""
        states = self.on("head", ["sinfo", "--noheader", "--Node", "--format=%t"]).stdout.split()
        return states == ["idle"] * len(self.nodes)

    def wait_until_idle(self) -> None:
        wait_for(self.is_idle, 60, f"all nodes idle; see {self.folder}/log")

    def leftovers(self) -> list[str]:
        """What jobs left on running nodes: processes that an idle cluster does not have, and files in /dev/shm."""
        found = []
        for name in self._outer:
            found += [f"{name}: {line}" for line in self._processes(name) if line not in self._daemons]
            found += [f"{name}: /dev/shm/{file}" for file in self.output(name, ["ls", "-A", "/dev/shm"]).split()]
        return found

    def _processes(self, name: str) -> list[str]:
        """The command lines of a node's processes, without that of this call."""
        lines = self.output(name, ["ps", "-e", "-o", "args="]).splitlines()
        return [line.strip() for line in lines if "ps -e -o args=" not in line]

    def _enter(self, name: str) -> list[str]:
        namespaces = ["--net", "--uts", "--ipc", "--mount", "--pid"]
        return ["nsenter", "--target", str(self._process_1(name)), *namespaces, f"--wd={os.getcwd()}", "--"]

    def _process_1(self, name: str) -> int | None:
        outer = self._outer[name]
        assert outer.poll() is None, f"{name} ended; see {self.folder}/log/init.{name}"
        return self._process_1_of(outer)

    @staticmethod
    def _process_1_of(outer: subprocess.Popen[bytes]) -> int | None:
        """The number, on this machine, of the only child of `unshare`."""
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def _write_configuration(self) -> None:
        folder = self.folder
        for name in ("log", "state"):
            (folder / name).mkdir(parents=True)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        for key in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
        nodes = f"n[1-{len(self.nodes)}]"
        values = {
            "folder": folder, "network": NETWORK, "nodes": nodes, "cpus": self._cpus, "memory": 500_000,
            "node_gres": f"Gres=gpu:{self._gpus}" if self._gpus else "",
            "gres_types": "GresTypes=gpu" if self._gpus else "",
        }  # fmt: skip
        (folder / "slurm.conf").write_text(SLURM_CONF.format(**values))
        (folder / "sshd_config").write_text(SSHD_CONFIG.format(**values))
        (folder / "ssh_config").write_text(SSH_CONFIG.format(**values))
        addresses = ["127.0.0.1 localhost", f"{NETWORK}.254 head"]
        addresses += [f"{NETWORK}.{number} {name}" for number, name in enumerate(self.nodes, start=1)]
        (folder / "hosts").write_text("".join(f"{line}\n" for line in addresses))
        if self._gpus:
            for number in range(self._gpus):
                os.mknod(folder / f"gpu{number}", 0o20666, os.makedev(1, 3))  # the null device
            (folder / "gres.conf").write_text(f"NodeName={nodes} Name=gpu File={folder}/gpu[0-{self._gpus - 1}]\n")
