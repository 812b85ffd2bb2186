"""Learn to translate images between two folders that show no scene twice: CycleGAN.

    python -m tools.cyclegan data/day --like data/dusk --snapshot-dir snapshots/cyclegan \\
        --input-size 256,192 --num-steps 20000 --augment hflip
    python -m tools.translate data/day --method cyclegan \\
        --restore-from snapshots/cyclegan/cyclegan_20000.pth --save data/translated

The same command again resumes, to the last digit on a CPU. cyclegan_STEP.pth holds both generators:
`ab` translates SOURCE_DIR to the look of --like, `ba` the other way. `--blocks 6 --channels 32` has
a fifth of the multiplications of the paper's 9 and 64.

Source: Zhu et al. 2017. Deviations from the authors' code: the rate falls with every step, not
every epoch, and the numbers drawn are this project's.
"""

import argparse
import json

import torch
from torch.utils.data import Dataset

from datasets import build_dataset
from datasets.loading import step_batches
from engine import options, parsing, start, training_options
from engine.command_line import plain
from engine.device import pick_device
from engine.errors import UserError
from engine.files import digest
from engine.seeds import seed_everything
from engine.values import Loading
from training.augment import AUGMENTATIONS, Augment
from training.identity import Identity
from training.run import Run, make_folder, say
from training.translation import Game, Pool, rate_at


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    flag = parser.add_argument
    flag("images", metavar="SOURCE_DIR", help="images of the first domain")
    flag("--like", required=True, metavar="TARGET_DIR", help="images of the second domain")
    flag("--snapshot-dir", required=True, metavar="DIR", help="of this run").free = True
    flag(
        "--input-size",
        type=parsing.width_height,
        default=(256, 256),
        metavar="W,H",
        help="images are resized to, in fours; default 256,256",
    )
    flag("--batch-size", type=parsing.at_least(1), default=1, help="of each; default %(default)s")
    flag("--num-steps", type=parsing.at_least(1), default=20000, help="default %(default)s")
    stop = flag("--num-steps-stop", type=parsing.at_least(1), help="end here; default: --num-steps")
    stop.free = True
    flag("--learning-rate", type=float, default=2e-4, help="of Adam; default %(default)s")
    flag("--lambda-cycle", type=float, default=10.0, help="weight; default %(default)s")
    flag(
        "--lambda-identity",
        type=float,
        default=0.5,
        help="weight of leaving the own domain's images as they are, as a share of "
        "--lambda-cycle; default %(default)s",
    )
    flag("--blocks", type=parsing.at_least(1), default=9, help="residual; default %(default)s")
    flag(
        "--channels",
        type=parsing.at_least(1),
        default=64,
        help="first layer's; default %(default)s",
    )
    flag("--pool", type=parsing.at_least(0), default=50, help="of images; default %(default)s")
    flag("--random-seed", type=int, default=1234, help="default %(default)s")
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps").free = True
    flag("--num-workers", type=parsing.at_least(0), default=2, help="loader processes").free = True
    training_options.add_augmentation(parser, AUGMENTATIONS)
    training_options.add_saving(parser)
    return options.parse(parser, argv)


def main(args: argparse.Namespace) -> None:
    """Train both generators against both judges."""
    make_folder(args.snapshot_dir)
    device = pick_device(args.device)
    domains = open_domains(args)
    augment = Augment(args.augment, sides=("source", "target"))
    seed_everything(args.random_seed, "cyclegan")
    game = Game(args.blocks, args.channels).to(device)
    generators = game.generators
    optimizers = {
        "generators": adam(generators, args.learning_rate),
        "judges": adam(game.judges(), args.learning_rate),
    }
    pools = {"pool_a": Pool(args.pool), "pool_b": Pool(args.pool)}
    saving = training_options.saving(args)
    run = Run(args.snapshot_dir, "cyclegan", identity(args, domains), {}, saving)
    first = run.resume({"model": game, **optimizers, **pools})
    for pool in pools.values():
        pool.images = [image.to(device) for image in pool.images]
    batches = {
        side: step_batches(
            dataset,
            args.batch_size,
            seed=args.random_seed + (side == "target"),  # else both domains have one order
            start=first,
            device=device,
            loading=Loading(args.num_workers, 300),
        )
        for side, dataset in domains.items()
    }
    counts = " + ".join(f"{len(dataset)}" for dataset in domains.values())
    stop = min(args.num_steps_stop or args.num_steps, args.num_steps)
    say(f"cyclegan, {args.blocks} blocks, {args.channels} channels, on {device}; {counts} images")

    for step in run.steps(stop, args.random_seed):
        rate = rate_at(step, args.num_steps, args.learning_rate)
        for optimizer in optimizers.values():
            optimizer.param_groups[0]["lr"] = rate
        a, b = (augment(next(batches[side]), side).image / 127.5 - 1 for side in domains)
        # --- the generators, while the judges stand still
        game.judges().requires_grad_(False)
        terms, fake_b, fake_a = game.played(a, b, args.lambda_cycle, args.lambda_identity)
        learn(terms, optimizers["generators"])
        # --- the judges, on translations of this step and of earlier ones
        game.judges().requires_grad_(True)
        shown_a, shown_b = pools["pool_a"].swapped(fake_a), pools["pool_b"].swapped(fake_b)
        verdicts = game.judged(a, b, shown_a, shown_b)
        learn(verdicts, optimizers["judges"])
        run.record({**terms, **verdicts})
        if run.prints:
            run.flush(rate)
        if run.scores:
            run.scored(generators, None)
            run.save()
    run.end_if_stopped()
    if run.last is None or run.last["step"] != run.step:
        run.scored(generators, None)
    run.close()


def open_domains(args: argparse.Namespace) -> dict[str, Dataset]:
    """Open the images of both folders, without any labels.

    Raises:
        UserError: a size that the networks cannot halve twice; a folder without images.
    """
    if any(side % 4 or side < 32 for side in args.input_size):
        raise UserError(
            "--input-size {},{}: multiples of 4 from 32 on are needed".format(*args.input_size)
        )
    how = {"split": "train", "labelled": False, "size": args.input_size}
    return {
        side: build_dataset("folder", root, **how)
        for side, root in (("source", args.images), ("target", args.like))
    }


def identity(args: argparse.Namespace, domains: dict[str, Dataset]) -> Identity:
    """Return what must be equal for the run to be resumed; folders may move."""
    digests = {
        f"the {side} images": digest(json.dumps([name for name, _ in dataset.pairs]).encode())
        for side, dataset in domains.items()
    }
    return Identity(plain(args), args.defaults, frozenset(args.free) | {"images", "like"}, digests)


def adam(module: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
    """Return Adam with the momentum of the paper."""
    return torch.optim.Adam(module.parameters(), lr=rate, betas=(0.5, 0.999))


def learn(terms: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Take one step down the sum of the terms."""
    optimizer.zero_grad(set_to_none=True)
    sum(terms.values()).backward()
    optimizer.step()


if __name__ == "__main__":
    start.run(main, parse_args)
