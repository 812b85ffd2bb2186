"""Commands beside the five scripts: python -m tools.NAME."""
