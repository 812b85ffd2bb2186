"""Draw every augmentation of --augment on an image of yours, its label beside it.

    python -m tools.sheet street.jpg --label street_labels.png --save sheet.png
    python -m tools.sheet street.jpg --save rain.png --augment rain=0.9 "fog=0.5 patch=0.5"

A row of tiles is as many words; each changes the image for certain (p=1), at its defaults where no
keys are given. Black in a label is 255, what is ignored. Pasted is from the image's mirror image;
the style is that of --target, or of the image itself as dusk would have it.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from datasets import files
from datasets.making import colours
from engine import options, parsing, start
from engine.errors import UserError
from engine.files import refuse_replacing, whole
from engine.seeds import seed_everything
from engine.words import grouped
from training.augment import AUGMENTATIONS, Augment, parse_augmentation
from training.batch import Batch

GAP, TITLE = 4, 18  # pixels
EXAMPLES = {"crop": "crop={crop}", "copy_paste": "copy_paste={classes}"}  # what needs a value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    flag = parser.add_argument
    flag("image", metavar="IMAGE", help="a photograph")
    flag("--label", metavar="FILE", help="its ids, a PNG of the same size")
    flag("--target", metavar="FILE", help="an image whose style fda and lab take")
    flag("--augment", nargs="+", metavar="WORD", help="as in training; default: every one")
    flag("--save", required=True, metavar="FILE.png", help="the sheet")
    flag(
        "--size",
        type=parsing.at_least(16),
        default=320,
        metavar="N",
        help="longer side that the image is made first, in pixels; default %(default)s",
    )
    flag("--columns", type=parsing.at_least(1), default=6, help="of tiles; default %(default)s")
    flag("--random-seed", type=int, default=0, help="of what is drawn; default %(default)s")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Read, change, draw."""
    refuse_replacing([args.save], [p for p in (args.image, args.label, args.target) if p])
    batch = read(args.image, args.label, args.size)
    target = read(args.target, None, args.size)["image"] if args.target else dusk(batch["image"])
    words = [certain(group) for group in grouped(args.augment or every(batch), AUGMENTATIONS)]
    tiles = [("as it is", Batch(batch["image"].float(), batch.get("label")))]
    for word in tqdm(words, disable=None, leave=False):
        seed_everything(args.random_seed, word)  # else all would draw the same
        augment = Augment([word], ("source",), lambda: target)
        tiles.append((word.removesuffix(" p=1"), augment(batch, "source")))
    sheet = draw(tiles, min(args.columns, len(tiles)))
    save(sheet, args.save)
    print(f"wrote {args.save}: {len(words)} words, {sheet.width}x{sheet.height} pixels")
    if not args.label and not args.augment:
        print("classmix and copy_paste are left out: they paste by labels (--label)")


def read(path: str, label: str | None, side: int) -> dict[str, torch.Tensor]:
    """Return a batch of an image and its mirror image, and their labels.

    Raises:
        UserError: a file that cannot be read, or a label of another size.
    """
    image = files.read_image(path)
    factor = side / max(image.size)
    size = tuple(max(1, round(length * factor)) for length in image.size)
    pixels = torch.from_numpy(np.array(image.resize(size, Image.Resampling.BICUBIC)))
    batch = {"image": both_ways(pixels.permute(2, 0, 1))}
    if label:
        ids = files.read_label(label)
        if ids.shape[::-1] != image.size:
            shape = "{}x{}".format(*ids.shape[::-1])
            raise UserError(f"{label}: {shape} pixels, its image has {image.width}x{image.height}")
        nearest = Image.fromarray(ids).resize(size, Image.Resampling.NEAREST)
        batch["label"] = both_ways(torch.from_numpy(np.array(nearest)))
    return batch


def both_ways(pixels: torch.Tensor) -> torch.Tensor:
    """Return an image and its mirror image as a batch."""
    return torch.stack([pixels, pixels.flip(-1)])


def dusk(images: torch.Tensor) -> torch.Tensor:
    """Return images half as bright, and bluish: for styles, where no target is given."""
    return (images * torch.tensor([0.45, 0.5, 0.7]).view(3, 1, 1)).to(torch.uint8)


def every(batch: dict[str, torch.Tensor]) -> list[str]:
    """Return a word for each augmentation that the batch can have."""
    height, width = batch["image"].shape[2:]
    fill = {"crop": f"{max(1, width * 2 // 3)},{max(1, height * 2 // 3)}", "classes": ""}
    if "label" in batch:
        ids, counts = batch["label"][batch["label"] != 255].unique(return_counts=True)
        # what is rare, of what can be seen
        rare = [i for n, i in sorted(zip(counts.tolist(), ids.tolist(), strict=True)) if n > 100]
        fill["classes"] = ",".join(map(str, sorted(rare[:3] or [0])))
    unlabelled = () if "label" in batch else ("classmix", "copy_paste")
    words = [name for name in AUGMENTATIONS if name not in unlabelled]
    return [EXAMPLES.get(name, name).format(**fill) for name in words]


def certain(group: str) -> str:
    """Return a word that changes every image, unless it says how likely."""
    _, name, _ = parse_augmentation(group)
    said = any(pair.startswith("p=") for pair in group.split())
    return group if said or AUGMENTATIONS[name].p is None else f"{group} p=1"


def draw(tiles: list[tuple[str, Batch]], columns: int) -> Image.Image:
    """Return tiles of a title, an image and, under it, its label."""
    height, width = tiles[0][1].image.shape[2:]
    labelled = tiles[0][1].label is not None
    cell_w, cell_h = width + GAP, (height + GAP) * (1 + labelled) + TITLE
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * cell_w, rows * cell_h), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    palette = np.array([*colours(256)[1:], (0, 0, 0)], dtype=np.uint8)
    for number, (title, batch) in enumerate(tiles):
        left, top = number % columns * cell_w, number // columns * cell_h
        pen.text((left + 2, top + 1), title, "black", font)
        pixels = batch.image[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)
        sheet.paste(Image.fromarray(pixels.numpy()), (left, top + TITLE))
        if labelled:
            painted = Image.fromarray(palette[batch.label[0].numpy()])
            sheet.paste(painted, (left, top + TITLE + height + GAP))
    return sheet


def save(sheet: Image.Image, path: str) -> None:
    """Write the sheet, whole or not at all.

    Raises:
        UserError: it cannot be written there.
    """
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"--save {path}: the sheet is a PNG, give it a name that ends in .png")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole(Path(path)) as file:
            sheet.save(file, format="PNG")
    except OSError as error:
        raise UserError(f"{path}: cannot write the sheet: {error.strerror or error}") from error


if __name__ == "__main__":
    start.run(main, parse_args)
