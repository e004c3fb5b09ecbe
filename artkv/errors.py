"""The one exception that means: the user's input is wrong, and here is what to do."""


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
