"""Run a network on half-overlapping windows of an image.

Windows start on multiples of the network's stride, so that the cells of all of them coincide and
logits are averaged without being resized.

Source: HRDA hrda_encoder_decoder.py and mmseg, which average at the image's full size. Deviations:
the overlap is one half, and the last window reaches the border by growing (by less than a stride)
instead of by moving back.
"""

import math
from collections.abc import Callable

from torch import Tensor

from engine.errors import UserError


def in_windows(
    network: Callable[[Tensor], Tensor], images: Tensor, window: tuple[int, int]
) -> Tensor:
    """Average the logits of windows on the grid that the whole image would give.

    Args:
        network: images [N,3,H,W] -> logits [N,C,h,w], its stride a power of two up to 32.
        images: float [N,3,H,W].
        window: W, H in pixels, multiples of 32; a side that reaches over the image is cut.

    Returns:
        logits [N,C,h,w].

    Raises:
        UserError: a window of fewer than three cells of the network's grid.
    """
    first = images[:, :, : window[1], : window[0]]
    corner = network(first)
    rows = _spans(images.shape[2], window[1], corner.shape[2])
    columns = _spans(images.shape[3], window[0], corner.shape[3])
    parts = []
    for top, bottom, row in rows:
        for left, right, column in columns:
            view = images[:, :, top:bottom, left:right]
            # the corner is done already, unless it is the last window too and has grown
            done = top == left == 0 and view.shape == first.shape
            parts.append((row, column, corner if done else network(view)))

    row, column, last = parts[-1]
    grid = (*last.shape[:2], row + last.shape[2], column + last.shape[3])
    total, count = last.new_zeros(grid), last.new_zeros(grid[2:])
    for row, column, part in parts:
        cells = (..., slice(row, row + part.shape[2]), slice(column, column + part.shape[3]))
        total[cells] += part
        count[cells] += 1
    return total / count


def _spans(length: int, window: int, cells: int) -> list[tuple[int, int, int]]:
    """Return start and end in pixels, and start in cells, of the windows along one side.

    `cells` is how many the network makes of a window. A network of stride r, a power of two, makes
    ceil(window / r) of it, or one more with DeepLabv2's padding; both give the same r below.
    """
    if window >= length:
        return [(0, length, 0)]
    if cells < 3:
        raise UserError(f"a window of {window} pixels is only {cells} cells of the network's grid")
    stride = 2 ** math.floor(math.log2(window / (cells - 1)))
    last = (length - window) // stride * stride
    starts = [*range(0, last, window // 2 // stride * stride), last]
    # The last window grows by less than a stride to reach the border.
    return [
        (start, length if start == last else start + window, start // stride) for start in starts
    ]
