"""The one exception that stands for a user's mistake rather than a bug."""


class UserError(ValueError):
    """Say in one line what was given, what is allowed and which file is meant.

    Scripts print it as ``error: ...`` and exit with status 2, without a traceback
    (`start.run`). Any other exception is a bug and keeps its traceback.
    """
