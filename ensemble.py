"""Let several predictions of the same images vote, pixel by pixel.

    python ensemble.py --predictions runs/a/train_ids runs/b/train_ids runs/c/train_ids \\
        --save runs/vote

    python evaluate.py --predictions runs/vote --dataset cityscapes --data-dir data/Cityscapes

The folders hold label PNGs of the same names and sizes, as evaluate.py --save and pseudo_label.py
write them. A pixel of 255 abstains; the class with the most votes (weighted with --weights) wins,
the lowest id in a tie.
"""

from pathlib import Path

from tqdm import tqdm

import engine
import options
import predictions
from errors import UserError


def parse_args(argv: list[str] | None = None):
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    parser.add_argument("--predictions", nargs="+", required=True, metavar="DIR", help="the voters")
    parser.add_argument("--save", required=True, metavar="DIR", help="where the result goes")
    parser.add_argument(
        "--weights",
        type=options.numbers(float),
        metavar="W,W,...",
        help="votes of each folder; default: one each",
    )
    return parser.parse_args(argv)


def main(args) -> None:
    """Check that the folders agree, then vote on one image after the other."""
    import kernels  # compiles them
    from datasets import write_label_png

    folders, weights = args.predictions, args.weights
    if weights and (
        len(weights) != len(folders) or not 1e-30 <= min(weights) <= max(weights) <= 1e30
    ):
        raise UserError(f"--weights must be {len(folders)} numbers above 0, one for each folder")
    for folder in folders:
        if Path(args.save).resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(f"--save {args.save} lies in {folder}, which votes: give another")
    voters = predictions.same_names(folders)
    save = predictions.writable_folder(args.save)
    with predictions.Writers() as write:
        for stem in tqdm(voters[0], disable=None, leave=False):
            ballots, palette = predictions.read_together([voter[stem] for voter in voters])
            vote = kernels.hard_vote(ballots, num_classes=predictions.VOID, weights=weights)
            write(write_label_png, save / f"{stem}.png", vote.numpy(), palette)
    print(f"{len(voters[0])} images, {len(folders)} votes each, in {save}")


if __name__ == "__main__":
    engine.run(main, parse_args)
