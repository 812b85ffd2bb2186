"""Write a network's predictions as label PNGs: pseudo labels to train on.

    python pseudo_label.py --restore-from snapshots/gta5/gta5_best.pth --data-dir data/Cityscapes \\
        --save data/pseudo --threshold 0.9

How good they are, where true labels exist:

    python evaluate.py --predictions data/pseudo --dataset cityscapes --data-dir data/Cityscapes \\
        --set train

Each PNG holds train ids at the size of its image, 255 where the softmax maximum is below
--threshold. list.txt has a line `image label` for each, the label relative to --save; it is written
last: a folder without it is not finished. pseudo.json says how much of each class was kept, and
that the folder is ours: without it no file that is there already is written over.
"""

import json
from pathlib import Path

import engine
import options
from checkpoint import write_text
from errors import UserError
from predictions import VOID, Writers, stems, writable_folder


def parse_args(argv: list[str] | None = None):
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    parser.add_argument("--restore-from", required=True, metavar="FILE", help="checkpoint")
    parser.add_argument("--save", required=True, metavar="DIR", help="where the labels go")
    parser.add_argument(
        "--threshold",
        type=options.at_least(0, float),
        default=0.0,
        metavar="P",
        help="least confidence of a pixel that is kept, 0 to 1; default %(default)s, all",
    )
    options.add_data(parser, split="train")
    options.add_views(parser)
    options.add_model(parser, default=None)
    options.add_device(parser)
    return parser.parse_args(argv)


def main(args) -> None:
    """Predict every image, then write the list and the shares kept."""
    import inference  # imports kernels, which compiles them
    from datasets import write_label_png
    from metrics import ConfusionMatrix, plain

    if args.threshold > 1:
        raise UserError(f"--threshold is a probability, 0 to 1: {args.threshold}")
    device = engine.pick_device(args.device)
    predictor, dataset = inference.restore(
        args.restore_from,
        device,
        architecture=options.architecture(args),
        data={**options.data_values(args), "labelled": False},
        precision=args.precision,
        **options.view_values(args),
    )
    folder = writable_folder(args.save)
    labels = {name: f"{stem}.png" for name, stem in stems(dataset).items()}
    check_overwriting(folder, labels, dataset.root)
    summary = {
        "checkpoint": args.restore_from,
        "threshold": args.threshold,
        "images": len(dataset),
    }
    write_text(folder / "pseudo.json", json.dumps(summary, indent=1) + "\n")
    (folder / "list.txt").unlink(missing_ok=True)

    # what was kept of what was predicted: a confusion of the predictions with themselves
    kept = ConfusionMatrix(dataset.num_classes, dataset.class_names, allow_void=True)
    batches = inference.predict(
        predictor,
        dataset,
        with_confidence=args.threshold > 0,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        timeout_seconds=args.loader_timeout,
    )
    with Writers() as write:
        for batch, pred, confidence in batches:
            label = pred
            if args.threshold > 0:
                label = pred.masked_fill(confidence < args.threshold, VOID)
            kept.update(label, pred)
            for name, ids in zip(batch["name"], label.cpu().numpy(), strict=True):
                write(write_label_png, folder / labels[name], ids, dataset.palette)

    shares = kept.compute()
    kept_of_class = dict(zip(dataset.class_names, map(plain, shares["accuracy"]), strict=True))
    summary |= {"kept": shares["pixel_accuracy"], "kept_of_class": kept_of_class}
    write_text(folder / "pseudo.json", json.dumps(summary, indent=1) + "\n")
    write_text(folder / "list.txt", list_text(labels))
    for name, share in kept_of_class.items():
        print(f"{name}\t{'never predicted' if share is None else f'{share:.2f} % kept'}")
    print(f"{len(dataset)} labels in {folder}, {summary['kept']:.2f} % of the pixels kept")


def check_overwriting(folder: Path, labels: dict[str, str], root: Path) -> None:
    """Check that no image, and no file of anyone else's, would be written over.

    Args:
        folder: where the labels go.
        labels: image, relative to `root`, -> label, relative to `folder`.
        root: of the images.

    Raises:
        UserError: names the first such file.
    """
    images = {(root / image).resolve() for image in labels}
    ours = (folder / "pseudo.json").exists()
    for name in ("list.txt", *labels.values()):
        path = folder / name
        if path.resolve() in images or (path.exists() and not ours):
            raise UserError(f"{path} would be written over: give --save a folder of its own")


def list_text(labels: dict[str, str]) -> str:
    """Return `image label` lines, with tabs if a name holds a space."""
    space = "\t" if any(" " in name for name in labels) else " "
    return "".join(f"{image}{space}{label}\n" for image, label in labels.items())


if __name__ == "__main__":
    engine.run(main, parse_args)
