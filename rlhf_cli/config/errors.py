"""What the user got wrong, in one message."""


class UserError(Exception):
    """The configuration, the arguments or an input file is wrong: one clear message, exit code 2, no traceback.

    The message says what was wrong, what is allowed, and what to type.
    """


INTERRUPTED = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143, "SIGUSR2": 143, "SIGHUP": 129}
"""Exit codes of a run that a signal stopped, its checkpoint saved."""


class RunFailed(Exception):
    """A run cannot go on: one message that says why and what to do, exit code 1, no traceback."""
