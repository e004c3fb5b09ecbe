"""Starts artkv's own verbs in processes of their own, as a launcher would on any machine."""

import signal
import subprocess
import sys
from types import FrameType

from artkv import shell


def launch(verb: str, ranks: int, *options: str) -> int:
    """`artkv VERB ...` as one process, or as so many by DeepSpeed's launcher; returns the exit code.

    What asks this process to stop asks the other as well, which is waited for: a training then saves. Called on the
    main thread.
    """
    command = [sys.executable, "-m", "artkv", verb, *options]
    if ranks > 1:
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
        # It reports several lines a rank, and warns that there is no hostfile: not here.
        command = [*launcher, "--log_level", "error", "--module", "artkv", verb, *options]
    process = subprocess.Popen(command, env=shell.without_person())

    def pass_on(_: int, __: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM)  # the launcher knows no other; a single process takes it for the same

    asking = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, pass_on) for number in asking}
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal has sent it to both
        process.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
