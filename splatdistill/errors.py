"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """A mistake in what the user gave: its message is one line that says what was wrong,
    what was expected and what to do. Commands print it and exit with status 2."""
