"""What mixing pastes: classes and boxes, drawn at random."""

import torch


def half_of_classes(label: torch.Tensor) -> torch.Tensor:
    """Choose ceil(n / 2) of the n classes present in each label at random.

    Args:
        label: uint8 [N,H,W], 255 = ignore, which is never chosen.

    Returns:
        bool [N,256]: the ids chosen.
    """
    present = torch.zeros(len(label), 256, dtype=torch.bool, device=label.device)
    present.scatter_(1, label.flatten(1).long(), True)
    present[:, 255] = False
    draw = torch.rand(present.shape).to(label.device, non_blocking=True).masked_fill(~present, 2.0)
    rank = draw.argsort(1).argsort(1)
    wanted = (present.sum(1, keepdim=True) + 1) // 2
    return rank < wanted


def half_area_boxes(n: int, height: int, width: int) -> torch.Tensor:
    """Draw a box of half the image's area, of random shape and place, for each image.

    Returns:
        int64 [N,1,4]: x0, y0, x1, y1 in pixels, half open.

    Source: CutMix-Seg (French et al. 2020), section 3.3: proportion 0.5, the height's share
    uniform in log scale between the proportion and 1.
    """
    share, x, y = torch.rand(3, n)
    tall = 0.5 ** (1 - share)
    box_h, box_w = (tall * height).round(), (0.5 / tall * width).round()
    x0, y0 = (x * (width - box_w + 1)).floor(), (y * (height - box_h + 1)).floor()
    return torch.stack([x0, y0, x0 + box_w, y0 + box_h], 1).long().unsqueeze(1)
