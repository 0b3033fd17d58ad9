"""What the user got wrong, in one message."""


class UserError(Exception):
    """The configuration, the arguments or an input file is wrong: one clear message, exit code 2, no traceback.

    The message says what was wrong, what is allowed, and what to type.
    """


class RunFailed(Exception):
    """A run cannot go on: one message that says why and what to do, exit code 1, no traceback."""
