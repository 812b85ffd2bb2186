"""Commands beside the five scripts: python -m tools.NAME."""

import engine  # noqa: F401 -- first: it says what is to be installed
