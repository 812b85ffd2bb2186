"""The mean teacher: a network whose weights are an average of the student's."""

import copy

import torch
from torch import Tensor

from engine import processes
from training.average import move
from training.student import Student, make_forward


class Teacher:
    """A copy of the student's network that follows it, step by step, and is not trained.

    Its average is that of `training.average.move`.

    Args:
        student: in training.
        momentum: the largest a, 0 to 1.

    Source: Tarvainen and Valpola 2017 (mean teacher), with the ramp of DACS. Deviation from DACS:
    floating-point buffers (batch-norm statistics) are averaged too, integer ones copied; DACS
    leaves the teacher's buffers to its own forward passes.
    """

    def __init__(self, student: Student, momentum: float):
        self.momentum = momentum
        self.network = copy.deepcopy(student.network).requires_grad_(False)
        self._forward = make_forward(self.network, student.training, student.device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs, without the auxiliary one, for images, float [N,3,H,W], 0 to 255."""
        return self._forward(images, aux=False)

    def follow(self, student: Student, updates: int) -> None:
        """Move to the student, `updates` having been done before."""
        move(self.network, student.network, updates, self.momentum)

    def end(self) -> None:
        """Average what its forward passes left in its buffers over all processes."""
        processes.average_buffers(self.network)

    def state_dict(self) -> dict:
        """Return the network's."""
        return self.network.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Restore the network."""
        self.network.load_state_dict(state)
