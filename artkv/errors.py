"""The one exception that means: the user's input is wrong, and here is what to do."""


class UserError(Exception):
    """An error in what the user gave: a setting, a file, a checkpoint.

    The message names the place, the value and the remedy. The command line prints it without a
    traceback and exits with 1.

    on_one_rank: True where other ranks may not meet the error. All others are met by every rank alike,
    and rank 0 alone prints them.
    """

    def __init__(self, message: str, on_one_rank: bool = False) -> None:
        super().__init__(message)
        self.on_one_rank = on_one_rank


class RunFailed(Exception):
    """A run that cannot go on though its input was right (the loss diverged, say); exit code 3."""
