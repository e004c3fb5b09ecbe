"""What is known of other processes, against psutil."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from artkv.run_folder.processes import descendants, is_anothers, is_stopped, is_zombie, machine, process_start

CHILD_AND_GRANDCHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"


def test_descendants_are_those_that_psutil_finds() -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD_AND_GRANDCHILD]) as child:
        deadline = time.monotonic() + 60
        while len(found := descendants(child.pid)) < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert found == [process.pid for process in psutil.Process(child.pid).children(recursive=True)]
        assert descendants(os.getpid())[0:1] != []
        os.kill(found[0], signal.SIGKILL)
        child.wait()
    assert descendants(child.pid) == []


def test_a_process_is_known_by_its_start_and_state() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        started = process_start(child.pid)
        assert started is not None
        assert started == int(Path(f"/proc/{child.pid}/stat").read_text().split()[21])
        assert not is_stopped(child.pid)
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert is_stopped(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_zombie(child.pid)
        assert process_start(child.pid) is None
    assert not is_zombie(child.pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_a_process_of_another_user_is_known_to_be_there() -> None:
    assert not is_anothers(os.getpid())
    assert not is_anothers(2**53)
    asking = "import os; from artkv.run_folder.processes import is_anothers; os.setuid(65534); print(is_anothers({}))"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        found = subprocess.check_output([sys.executable, "-c", asking.format(child.pid)], text=True)
        child.kill()
    assert found == "True\n"
    assert subprocess.check_output([sys.executable, "-c", asking.format(child.pid)], text=True) == "False\n"


def test_this_machine_has_one_name() -> None:
    assert machine() == machine()
    assert os.uname().nodename in machine()
