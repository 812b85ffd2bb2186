"""Label maps, images and files to time with, as large and as compressible as real ones."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datasets.cityscapes import ROWS

NUM_CLASSES, IGNORE = 19, 255
RAW_TO_TRAIN = {row.id: row.train_id for row in ROWS if row.train_id != IGNORE}


def regions(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return class ids uint8 [H,W] in smooth regions."""
    width, height = size
    coarse = torch.randn(1, NUM_CLASSES, 8, 16, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bicubic").argmax(1)[0].byte()


def smooth_logits(size: tuple[int, int], num_classes: int, generator: torch.Generator) -> Tensor:
    """Return logits float32 [1,C,h,w] of stride 16 in regions, as a trained network gives them."""
    h, w = size[1] // 16 + 1, size[0] // 16 + 1
    noise = torch.randn(1, num_classes, h, w, generator=generator)
    coarse = torch.randn(1, num_classes, 9, 17, generator=generator)
    return 4 * F.interpolate(coarse, size=(h, w), mode="bicubic") + 0.1 * noise


def ignore_bottom(ids: Tensor) -> Tensor:
    """Return the ids with the lowest tenth of the rows ignored, a car's bonnet."""
    labelled = ids.clone()
    labelled[-len(ids) // 10 :] = IGNORE
    return labelled


def picture(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Return an image uint8 [3,H,W] of a colour for each class, shading and sensor noise.

    The noise makes a PNG of about 1.1 bytes a pixel, as GTA5's and Cityscapes' files are, because
    the time to decode one depends on it.
    """
    colours = torch.randint(40, 216, (256, 3), generator=generator).float()
    shading = F.interpolate(
        torch.randn(1, 3, 24, 48, generator=generator), size=ids.shape, mode="bicubic"
    )[0]
    noise = torch.randn(3, *ids.shape, generator=generator)
    image = colours[ids.long()].permute(2, 0, 1) + 12 * shading + noise
    return image.clamp(0, 255).byte()


def batch(size: tuple[int, int], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images uint8 [N,3,H,W] and labels uint8 [N,H,W]."""
    generator = torch.Generator().manual_seed(seed)
    maps = [regions(size, generator) for _ in range(count)]
    images = [picture(ids, generator) for ids in maps]
    return torch.stack(images), torch.stack([ignore_bottom(ids) for ids in maps])


def write_files(folder: Path, size: tuple[int, int], count: int, distinct: int = 8) -> Path:
    """Write PNGs with raw ids of Cityscapes, which GTA5 shares, and a list that names `count`.

    Args:
        folder: made if absent.
        size: W, H in pixels.
        count: lines of the list.
        distinct: files behind them at most; the others are links to these, as no list may name
            an image twice.

    Returns:
        the list file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    raw = np.zeros(256, np.uint8)  # 0 is unlabeled
    raw[list(RAW_TO_TRAIN.values())] = list(RAW_TO_TRAIN)
    distinct = min(distinct, count)
    for index in range(distinct):
        images, labels = batch(size, 1, index)
        pixels = images[0].permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(folder / f"image{index}.png")
        Image.fromarray(raw[labels[0].numpy()]).save(folder / f"label{index}.png")
    for index in range(distinct, count):
        for kind in ("image", "label"):
            (folder / f"{kind}{index}.png").hardlink_to(folder / f"{kind}{index % distinct}.png")
    listed = folder / "list.txt"
    listed.write_text("".join(f"image{i}.png label{i}.png\n" for i in range(count)))
    return listed
