"""What `python -m tools.benchmark` times: a module a subject, each beside the plain way."""
