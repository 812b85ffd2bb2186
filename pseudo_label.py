"""Write what networks predict as label PNGs: pseudo labels to train on.

    python pseudo_label.py --restore-from snapshots/gta5/gta5_best.pth --data-dir data/Cityscapes \\
        --save data/pseudo --threshold 0.9

The surest fifth of each class, by the mean of three networks over three scales and mirrored images:

    python pseudo_label.py --restore-from a.pth b.pth c.pth --data-dir data/Cityscapes \\
        --save data/pseudo --portion 0.2 --scales 0.75,1,1.25 --flip --confidence

Each PNG of train_ids/ holds ids at the size of its image, 255 where the softmax maximum is too low;
color/ has them to look at.
--threshold is one for every class. --portion keeps that share of the pixels of each class (CBST):
it predicts everything twice, as a class's threshold is known only when all its pixels are counted.

confidence/ (--confidence) holds round(255 * softmax maximum), variance/ (--variance) holds
round(255 * (1 - exp(-KL))), KL the divergence of the main from the auxiliary head: 0 where they
agree. list.txt has a line `image label` for each, the label relative to --save; it is written last:
a folder without it is not finished, and the same command goes on with it. To train on it:

    python train_seg.py --pseudo-labels data/pseudo --dataset cityscapes \\
        --data-dir data/Cityscapes --snapshot-dir snapshots/student

pseudo.json says what the labels were made with, what was kept of each class and, with --score, how
good they are.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

# first: it says what is to be installed
from engine import data_options, options, parsing, processes, start

# isort: split

import torch

import kernels
from datasets import DATASETS
from engine.device import pick_device
from engine.errors import UserError
from engine.files import digest, file_digest
from inference import loop, thresholds
from inference.label_folders import VOID
from inference.metrics import ConfusionMatrix, plain
from inference.outputs import Writers, held
from inference.predictor import Ensemble
from inference.pseudo_folder import PseudoFolder
from models import MODELS


def parse_args(argv: list[str] | None = None):
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    parser.add_argument(
        "--restore-from",
        required=True,
        nargs="+",
        metavar="FILE",
        help="checkpoint; the probabilities of several are averaged",
    )
    parser.add_argument("--save", required=True, metavar="DIR", help="where the labels go")
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument(
        "--threshold",
        type=parsing.between(0, 1),
        default=0.0,
        metavar="P",
        help="least confidence of a pixel that is kept; default %(default)s, all",
    )
    rule.add_argument(
        "--portion",
        type=parsing.between(0, 1),
        metavar="P",
        help="share of each class's pixels to keep, the surest ones",
    )
    parser.add_argument("--confidence", action="store_true", help="write it as 8-bit PNGs too")
    parser.add_argument(
        "--variance", action="store_true", help="write where the heads of the networks disagree"
    )
    parser.add_argument(
        "--score", action="store_true", help="compare with the dataset's labels, which must exist"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew")
    data_options.add_data(parser, DATASETS, split="train")
    options.add_views(parser)
    options.add_model(parser, MODELS, default=None)
    options.add_weights_entry(parser)
    options.add_device(parser)
    return options.parse(parser, argv)


def main(args) -> None:
    """Predict every image, with --portion once more, then write the list and what came out."""
    if args.portion == 0:
        raise UserError("--portion is above 0, to 1: 0 would keep nothing")
    predictors, dataset = loop.restore_all(
        args.restore_from,
        pick_device(args.device),
        foreign=options.foreign(args),
        images=data_options.images(args),
        opener=partial(loop.open_dataset, labelled=args.score),
        precision=args.precision,
        align_corners=args.align_corners,
        views=options.views(args),
    )
    predictor = Ensemble(predictors)
    if args.variance:
        check_heads(args.restore_from, predictors)
        predictor = thresholds.WithVariance(predictor)
    settings = settings_of(args, predictors, dataset)
    maps = [name for name in ("confidence", "variance") if settings[name]]
    with held(args.save):
        folder = PseudoFolder(args.save, dataset, settings, maps, args.overwrite)
        make(args, folder, predictor, dataset)


def make(args, folder: PseudoFolder, predictor, dataset) -> None:
    """Fill a folder, unless that is done."""
    if folder.finished:
        print(f"{folder.path} is finished: nothing to do; --overwrite begins anew")
        return

    def predicted(start: int) -> Iterator[tuple]:
        return loop.predict(
            predictor,
            dataset,
            options.loading(args),
            batch_size=args.batch_size,
            with_confidence=True,
            start=start,
        )

    bins = None
    if args.portion:
        counts = torch.zeros(dataset.num_classes, thresholds.BINS, dtype=torch.int64)
        for _, pred, confidence, *_ in predicted(0):
            histogram = thresholds.histogram(confidence, pred, dataset.num_classes)
            counts = counts.to(histogram.device) + histogram  # no wait for the device
        bins = thresholds.class_bins(processes.add_up(counts.cpu()), args.portion)
    write_labels(args, folder, dataset, predicted, bins)
    results = results_of(args, folder, dataset, bins)
    folder.finish(results)
    report(results, dataset, folder.path)


def check_heads(paths: list[str], predictors: list) -> None:
    """Check that every network has two heads."""
    for path, predictor in zip(paths, predictors, strict=True):
        if "aux" not in predictor.network.heads:
            raise UserError(f"{path} has one head: --variance compares two (--multi-level)")


def settings_of(args, predictors: list, dataset) -> dict:
    """Return the plain values that decide what is written, for pseudo.json."""
    contents = list(map(file_digest, args.restore_from))
    images = [image for image, _ in dataset.pairs]
    names = [Path(path).name for path in args.restore_from]
    return {
        "checkpoints": [f"{name} {digits}" for name, digits in zip(names, contents, strict=True)],
        "model": args.model,
        "dataset": dataset.name,
        "classes": dataset.class_names,
        "images": len(dataset),
        "image_names": digest("\n".join(images).encode(errors="surrogateescape")),
        "input_size": dataset.size,
        "scales": args.scales,
        "flip": args.flip,
        "slide": args.slide,
        **({"temperature": True} if args.temperature else {}),
        "align_corners": predictors[0].align_corners,
        "precision": [predictor.precision for predictor in predictors],
        "threshold": args.threshold,
        "portion": args.portion,
        "confidence": args.confidence,
        "variance": args.variance,
        "score": args.score,
        "processes": processes.world_size(),  # each goes on with its own images
    }


def write_labels(args, folder, dataset, predicted: Callable, bins) -> None:
    """Write the PNGs of the images that are left, and count what they hold."""

    def count(pred, label):
        return kernels.confusion_matrix(pred, label, dataset.num_classes, VOID)

    with Writers() as write:
        batches = folder.written.over(predicted(folder.written.done), before_saving=write.wait)
        for batch, pred, confidence, *variance in batches:
            if bins is None:
                sure = confidence >= args.threshold
            else:
                sure = thresholds.above_bins(confidence, pred, bins)
            label = pred.masked_fill(~sure, VOID)
            # of each predicted class, what was kept: a confusion of the predictions with themselves
            folder.written.add(kept=count(label, pred))
            if args.score:
                truth = batch["label"].to(pred.device, non_blocking=True)
                folder.written.add(
                    all=count(pred, truth), sure=count(pred, truth.where(sure, VOID))
                )
            maps = [thresholds.eight_bits(confidence)] if args.confidence else []
            maps += [thresholds.eight_bits(-(-divergence).expm1()) for divergence in variance]
            arrays = [values.cpu().numpy() for values in (label, *maps)]
            for name, ids, *others in zip(batch["name"], *arrays, strict=True):
                write(folder.write, name, ids, others)


def results_of(args, folder, dataset, bins) -> dict:
    """Return what was kept of each class from which confidence on, and how good it is."""

    def matrix(name: str, **how) -> ConfusionMatrix:
        result = ConfusionMatrix(dataset.num_classes, dataset.class_names, **how)
        result.counts = folder.written.total(name)
        return result

    def by_class(values: list) -> dict:
        return dict(zip(dataset.class_names, values, strict=True))

    kept = matrix("kept", allow_void=True).compute()
    if kept["pixel_accuracy"] == 0:
        raise UserError(f"no pixel is as sure as --threshold {args.threshold}: nothing to train on")
    edges = [args.threshold] * dataset.num_classes
    if bins is not None:
        edges = thresholds.lower_edges(bins)
    results = {
        "thresholds": by_class(edges),
        "kept": kept["pixel_accuracy"],
        "kept_of_class": by_class(list(map(plain, kept["accuracy"]))),
    }
    if args.score:
        quality = {"all": matrix("all").summary(), "kept": matrix("sure").summary()}
        results["quality"] = quality
    return results


def report(results: dict, dataset, path: Path) -> None:
    """Print what was kept, and how good it is."""
    for name, share in results["kept_of_class"].items():
        above = f"confidence >= {results['thresholds'][name]:.6f}"
        shown = "never predicted" if share is None else f"{share:.2f} % kept, {above}"
        print(f"{name}\t{shown}")
    for pixels, score in results.get("quality", {}).items():
        print(
            f"mIoU {score['miou']:.2f} of {score['classes_scored']} classes, "
            f"{'every labelled pixel' if pixels == 'all' else 'the labelled pixels that were kept'}"
        )
    print(f"{len(dataset)} labels in {path}, {results['kept']:.2f} % of the pixels kept")


if __name__ == "__main__":
    start.run(main, parse_args)
