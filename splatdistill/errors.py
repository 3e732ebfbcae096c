"""The exceptions that commands tell in one line: a user's mistake, and a run that came to nothing."""


class UserError(ValueError):
    """A mistake in what the user gave: its message is one line that says what was wrong,
    what was expected and what to do. Commands print it and exit with status 2."""


class Diverged(RuntimeError):
    """A run that came to nothing, although it was asked for rightly: too many bad steps, no Gaussian left, a
    teacher that predicts NaN. Commands print its one line and exit with status 1."""
