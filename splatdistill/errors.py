"""Exceptions that commands report in one line: user errors and diverged runs."""

import errno

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # the disk is full


class UserError(ValueError):
    """An error in the user's input, reported in one line with exit status 2.

    The message says what was wrong, what was expected and what to do.
    """


class Diverged(RuntimeError):
    """A run that failed although its input was valid, reported in one line with exit status 1.

    Causes: too many bad steps, no Gaussian left, a teacher that predicts NaN.
    """
