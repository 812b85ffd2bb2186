"""What benchmark.py times, one module a subject, each beside the plain way of doing it."""
