"""What the definitions ask of their arguments; checks.h asks the same."""

import torch


def check(condition: bool, sentence: str) -> None:
    """Raise RuntimeError with this sentence unless the condition holds."""
    torch._check(condition, lambda: sentence)


def check_classes(num_classes: int) -> None:
    """Check the number of classes."""
    check(1 <= num_classes <= 256, f"num_classes must be 1..256, got {num_classes}")
