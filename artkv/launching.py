"""Starts artkv's own verbs in processes of their own, on the GPUs of this machine that CUDA_VISIBLE_DEVICES shows.

`python -m artkv.launching [--ranks N] artkv VERB ...` is the launcher of the scripts for one machine.
"""

import argparse
import base64
import json
import os
import signal
import socket
import subprocess
import sys
from types import FrameType

from artkv import shell
from artkv.argument_values import whole_number
from artkv.errors import Preempted
from artkv.training.preemption import heeded

_LOOPBACK = "127.0.0.1"


def launch(verb: str, ranks: int, *options: str) -> int:
    """`artkv VERB ...` as one process, or as so many by DeepSpeed's launcher; returns the exit code.

    What asks this process to stop asks the other as well, which is waited for: a training then saves. `Preempted` is
    raised then, however the other has ended, for nothing else is to be begun. Called on the main thread.
    """
    process: subprocess.Popen[bytes] | None = None
    asked: list[str] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        asked.append(signal.Signals(number).name)
        if process is not None:
            process.send_signal(signal.SIGTERM)  # the launcher knows no other; a single process takes it for the same

    asking = heeded(signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in asking}
    try:
        # A terminal's goes to all processes, and DeepSpeed's launcher would die of it before its ranks have saved. So
        # the other is born with it blocked; were it ignored here for that while, one that comes then would be lost.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
        try:
            process = subprocess.Popen(command(ranks, "artkv", verb, *options), env=shell.without_person())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if asked:  # while it was started
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the terminal has sent it to both
            process.wait()
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise Preempted(None, asked[0])
    return code


def command(ranks: int, *module: str) -> list[str]:
    """What starts a module with its arguments on this machine, as one process or as so many ranks.

    Not the command `deepspeed`: told how many, it takes the first GPUs of the machine, whatever CUDA_VISIBLE_DEVICES
    says; it has one port for all runs; and it ends at a SIGTERM without its ranks. This is what it starts on each host.
    """
    if ranks == 1:
        return [sys.executable, "-m", *module]
    devices = json.dumps({"localhost": _devices(ranks)}).encode()
    return [
        sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={base64.urlsafe_b64encode(devices).decode()}",
        f"--master_addr={_LOOPBACK}", f"--master_port={os.environ.get('MASTER_PORT') or _free_port()}",
        "--log_level=error", "--module", *module,
    ]  # fmt: skip


def _devices(ranks: int) -> list[str]:
    """What CUDA_VISIBLE_DEVICES is to be for so many ranks: its first entries, numbers or names, where it is set.

    Where it has fewer, -1 follows, which is no GPU: no rank gets one that was not shown.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(ranks)]
    named = [name.strip() for name in visible.split(",") if name.strip()]
    return [*named, *["-1"] * ranks][:ranks]


def _free_port() -> int:
    with socket.create_server((_LOOPBACK, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m artkv.launching")
    parser.add_argument("--ranks", type=whole_number(1), help="(default: one a GPU, or one on the CPU)")
    parser.add_argument("module", nargs=argparse.REMAINDER, help="a module with its arguments: artkv train ...")
    given = parser.parse_args()
    if given.ranks is None:
        import torch  # seconds, which no other use of this module need wait for

        given.ranks = torch.cuda.device_count() or 1
    words = command(given.ranks, *given.module)
    os.execv(words[0], words)


if __name__ == "__main__":
    _main()
