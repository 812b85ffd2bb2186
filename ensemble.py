"""Let several predictions of the same images vote, pixel by pixel.

Folders of label PNGs, as evaluate.py --save, pseudo_label.py and this write them, or flat ones:

    python ensemble.py --predictions runs/a runs/b runs/c --save runs/vote

Networks, each voting with its class, or with its probabilities where --soft is given:

    python ensemble.py --restore-from a.pth b.pth c.pth --save runs/vote --soft

Submission files with the columns image_id and PredictionString, row by row:

    python ensemble.py --csv a.csv b.csv c.csv --save vote.csv --weights 2,1,1

The class with the most votes (weighted with --weights) wins, the lowest id in a tie; a pixel of 255
in a PNG abstains. Afterwards a table says how often the members agree with the vote and with each
other. --select first looks for the members that help, by the mIoU of their vote on labelled images;
score the selection on other images, as it was chosen to look good on these:

    python ensemble.py --predictions a/train_ids b/train_ids c/train_ids --save runs/vote \\
        --select --dataset camvid --data-dir data/CamVid
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

# first: it says what is to be installed
from engine import data_options, options, parsing, processes, start

# isort: split

import torch
from tqdm import tqdm

import kernels
from datasets import DATASETS, write_label_png
from engine.device import pick_device
from engine.errors import UserError
from engine.files import UNFINISHED, refuse_replacing
from inference import label_folders, loop, outputs, predictor, submissions, votes

# flags that act on networks alone, and those that say which images have labels
FOR_NETWORKS = {"soft", "input_size", "batch_size", "scales", "flip", "slide", "align_corners"}
FOR_NETWORKS |= {"device", "precision", "num_workers", "loader_timeout"}
FOR_LABELS = {"dataset", "data_dir", "data_list", "set", "data_option", "cache"}


def parse_args(argv: list[str] | None = None):
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--predictions", nargs="+", metavar="DIR", help="vote over these PNGs")
    what.add_argument("--csv", nargs="+", metavar="FILE", help="vote over these submissions")
    what.add_argument("--restore-from", nargs="+", metavar="FILE", help="vote of these checkpoints")
    parser.add_argument(
        "--save", required=True, metavar="PATH", help="the result: a folder, a file for --csv"
    )
    parser.add_argument(
        "--weights",
        type=parsing.numbers(float),
        metavar="W,W,...",
        help="votes of each member; default: one each",
    )
    parser.add_argument(
        "--soft", action="store_true", help="average the checkpoints' probabilities"
    )
    parser.add_argument(
        "--agreement", metavar="DIR", help="write the winner's share of the votes as 8-bit PNGs"
    )
    parser.add_argument(
        "--select", action="store_true", help="vote with the members that help; needs labels"
    )
    parser.add_argument("--truth", metavar="FILE", help="true ids for --select among --csv")
    parser.add_argument(
        "--num-classes",
        type=parsing.at_least(1),
        metavar="N",
        help=f"ids of --csv are 0..N-1; default {label_folders.VOID}",
    )
    data_options.add_data(parser, DATASETS)
    options.add_views(parser)
    options.add_device(parser)
    return options.parse(parser, argv)


def main(args) -> None:
    """Vote over what was given, and say how far the members agree."""
    check(args)
    if args.csv:
        vote_submissions(args)
    elif args.restore_from:
        vote_checkpoints(args)
    else:
        vote_folders(args)


def check(args) -> None:
    """Refuse options that would do nothing, weights that are none, and to write over a member.

    Raises:
        UserError: says which.
    """
    members = args.predictions or args.csv or args.restore_from
    if not args.restore_from:
        options.refuse_idle(args, FOR_NETWORKS, "--restore-from")
    if not (args.restore_from or (args.predictions and args.select)):
        needed = "--restore-from, or --predictions and --select"
        options.refuse_idle(args, FOR_LABELS, needed)
    if args.csv:
        options.refuse_idle(args, {"agreement"}, "--restore-from or --predictions")
    else:
        options.refuse_idle(args, {"truth", "num_classes"}, "--csv")
    if processes.world_size() > 1 and (args.csv or (args.restore_from and args.select)):
        raise UserError("--csv, and --select among networks, run in one process")
    if args.soft and args.select:
        raise UserError("--select scores hard votes: leave --soft away")
    if args.csv and args.select != (args.truth is not None):
        raise UserError("--select among --csv needs --truth, a submission of true ids, and only it")
    if (args.num_classes or 1) > label_folders.VOID:
        raise UserError(f"--num-classes is at most {label_folders.VOID}: {args.num_classes}")
    weights = args.weights
    if weights and (
        len(weights) != len(members) or not all(1e-30 <= weight <= 1e30 for weight in weights)
    ):
        raise UserError(f"--weights must be {len(members)} numbers above 0, one for each member")
    for flag, path in (("--save", args.save), ("--agreement", args.agreement)):
        for member in [*members, *filter(None, [args.truth])]:
            if path and Path(path).resolve().is_relative_to(Path(member).resolve()):
                raise UserError(f"{flag} {path} lies in {member}, which votes: give another")
    if args.agreement:
        one, other = Path(args.agreement).resolve(), Path(args.save).resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise UserError("--save and --agreement are folders apart, neither within the other")


def vote_submissions(args) -> None:
    """Vote over the rows of --csv, in the order and with the columns of the first file."""
    num_classes = args.num_classes or label_folders.VOID
    members = [submissions.Submission(path, num_classes) for path in args.csv]
    truth = [submissions.Submission(args.truth, 256)] if args.select else []
    submissions.check_same_images([*members, *truth])
    outputs.writable_folder(Path(args.save).parent)
    if Path(args.save).is_dir():
        raise UserError(f"--save {args.save} is a folder: name a file for --csv")
    first, images = members[0], members[0].images

    def rows(files: list) -> Iterator:
        return ahead(lambda image: submissions.read_together(files, image), images)

    chosen = list(range(len(members)))
    if args.select:
        classes = [str(c) for c in range(num_classes)]
        labelled = lambda: ((ids[:-1], ids[-1]) for ids in rows([*members, *truth]))  # noqa: E731
        chosen = votes.select(args.csv, args.weights, classes, labelled)
    weights, agreement = only(chosen, args.weights), votes.Agreement(len(chosen))
    with submissions.writing(args.save, first.header) as write:
        for image, ballots in zip(images, rows(only(chosen, members)), strict=True):
            vote = kernels.hard_vote(ballots, num_classes, weights)
            agreement.update(ballots, vote)
            write(first.rewritten(image, vote.numpy()))
    report(agreement, only(chosen, args.csv), args.save)


def vote_folders(args) -> None:
    """Vote over the PNGs of --predictions."""
    members = label_folders.same_images(args.predictions)
    look = outputs.Look(label_folders.palette_of(args.predictions))
    inputs = [path for pngs in members for path in pngs.values()]
    outputs.check_inputs_stay(args.save, look.kinds, members[0], inputs)
    chosen = list(range(len(members)))
    if args.select:
        dataset = loop.open_dataset(data_options.images(args), checkpoint={})
        chosen = select_folders(args.predictions, args.predictions, dataset, args.weights)
    with outputs.held(args.save) as folder:
        ballots = folder_ballots(only(chosen, members))
        save_votes(args, folder, args.predictions, chosen, look, ballots)


def vote_checkpoints(args) -> None:
    """Predict with every network of --restore-from, image by image, and vote."""
    names = args.restore_from
    networks, dataset = loop.restore_all(
        names,
        pick_device(args.device),
        foreign=None,
        images=data_options.images(args),
        opener=partial(loop.open_dataset, labelled=args.select),
        precision=args.precision,
        align_corners=args.align_corners,
        views=options.views(args),
    )
    look = outputs.Look.of(dataset)
    outputs.check_data_stay(args.save, look.kinds, dataset)
    if args.agreement:
        stems = label_folders.stems(dataset).values()
        shares = [Path(args.agreement, f"{stem}.png") for stem in stems]
        refuse_replacing(shares, (p for i in range(len(dataset)) for p in dataset.paths(i)))
    voters = votes.Voters(predictor.Ensemble(networks, args.weights), args.soft)
    loading = options.loading(args)
    batches = loop.predict(voters, dataset, loading, batch_size=args.batch_size)
    images = network_ballots(batches, dataset, len(names))
    with outputs.held(args.save) as folder:
        if not args.select:
            save_votes(args, folder, names, list(range(len(names))), look, images)
            return
        # every round of the choice reads the ballots again: each network runs once
        with tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as scratch:
            folders = [f"{scratch}/{i}" for i in range(len(names))]
            with outputs.Writers() as write:
                for stem, ballots, _ in images:
                    for member, ids in zip(folders, ballots.numpy(), strict=True):
                        write(write_label_png, Path(member, f"{stem}.png"), ids)
            chosen = select_folders(folders, names, dataset, args.weights)
            members = label_folders.same_images(only(chosen, folders))
            save_votes(args, folder, names, chosen, look, folder_ballots(members))


def network_ballots(batches: Iterable[tuple], dataset, num_members: int) -> Iterator[tuple]:
    """Yield what `save_votes` takes, from batches of `voting.Voters`."""
    stems = label_folders.stems(dataset)
    for batch, maps, _ in batches:
        for name, ids in zip(batch["name"], maps.cpu(), strict=True):
            vote = ids[num_members] if len(ids) > num_members else None
            yield stems[name], ids[:num_members], vote


def select_folders(folders: list[str], names: list[str], dataset, weights) -> list[int]:
    """Return the members that help, by the labels of the dataset that the folders predict."""
    pairs = [label_folders.PredictedPairs(dataset, folder) for folder in folders]

    def read(index: int) -> tuple:
        label = dataset[index]["label"]
        return torch.stack([pair.read(index, label) for pair in pairs]), label

    return votes.select(
        names, weights, dataset.class_names, lambda: ahead(read, range(len(dataset)))
    )


def save_votes(
    args,
    folder: Path,
    names: list[str],
    chosen: list[int],
    look: outputs.Look,
    images: Iterable[tuple],
) -> None:
    """Write the vote on every image, and the agreement if asked to; print the table.

    Args:
        args: of the command line.
        folder: for the votes.
        names: of all members.
        chosen: those whose ballots come.
        look: what is written of a vote.
        images: the file name without suffix, ballots uint8 [M,H,W], and the vote uint8 [H,W], None
            for one vote (or weight) each.
    """
    weights, agreement = only(chosen, args.weights), votes.Agreement(len(chosen))
    with contextlib.ExitStack() as stack:
        unfinished = stack.enter_context(outputs.whole_folder(folder))
        if args.agreement:
            held = stack.enter_context(outputs.held(args.agreement))
            shares = stack.enter_context(outputs.whole_folder(held))
        write = stack.enter_context(outputs.Writers())
        for stem, ballots, vote in images:
            if vote is None:
                vote = kernels.hard_vote(ballots, label_folders.VOID, weights)
            agreement.update(ballots, vote)
            look.write(write, unfinished, stem, vote.numpy())
            if args.agreement:
                share = votes.agreeing_share(ballots, vote, weights)
                write(write_label_png, shares / f"{stem}.png", share)
    agreement.add_up_processes()
    report(agreement, only(chosen, names), args.save)


def report(agreement, names: list[str], save: str) -> None:
    """Print the table of agreement and where the votes are."""
    print("\n".join(agreement.lines(names)))
    print(f"{agreement.images} images, {len(names)} votes each, in {save}")


def folder_ballots(members: list[dict[str, Path]]) -> Iterator[tuple]:
    """Return what `save_votes` takes, from folders of PNGs."""
    stems = list(members[0])
    own = [stems[i] for i in processes.share(len(stems))]

    def read(stem: str) -> tuple:
        return stem, label_folders.read_together([pngs[stem] for pngs in members]), None

    return ahead(read, own)


def ahead(read: Callable, items) -> Iterator:
    """Yield `read(item)` of every item, read ahead, with a progress bar."""
    return tqdm(votes.read_ahead(read, items), total=len(items), disable=None, leave=False)


def only(chosen: list[int], values) -> list | None:
    """Return the values of the members chosen, None where there are none."""
    return values and [values[i] for i in chosen]


if __name__ == "__main__":
    start.run(main, parse_args)
