"""Give images the appearance of another folder's, as `cyclegta` and other data sets read them.

    python -m tools.translate data/GTA5/images --like data/Cityscapes/leftImg8bit/train \\
        --method fda --beta 0.01 --save data/GTA5
    python -m tools.translate data/day --method cyclegan \\
        --restore-from snapshots/cyclegan/cyclegan_20000.pth --save data/translated

Writes DIR/images_translated/NAME.png, of the originals' names and sizes; `--source cyclegta` reads
them beside DIR/labels (or beside those of --source-option label_root=FOLDER). The folder has that
name when it is whole; the same command again goes on with what is missing.

lab gives L*, a* and b* the mean and deviation of an image of --like (Reinhard et al. 2001, in CIE
L*a*b*), fda gives the lowest frequencies its amplitudes (Yang and Soatto 2020), histogram gives
each channel its distribution of values. Which image it is depends on --random-seed and on the
name alone. cyclegan runs a generator of `python -m tools.cyclegan`, or of a file of its authors.
"""

import argparse
import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from datasets.files import read_image
from datasets.headers import SUFFIXES
from datasets.text import read_json
from datasets.walk import composed, split_ending, summary, walk_files
from engine import options, parsing, start
from engine.command_line import refuse_idle
from engine.device import pick_device
from engine.errors import UserError
from engine.files import digest, file_digest, whole, write_text
from engine.seeds import seed_for
from inference.outputs import Writers, held, writable_folder
from models import cyclegan
from training.augment import style

NAME = "images_translated"
KEPT = 16  # decoded images of --like that are kept


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    flag = parser.add_argument
    flag("images", metavar="SOURCE_DIR", help="images to translate, in subfolders too")
    flag("--like", metavar="TARGET_DIR", help="images whose look they are given")
    flag("--method", required=True, choices=[*METHODS, "cyclegan"], help="how")
    flag("--save", required=True, metavar="DIR", help=f"that {NAME}/ is written into")
    flag(
        "--strength",
        type=parsing.between(0, 1),
        default=1.0,
        metavar="P",
        help="of lab, fda and histogram: 0 leaves an image as it is; default %(default)s",
    )
    flag(
        "--beta",
        type=parsing.between(0, 0.5),
        default=0.01,
        help="of fda: half the window, as a share of the shorter side; default %(default)s",
    )
    flag("--restore-from", metavar="FILE", help="of cyclegan: the generator")
    flag(
        "--direction",
        choices=["ab", "ba"],
        default="ab",
        help="of cyclegan: to the look of its --like, or back; default %(default)s",
    )
    flag("--device", default="auto", help="of cyclegan: auto, cpu, cuda, cuda:N or mps")
    flag("--random-seed", type=int, default=0, help="which image of --like; default %(default)s")
    args = options.parse(parser, argv)
    if args.method != "fda":
        refuse_idle(args, {"beta"}, "--method fda")
    own = {"restore_from", "direction", "device"}
    if args.method == "cyclegan":
        refuse_idle(args, {"like", "strength", "random_seed"}, f"--method {', '.join(METHODS)}")
    else:
        refuse_idle(args, own, "--method cyclegan")
    needed = "restore_from" if args.method == "cyclegan" else "like"
    if getattr(args, needed) is None:
        raise UserError(f"--method {args.method} needs --{needed.replace('_', '-')}")
    return args


def main(args: argparse.Namespace) -> None:
    """Translate every image that is not there yet, then give the folder its name."""
    names = images_of(args.images)
    translate, about = translator(args)
    about |= {"source": digest(json.dumps(names).encode())}
    final, unfinished = Path(args.save, NAME), Path(args.save, f"{NAME}.unfinished")
    if final.exists():
        raise UserError(f"{final} exists already: remove it, or give another --save")
    writable_folder(unfinished)
    with held(unfinished):
        same_as_before(unfinished / "translation.json", about)
        targets = {name: unfinished / f"{split_ending(name)[0]}.png" for name in names}
        left = [name for name in names if not targets[name].exists()]
        if len(left) < len(names):
            print(f"going on: {len(names) - len(left)} of {len(names)} images are there already")
        with Writers(min(2, os.cpu_count() or 1)) as write:
            for name in tqdm(left, disable=None, unit="image"):
                write(save_png, targets[name], translate(name, read_image(Path(args.images, name))))
        write_text(Path(args.save, f"{NAME}.json"), json.dumps(about, indent=1) + "\n")
        (unfinished / "translation.json").unlink()
    os.replace(unfinished, final)
    print(f"wrote {final}: {len(names)} images")


def images_of(folder: str) -> list[str]:
    """Return the names of a folder's images, of which no two may have one stem.

    Raises:
        UserError: there is none, or two would be written to one file.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder")
    found, first = walk_files(folder, SUFFIXES), {}
    if not found.files:
        raise UserError(f"{folder}: no images here (left out: {summary(found.left_out)})")
    for name in found.files:
        other = first.setdefault(composed(split_ending(name)[0]), name)
        if other != name:
            raise UserError(f"{folder}: {other} and {name} would have one name; rename one")
    return found.files


def same_as_before(path: Path, about: dict) -> None:
    """Refuse to go on with what another translation has begun.

    Raises:
        UserError: names what differs.
    """
    if not path.exists():
        write_text(path, json.dumps(about, indent=1) + "\n")
        return
    before = read_json(path, dict, "translation")
    differs = [key for key in about if before.get(key) != about[key]]
    if differs:
        raise UserError(
            f"{path.parent} was begun with another {', '.join(differs)}: remove it, or give "
            "another --save"
        )


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [H,W,3], whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path, sync=False) as file:
        Image.fromarray(pixels).save(file, format="PNG", compress_level=1)


def translator(args: argparse.Namespace) -> tuple[Callable[[str, Image.Image], np.ndarray], dict]:
    """Return what turns (name, image) into uint8 [H,W,3], and what must be equal to go on."""
    if args.method == "cyclegan":
        return by_generator(args)
    likes = images_of(args.like)
    read = lru_cache(KEPT)(lambda name: np.asarray(read_image(Path(args.like, name))))
    how = METHODS[args.method]
    extra = {"beta": (args.beta, args.beta)} if args.method == "fda" else {}

    def translate(name: str, image: Image.Image) -> np.ndarray:
        like = likes[seed_for(args.random_seed, name) % len(likes)]
        own, other = to_tensor(np.asarray(image)), to_tensor(read(like))
        changed = own + args.strength * (how(own, other, **extra) - own)
        return changed[0].permute(1, 2, 0).clamp(0, 255).round().byte().numpy()

    about = {"method": args.method, "strength": args.strength, **extra}
    return translate, about | {
        "seed": args.random_seed,
        "like": digest(json.dumps(likes).encode()),
    }


def by_generator(
    args: argparse.Namespace,
) -> tuple[Callable[[str, Image.Image], np.ndarray], dict]:
    """Return as `translator` what a generator makes of an image."""
    device = pick_device(args.device)
    generator = cyclegan.read_generator(args.restore_from, args.direction).to(device)

    def translate(_: str, image: Image.Image) -> np.ndarray:
        pixels = to_tensor(np.asarray(image)).to(device)
        return cyclegan.translate(generator, pixels)[0].permute(1, 2, 0).cpu().numpy()

    about = {"method": "cyclegan", "generator": file_digest(args.restore_from)}
    return translate, about | {"direction": args.direction}


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Return uint8 [H,W,3] as float [1,3,H,W], 0 to 255."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()


def histogram(images: Tensor, references: Tensor) -> Tensor:
    """Give each channel the distribution of values that another image has.

    A value becomes the one below which the other image has the same share of pixels, between its
    values by straight lines, as skimage.exposure.match_histograms has it.

    Args:
        images: float [1,3,h,w] of whole numbers, 0 to 255.
        references: of any size.
    Returns:
        float, shape of `images`.
    """
    matched = torch.empty_like(images)
    for channel in range(3):
        own = images[0, channel].long()
        counts = torch.bincount(own.flatten(), minlength=256).numpy()
        other = torch.bincount(references[0, channel].long().flatten(), minlength=256).numpy()
        there = other.nonzero()[0]
        share, wanted = counts.cumsum() / counts.sum(), other.cumsum()[there] / other.sum()
        table = torch.from_numpy(np.interp(share, wanted, there)).to(images)
        matched[0, channel] = table[own]
    return matched


METHODS = {"lab": style.lab, "fda": style.fda, "histogram": histogram}


if __name__ == "__main__":
    start.run(main, parse_args)
