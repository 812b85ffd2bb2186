"""The mean teacher: an average of the student's weights."""

import torch


@torch.no_grad()
def update_teacher(teacher: torch.nn.Module, student: torch.nn.Module, momentum: float, step: int):
    """Move the teacher to the student: t <- a t + (1 - a) s, a = min(1 - 1 / (step + 1), momentum).

    Args:
        teacher: network of the student's architecture; changed in place, buffers included.
        student: the network in training.
        momentum: the largest a, 0 to 1.
        step: updates done before; at 0 the teacher becomes a copy.

    Source: Tarvainen and Valpola 2017 (mean teacher), with the ramp of DACS. Deviation from DACS:
    floating-point buffers (batch-norm statistics) are averaged too, integer ones copied; DACS
    leaves the teacher's buffers to its own forward passes.
    """
    momentum = min(1 - 1 / (step + 1), momentum)
    student_state = student.state_dict()
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            value.lerp_(student_state[name], 1 - momentum)
        else:
            value.copy_(student_state[name])
