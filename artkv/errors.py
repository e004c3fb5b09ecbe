"""The one exception that means: the user's input is wrong, and here is what to do."""


class UserError(Exception):
    """An error in what the user gave: a setting, a file, a checkpoint.

    The message names the place, the value and the remedy. The command line prints it without a
    traceback and exits with 1.
    """


class RunFailed(Exception):
    """A run that cannot go on though its input was right (the loss diverged, say); exit code 3."""
