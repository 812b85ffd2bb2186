"""Train a segmentation network on labelled images of one domain: source only, or an oracle.

    python train_seg.py --dataset cityscapes --data-dir data/Cityscapes \\
        --model deeplabv2 style=torchvision --weights imagenet --snapshot-dir snapshots/cityscapes
    python train_seg.py --recipe camvid --dataset camvid --data-dir data/CamVid \\
        --set day_train --val-set day_val --snapshot-dir snapshots/day

The same command again resumes. Options as in train_da.py, without the target. A recipe's dataset
is its target, for the oracle, unless --dataset says otherwise.
"""

import functools
import json
from dataclasses import replace

# first: it says what is to be installed
from engine import data_options, options, parsing, processes, start, training_options

# isort: split

from datasets import DATASETS, open_images, open_pseudo_labelled
from datasets.domains import named_validation, open_divided, open_sets
from datasets.facts import say_facts
from datasets.loading import require_same_classes, step_batches
from datasets.statistics import class_statistics
from engine.device import pick_device, pick_precision
from engine.files import write_text
from inference import report
from inference.loop import validate_all
from models import MODELS
from training.augment import AUGMENTATIONS, Augment
from training.identity import identify
from training.losses import LOSSES
from training.run import Run, describe, make_folder, say
from training.schedule import SCHEDULES
from training.student import Student


def parse_args(argv: list[str] | None = None):
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    options.add_recipe(parser)
    group = data_options.data_group(parser, DATASETS)
    group.add_argument("--dataset", default="cityscapes", metavar="NAME", help="of the list above")
    group.add_argument("--data-dir", metavar="DIR", help="its folder").free = True
    images = group.add_mutually_exclusive_group()
    images.add_argument("--data-list", metavar="FILE", help="list of `image label` lines")
    images.add_argument("--pseudo-labels", metavar="DIR", help="what pseudo_label.py wrote")
    group.add_argument("--set", default="train", help="split; default %(default)s")
    group.add_argument(
        "--num-images", type=parsing.at_least(1), help="use N of them, at random; default: all"
    )
    data_options.add_input_size(group, "--input-size", (1024, 512))
    data_options.add_data_option(group, "--data-option")
    data_options.add_validation(parser)
    options.add_model(parser, MODELS)
    training_options.add_training(parser, LOSSES, SCHEDULES)
    training_options.add_augmentation(parser, AUGMENTATIONS)
    training_options.add_saving(parser)
    options.add_device(parser)
    args = options.parse(parser, argv, spelled={"--target": "--dataset"})
    training_options.refuse_idle_training(args)
    return args


def open_data(args) -> tuple:
    """Return the training images, those that choose the best checkpoint, and all of --val."""
    images = replace(data_options.images(args), seed=args.random_seed, num_images=args.num_images)
    validation = data_options.validation(args)
    sets = open_sets(validation)
    if sets:
        val = next(iter(sets.values()))
    else:
        images, val = open_divided(images, validation)
    if args.pseudo_labels:
        train_set = open_pseudo_labelled(images, args.pseudo_labels, confidence=False)
    else:
        train_set = open_images(images)
    for other in sets.values():
        require_same_classes(train_set, other)
    return train_set, val, sets


def main(args) -> None:
    """Train, validate now and then, and end with last and best."""
    make_folder(args.snapshot_dir, args.weights, args.restore_from)
    device, loading = pick_device(args.device), options.loading(args)
    precision = pick_precision(args.precision, device)
    augment = Augment(args.augment, sides=("source",))
    train_set, val, val_sets = open_data(args)
    named = {"training": train_set, **named_validation(val, val_sets)}
    training_options.count_steps(args, len(train_set), processes.world_size())
    known = class_statistics(
        train_set,
        args.cache or args.snapshot_dir,
        args.input_size,
        balance=args.class_balance,
        temperature=args.rare_class_sampling,
        in_turn=args.class_balanced_sampling,
        loading=loading,
        allow_missing=args.allow_missing_classes,
    )
    counts = {"training": known.counts}
    say_facts({name: (dataset, counts.get(name)) for name, dataset in named.items()})
    student = Student(
        training_options.training(args, precision, val.class_names),
        val.num_classes,
        device,
        known.class_weight,
    )
    network = student.published
    run = Run(
        args.snapshot_dir,
        train_set.name,
        identify(args, named, precision=precision, val=list(val_sets)),
        describe(val, network.align_corners, precision, args.average_weights),
        training_options.saving(args),
    )
    first = run.resume(student.state, args.change_num_steps)
    batches = step_batches(
        train_set,
        args.batch_size,
        seed=args.random_seed,
        start=first * args.iter_size,
        device=device,
        loading=loading,
        by_class=known.by_class,
    )
    stop = min(args.num_steps_stop or args.num_steps, args.num_steps)
    say(f"{student.line()}; {len(train_set)} images, {stop} steps")
    picture = functools.partial(report.validation_picture, network, val, precision)
    score = functools.partial(validate_all, network, val, val_sets, loading, precision)

    for step in run.steps(stop, args.random_seed):
        rate = student.rate_at(step)
        student.begin(rate)
        for batch in range(args.iter_size):
            source = augment(next(batches), "source")
            terms = student.loss(student(source.image), source.label)
            student.backward(terms, last=batch + 1 == args.iter_size)
            run.record(terms, 1 / args.iter_size)
        student.end()
        if run.prints:
            run.flush(student.learning_rate)
        if run.scores:
            run.scored(network, score(), picture)
            run.save()

    run.end_if_stopped()
    if run.last is None or run.last["step"] != run.step:  # resumed at the end, never scored there
        run.scored(network, score(), picture)
    result = {"last": run.last, "best": run.best}
    if processes.rank() == 0:
        write_text(f"{args.snapshot_dir}/result.json", json.dumps(result, indent=1) + "\n")
    on = run.last.get("on", "the same images")
    best = f"best {run.best['miou']:.2f} (step {run.best['step']}, chosen on {on})"
    print(f"mIoU: last {run.last['miou']:.2f}, {best}")
    for name, other in run.last.get("also", {}).items():
        best = run.best["also"][name]["miou"]
        print(f"mIoU on {name}: last {other['miou']:.2f}, of the best {best:.2f}")
    run.close()


if __name__ == "__main__":
    start.run(main, parse_args)
