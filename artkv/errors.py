"""What ends a command: wrong input, a run that fails, a run that was asked to stop."""


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

    step: the optimizer steps done, which are saved. reason: SIGTERM, SIGUSR1, SIGINT, SIGHUP or walltime.
    """

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"stopped by {reason} after step {step}")
        self.step = step
        self.reason = reason

    def __reduce__(self) -> tuple[type["Preempted"], tuple[int, str]]:
        """For the way from one process to another: by default an exception is made anew of its message alone."""
        return type(self), (self.step, self.reason)
