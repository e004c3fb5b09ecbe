"""What ends a command: wrong input, a run that fails, one that was asked to stop; and what an error says in a line."""

import re

# After lines that say no more than that there was an error.
_NCCLS_REASON = re.compile(r"Last error:\s*(\S.*)")


class UserError(Exception):
    """An error in what the user gave: a setting, a file, a checkpoint.

    The message names the place, the value and the remedy. The command line prints it without a
    traceback and exits with 1.

    on_all_ranks: True where every rank raises the same error, so that rank 0 alone prints it.
    """

    def __init__(self, message: str, on_all_ranks: bool = False) -> None:
        super().__init__(message)
        self.on_all_ranks = on_all_ranks


class RunFailed(Exception):
    """A run that cannot go on though its input was right (the loss diverged, say); exit code 3."""


class Preempted(Exception):
    """A run that was asked to stop and has; all ranks raise it together, after the same step. Exit code 75.

    step: the optimizer steps done, which are saved; None where nothing is known of any. reason: SIGTERM, SIGUSR1,
    SIGINT, SIGHUP or walltime.
    """

    def __init__(self, step: int | None, reason: str) -> None:
        super().__init__(f"stopped by {reason}" if step is None else f"stopped by {reason} after step {step}")
        self.step = step
        self.reason = reason

    def __reduce__(self) -> tuple[type["Preempted"], tuple[int | None, str]]:
        """For the way from one process to another: by default an exception is made anew of its message alone."""
        return type(self), (self.step, self.reason)


def summary(error: BaseException) -> str:
    """The first line of an error's message, and NCCL's reason, which it tells last."""
    text = str(error).strip()
    first_line = (text.splitlines() or [""])[0]
    reason = _NCCLS_REASON.search(text)
    return first_line if reason is None else f"{first_line}: {reason[1].strip()}"


def shared_memory_message(text: str) -> str | None:
    """The message where an error's text says that NCCL found too little shared memory, None for any other error.

    NCCL calls it a system error, as it does a connection that is lost.
    """
    reason = _NCCLS_REASON.search(text)
    if reason is None or not ("/dev/shm" in reason[1] or "No space left" in reason[1]):
        return None
    return (
        f"/dev/shm is too small for NCCL ({reason[1].strip():.200}); give the container more, such as docker run "
        "--shm-size 16g, or free some of it"
    )
