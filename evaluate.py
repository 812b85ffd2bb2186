"""Score checkpoints, or folders of predictions, on a labelled dataset.

A checkpoint says its architecture, classes, dataset, input size and align_corners itself:

    python evaluate.py --restore-from snapshots/demo/streets_best.pth

Weights of another project, the way it evaluates them:

    python evaluate.py --restore-from GTA2Cityscapes_multi.pth --model deeplabv2 --multi-level \\
        --aspp-dilations 6,12 --align-corners --dataset cityscapes --data-dir data/Cityscapes \\
        --input-size 1024,512

Photographs without labels, of any names and sizes; the classes and colours are the checkpoint's:

    python evaluate.py --restore-from snapshots/mine/folder_best.pth --images photos --save seen

The lines `===>class:` and `===> mIoU:` are AdaptSegNet's; the line before them is the protocol.
--save writes train_ids/ (greyscale), color/ (palette) and, where the dataset's own ids differ,
label_ids/ (what the Cityscapes server takes); of photographs overlay/ too, the colours over the
image. --predictions scores such a folder again. --report writes a page to look at, of all three.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

# first: it says what is to be installed
from engine import data_options, options, parsing, processes, start

# isort: split

from datasets import DATASETS, write_label_png
from datasets.loading import make_loader
from datasets.walk import summary
from engine.device import pick_device
from engine.errors import UserError
from engine.files import refuse_replacing, write_text
from engine.values import Images
from engine.words import keywords
from inference import intervals, label_folders, loop, outputs, photographs, scores
from inference.crf import DenseCrf, refine
from inference.metrics import ConfusionMatrix
from inference.others import Others
from inference.page import predicted, reporting
from inference.report import below_each_other, side_by_side
from models import MODELS

# flags that act on networks alone
FOR_NETWORKS = {"save", "input_size", "batch_size", "flip", "slide", "scales", "align_corners"}
FOR_NETWORKS |= {"model", "crf", "weights_entry", "device", "precision", "images"}
FOR_NETWORKS |= {"calibration", "temperature"}
# and those that act on labels alone
FOR_LABELS = {"classes", "json", "set", "data_list", "batch_size", "cache", "loader_timeout"}
FOR_LABELS |= {"intervals", "boundaries", "instances", "calibration", "val"}
# and those that name the one set of images that --val stands instead of
FOR_ONE_SET = {"dataset", "data_dir", "data_list", "set", "data_option", "predictions", "report"}


def parse_args(argv: list[str] | None = None):
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--restore-from", nargs="+", metavar="FILE", help="one or several")
    what.add_argument("--predictions", metavar="DIR", help="score these PNGs, without a network")
    parser.add_argument(
        "--prediction-ids",
        choices=["train", "label"],
        help="what --predictions hold: train ids (default), or those of the dataset's label files",
    )
    parser.add_argument("--classes", metavar="N", help="score a subset: SYNTHIA's 16 or 13")
    parser.add_argument(
        "--crf",
        nargs="*",
        metavar="KEY=VALUE",
        help="refine predictions along the edges of the image, by a fully connected CRF; "
        f"{', '.join(f'{k.name}={k.default:g}' for k in keywords(DenseCrf).values())}",
    )
    parser.add_argument("--json", metavar="FILE", help="write the scores")
    parser.add_argument(
        "--intervals",
        action="store_true",
        help="say between what the mIoU lies (95 %%, images drawn anew), and of several networks "
        "how each differs from the first",
    )
    parser.add_argument(
        "--instances",
        action="store_true",
        help="also nIoU, in which every instance of a class weighs the same (Cityscapes)",
    )
    parser.add_argument(
        "--boundaries",
        action="store_true",
        help="score outlines too: IoU within 2 %% of the diagonal of them (Boundary IoU)",
    )
    parser.add_argument(
        "--calibration",
        action="store_true",
        help="also how far confidences are from the share that is right (ECE), of each class",
    )
    parser.add_argument("--save", metavar="DIR", help="write the predictions as PNGs")
    parser.add_argument(
        "--report",
        metavar="DIR",
        help="write a page that shows every image with truth, prediction and mistakes: open "
        "DIR/index.html",
    )
    parser.add_argument(
        "--images",
        metavar="PATH",
        help="predict these photographs, a folder or one file; the ratio of each is kept",
    )
    parser.add_argument(
        "--opacity",
        type=parsing.between(0, 1),
        default=0.5,
        metavar="P",
        help="of the colours in overlay/, where 0 is the image alone; default with --images "
        "%(default)s, else there is no overlay/",
    )
    group = data_options.add_data(parser, DATASETS)
    data_options.add_val(group, "scored one set after the other")
    options.add_views(parser)
    options.add_model(parser, MODELS, default=None)
    options.add_weights_entry(parser)
    options.add_device(parser)
    return options.parse(parser, argv, evaluates=True)


def main(args) -> None:
    """Score everything asked for, one after the other."""
    check(args)
    sources = args.restore_from or [args.predictions]
    run = predict_images if args.images else score_folder if args.predictions else score_checkpoint
    with reporting.opened(args.report, sources) as page:
        results = [] if args.val else [run(args, source, page) for source in sources]
    if args.images:
        unread, count = (sum(result[key] for result in results) for key in ("unread", "count"))
        if unread:
            raise UserError(f"{unread} of {count} photographs could not be read")
        return
    results = score_sets(args, page) if args.val else compared(results)
    if args.json and processes.rank() == 0:
        write_text(args.json, json.dumps(results, indent=1) + "\n")


def score_sets(args, page: reporting.Page) -> list[dict]:
    """Score every network on every set of --val, and print a table of them all."""
    results = []
    for name, images in data_options.val_sets(args, args.input_size).items():
        print(f"\n{name}", flush=True)
        known = DATASETS[images.dataset].options if images.dataset in DATASETS else {}
        # what is not said is the dataset's default, whatever the checkpoint was validated on
        plain = {key: value[0] for key, value in known.items() if isinstance(value, tuple)}
        images = replace(images, options={**plain, **images.options})
        scored = [score_checkpoint(args, path, page, images, name) for path in args.restore_from]
        results += [{"val": name, **result} for result in compared(scored)]
    print("\n".join(below_each_other(results)))
    return results


def compared(results: list[dict]) -> list[dict]:
    """Print the scores of several networks on the same images beside each other; return them."""
    draws = [result.pop("draws", None) for result in results]
    if len(results) > 1:
        print("\n".join(side_by_side(results)))
        for i, found in intervals.beside_the_first(results, draws):
            results[i]["beside_first"] = found._asdict()
            print(f"({i + 1}) - (1): {found}")
    return results


def check(args) -> None:
    """Refuse options that would do nothing, and a --json that cannot be written, before the work.

    Raises:
        UserError: says which.
    """
    if args.predictions:
        options.refuse_idle(args, FOR_NETWORKS, "--restore-from")
    else:
        options.refuse_idle(args, {"prediction_ids"}, "--predictions")
    if args.val:
        options.refuse_idle(args, FOR_ONE_SET, "one set of images, not with --val")
    if args.images:
        options.refuse_idle(args, FOR_LABELS, "labelled images, not with --images")
        if not args.model:
            options.refuse_idle(args, {"dataset", "data_dir"}, "--model, where --images is given")
        if not args.save:
            raise UserError("--images needs --save, the folder for the predictions")
    else:
        options.refuse_idle(args, set() if args.save else {"opacity"}, "--save")
    names = [Path(path).stem for path in args.restore_from or ()]
    if args.save and len(set(names)) < len(names):
        raise UserError("--save makes a folder for each checkpoint, and two have the same name")
    if args.json:
        outputs.writable_folder(Path(args.json).parent)
        refuse_replacing([args.json], filter(None, [*(args.restore_from or ()), args.data_list]))


def score_checkpoint(
    args, path: str, page: reporting.Page, images: Images | None = None, name: str = ""
) -> dict:
    """Run a network over the dataset, save what it predicts if asked to, print its scores.

    Args:
        args: the options.
        path: of the checkpoint.
        page: that takes the predictions.
        images: of a set of --val, and its `name`; None for those of the other options.
    """
    device = pick_device(args.device)
    predictor, dataset = loop.restore(
        path,
        device,
        foreign=options.foreign(args),
        images=images or data_options.images(args),
        opener=loop.open_test_set,
        precision=args.precision,
        align_corners=args.align_corners,
        views=options.views(args),
    )
    predictor = refine(predictor, args.crf)
    if not (dataset.labelled or args.save or args.report):
        raise UserError(f"{dataset.root}: split test has no labels: give --save to predict it")
    scored = scored_classes(args, dataset)
    sizes = {"input": set(), "label": set()}
    sure = args.calibration or page.wanted
    others = Others(dataset, args.boundaries, args.instances, sure)
    start = time.perf_counter()
    with saving(args, path, dataset, name) as save, page.part(dataset) as seen:

        def note(batch: dict, pred, confidence) -> None:
            sizes["input"].add(tuple(batch["image"].shape[-2:]))
            sizes["label"].add(tuple(pred.shape[-2:]))
            save(batch["name"], pred)
            seen.batch(batch, pred, confidence)
            others.update(batch, pred, confidence)

        how = {"each_image": args.intervals, "with_confidence": sure}
        loading = options.loading(args)
        confusion = loop.evaluate(predictor, dataset, loading, args.batch_size, note, **how)
    protocol = {
        **{key: scores.shown_sizes(seen) for key, seen in sizes.items()},
        "align_corners": predictor.align_corners,
        "scales": args.scales,
        "flip": args.flip,
        **({} if args.crf is None else {"crf": " ".join(args.crf) or "yes"}),
        "slide": args.slide and "{}x{}".format(*args.slide),
        "precision": predictor.precision,
        **({"temperature": predictor.temperature} if args.temperature else {}),
        "checkpoint": path,
    }
    calibrated = {} if confusion.is_empty else others.calibrated()
    seen.finish(path, protocol, scored, calibrated)
    seconds = time.perf_counter() - start
    how = {"classes": args.classes, "draws": args.intervals}
    result = scores.report(dataset, confusion, scored, protocol, seconds, others, **how)
    if args.calibration and calibrated:
        print(f"expected calibration error {calibrated['ece']:.2f} %, of 15 bins")
        result |= calibrated
    return result


def predict_images(args, path: str, page: reporting.Page) -> dict:
    """Write what a network sees in photographs, and say which could not be read."""
    folder = folder_for(args, path)
    (predictor,), found = loop.restore_all(
        [path],
        pick_device(args.device),
        foreign=options.foreign(args),
        images=data_options.images(args),
        opener=partial(photographs.open_photographs, args.images, args.save),
        precision=args.precision,
        align_corners=args.align_corners,
        views=options.views(args),
    )
    outputs.check_data_stay(folder, [*outputs.Look.of(found).kinds, "overlay"], found)
    predictor, threads = refine(predictor, args.crf), min(2, args.num_workers)
    with outputs.held(folder), page.part(found) as seen:
        also = seen.one if page.wanted else None
        done = photographs.predict_photographs(
            predictor, found, folder, args.opacity, threads, also
        )
    predicted.write_about(folder, found, [path])
    seen.finish(path, {"checkpoint": path}, None)
    written = done.count - len(done.unreadable)
    print(f"photographs predicted: {written} in {done.seconds:.1f} s, in {folder}", flush=True)
    if found.left_out:
        print(f"no photographs by their names: {summary(found.left_out)}", flush=True)
    return {"unread": len(done.unreadable), "count": done.count}


def folder_for(args, path: str, name: str = "") -> Path:
    """Return where a checkpoint's predictions go: --save, of several a folder in it.

    Args:
        args: the options.
        path: of the checkpoint.
        name: of a set of --val, which has a folder of its own.
    """
    own = name.replace(":", "_").replace("/", "_")
    return Path(args.save, Path(path).stem if len(args.restore_from) > 1 else "", own)


@contextlib.contextmanager
def saving(args, path: str, dataset, name: str = "") -> Iterator[Callable]:
    """Yield a function that writes a batch's predictions, if that is asked for."""
    if not args.save:
        yield lambda *_: None
        return
    folder = folder_for(args, path, name)
    stems, look = label_folders.stems(dataset), outputs.Look.of(dataset)
    over = {image: i for i, (image, _) in enumerate(dataset.pairs) if "opacity" in args.given}
    outputs.check_data_stay(folder, [*look.kinds, *(["overlay"] if over else [])], dataset)

    def lay(name: str, ids) -> None:
        image, _ = dataset.read(over[name])
        path = outputs.file_of(folder, "overlay", stems[name])
        photographs.write_overlay(path, image, ids, dataset.palette, args.opacity)

    with outputs.held(folder), outputs.Writers() as write:

        def save(names: list[str], pred) -> None:
            for name, ids in zip(names, pred.cpu().numpy(), strict=True):
                look.write(write, folder, stems[name], ids)
                if over:
                    write(lay, name, ids)
                submitted = None if dataset.labelled else dataset.submitted_as(name)
                if submitted:
                    path = outputs.file_of(folder, "submission", submitted)
                    write(write_label_png, path, ids)

        yield save
    predicted.write_about(folder, dataset, [path])


def score_folder(args, folder: str, page: reporting.Page) -> dict:
    """Score the PNGs of --predictions and print the scores."""
    dataset = loop.open_dataset(data_options.images(args), checkpoint={})
    scored = scored_classes(args, dataset)
    ids = args.prediction_ids or "train"
    pairs = label_folders.PredictedPairs(dataset, folder, ids)
    confusion = ConfusionMatrix(
        dataset.num_classes, dataset.class_names, allow_void=True, each_image=args.intervals
    )
    others = Others(dataset, args.boundaries, args.instances)
    sizes = set()
    start = time.perf_counter()
    own = processes.share(len(pairs))
    loader = make_loader(pairs, options.loading(args), sampler=own, batch_size=1)
    with page.part(dataset) as seen:
        for batch in loader:
            confusion.update(batch["pred"], batch["label"])
            seen.batch(batch, batch["pred"], None)
            others.update(batch, batch["pred"])
            sizes.add(tuple(batch["label"].shape[-2:]))
    confusion.add_up_processes()
    protocol = {
        "label": scores.shown_sizes(sizes),
        "predictions": folder,
        "ids": ids,
    }
    seen.finish(folder, protocol, scored)
    seconds = time.perf_counter() - start
    how = {"classes": args.classes, "draws": args.intervals}
    return scores.report(dataset, confusion, scored, protocol, seconds, others, **how)


def scored_classes(args, dataset) -> list[int] | None:
    """Return the train ids of --classes, None for all; check that --json replaces no data."""
    subset = args.classes
    if args.json:
        data = (path for index in range(len(dataset)) for path in dataset.paths(index))
        refuse_replacing([args.json], data)
    if subset is not None and subset not in dataset.subsets:
        there = ", ".join(dataset.subsets) or "none"
        raise UserError(f"--classes {subset}: the subsets of {dataset.name} are: {there}")
    return dataset.subsets[subset] if subset is not None else None


if __name__ == "__main__":
    start.run(main, parse_args)
