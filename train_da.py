"""Adapt a segmentation network to unlabelled images of another domain.

With no data flags, on images that are drawn on the fly (two CPU cores, three minutes):

    python train_da.py --snapshot-dir snapshots/demo

GTA5 to Cityscapes, as AdaptSegNet published it:

    python train_da.py --recipe adaptsegnet-multi --data-dir data/GTA5 \\
        --data-dir-target data/Cityscapes --weights resnet101.pth --snapshot-dir snapshots/gta5

The same command again resumes. docs/experiments.md has what was measured, with its commands.
"""

import functools
import json
from dataclasses import replace

# first: it says what is to be installed
from engine import data_options, options, parsing, processes, start, training_options

# isort: split

import torch

import methods
import models
from datasets import DATASETS
from datasets.domains import Domains, open_domains
from datasets.facts import say_facts
from datasets.loading import make_loader
from datasets.statistics import class_statistics
from engine.device import autocast, pick_device, pick_precision
from engine.files import write_text
from engine.seeds import seed_everything
from inference import report
from inference.loop import validate_all
from inference.page.reporting import write_page
from inference.predictor import Predictor
from methods import Adapting, Seen, Setting
from models import MODELS
from training.augment import AUGMENTATIONS, Augment
from training.identity import identify
from training.losses import LOSSES
from training.run import Run, describe, make_folder, say
from training.schedule import SCHEDULES
from training.student import Student
from training.teacher import Teacher


def parse_args(argv: list[str] | None = None):
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    options.add_recipe(parser)
    data_options.add_domains(parser, DATASETS)
    data_options.add_validation(parser, domains=True)
    options.add_model(parser, MODELS)
    training_options.add_training(parser, LOSSES, SCHEDULES)
    training_options.add_augmentation(parser, AUGMENTATIONS)
    training_options.add_saving(parser)
    options.add_device(parser)
    methods.add_options(parser)
    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--adapt-from",
        type=parsing.at_least(0),
        default=0,
        metavar="STEP",
        help="train on the source alone before; default %(default)s",
    )
    group.add_argument(
        "--teacher-momentum", type=parsing.between(0, 1), default=0.99, help="of its average"
    )
    group.add_argument(
        "--control",
        action="store_true",
        help="keep every forward pass and set the methods' weights to 0: batch-norm's share",
    )
    group.add_argument(
        "--baseline",
        action=options.BOOLEAN,
        default=False,
        help="first train on the source alone, same seed and steps; compare at the end",
    ).free = True
    args = options.parse(parser, argv, default_recipe="streets", unused=methods.unused)
    training_options.refuse_idle_training(args)
    methods.refuse_idle(args.method, args.given)
    methods.refuse_mixed(args.method, args.augment)
    if args.val_on == "none":
        options.refuse_idle(args, {"val_set", "val_list"}, "--val-on target or source")
    return args


def main(args) -> None:
    """Adapt, train the baseline if asked for, then compare."""
    make_folder(args.snapshot_dir, args.weights, args.restore_from)
    data = open_data(args)
    several = " (run 1 of 2)" if args.baseline else ""
    network, score = train(args, data, args.method, args.snapshot_dir, f"adapted{several}")
    results, networks = {"adapted": score}, {"adapted": network}
    if args.baseline:  # after the methods, so that a mistake in their options shows at once
        alone = replace(data, labelled=None, pseudo=None)
        folder = f"{args.snapshot_dir}/source"
        network, score = train(args, alone, ["none"], folder, "source only (run 2 of 2)")
        results = {"source_only": score, **results}
        networks = {"source only": network, **networks}
    if processes.rank() > 0:
        return
    write_text(f"{args.snapshot_dir}/result.json", json.dumps(results, indent=1) + "\n")
    if data.val is None:
        suffix = "finished" if "finished" in score else score["step"]
        last = f"{args.snapshot_dir}/{data.source.name}_{suffix}.pth"
        print(f"nothing was scored, so no checkpoint is the best; the last one: {last}")
        return
    on = "source" if args.val_on == "source" else "target"
    report.print_table(results, data.val.class_names, " + ".join(args.method), on)
    if args.baseline:
        shown = {name: Predictor(network) for name, network in networks.items()}
        report.picture(shown, data.val).save(f"{args.snapshot_dir}/demo.png")
        print(f"picture: {args.snapshot_dir}/demo.png")
        write_page(f"{args.snapshot_dir}/page", shown, data.val, options.loading(args))


def open_data(args) -> Domains:
    """Open the images of every domain, and say what is there."""
    data = open_domains(
        data_options.sources(args),
        data_options.target(args),
        replace(data_options.validation(args), on=args.val_on),
        target_labels=args.target_labels,
        pseudo_labels=args.pseudo_labels,
        pseudo_confidence=args.pseudo_confidence,
    )
    data.known = class_statistics(
        data.source,
        args.cache or args.snapshot_dir,
        args.input_size,
        balance=args.class_balance,
        temperature=args.rare_class_sampling,
        in_turn=args.class_balanced_sampling,
        loading=options.loading(args),
        allow_missing=args.allow_missing_classes,
    )
    training_options.count_steps(args, len(data.source), processes.world_size())
    counts = {"source": data.known.counts}
    say_facts({name: (dataset, counts.get(name)) for name, dataset in data.named.items()})
    return data


def prepare(args, data: Domains, names: list[str], augment: Augment) -> tuple:
    """Build what learns: the student, the methods and, where one of them wants it, a teacher."""
    device = pick_device(args.device)
    precision = pick_precision(args.precision, device)
    class_weight = data.known.class_weight
    num_classes = data.source.num_classes
    training = training_options.training(args, precision, data.source.class_names)
    student = Student(training, num_classes, device, class_weight)
    network = student.network
    seed_everything(args.random_seed, "methods")
    setting = Setting(
        num_classes=num_classes,
        heads=network.heads,
        align_corners=network.align_corners,
        autocast=functools.partial(autocast, precision, device),
        class_weight=class_weight,
        iter_size=args.iter_size,
        augment=augment.mixed,
        mean=models.mean_colour(network.normalisation),
    )
    adapting = Adapting(names, setting, vars(args)).to(device)
    adapting.check(network, data.there)
    teacher = Teacher(student, args.teacher_momentum) if "teacher_out" in adapting.needs else None
    return student, adapting, teacher


def train(args, data: Domains, names: list[str], folder: str, title: str) -> tuple:
    """Train one network in one snapshot folder; return it and its scores."""
    augment = Augment(args.augment, read_references=data.some_target_images)
    loading = options.loading(args)
    student, adapting, teacher = prepare(args, data, names, augment)
    network, precision = student.published, student.training.precision

    def score() -> dict | None:
        return validate_all(network, data.val, data.val_sets, loading, precision)

    picture = functools.partial(report.validation_picture, network, data.val, precision)
    run = Run(
        folder,
        data.source.name,
        identify(args, data.named, method=names, precision=precision, val=list(data.val_sets)),
        describe(data.about, network.align_corners, precision, args.average_weights),
        training_options.saving(args),
    )
    state = {**student.state, "methods": adapting}
    state |= {} if teacher is None else {"teacher": teacher}
    first = run.resume(state, args.change_num_steps)
    batches = data.batches(
        adapting.domains,
        args.batch_size,
        seed=args.random_seed,
        starts=(first * args.iter_size, max(0, first - args.adapt_from) * args.iter_size),
        device=student.device,
        loading=loading,
    )

    stop = min(args.num_steps_stop or args.num_steps, args.num_steps)
    how = f"{' + '.join(names)}, {len(data.source)} + {len(data.target)} images, {stop} steps"
    say(f"{title}: {student.line()}; {how}")
    for step in run.steps(stop, args.random_seed):
        rate, adapt = student.rate_at(step), step >= args.adapt_from
        student.begin(rate)
        if adapt and teacher is not None:
            teacher.follow(student, step - args.adapt_from)
        for repeat in range(args.iter_size):
            last = repeat + 1 == args.iter_size
            # --- the source: its graph is freed before the target's is built, for less memory
            source = augment(next(batches["source"]), "source")
            source.outputs = student(source.image)
            terms = student.loss(source.outputs, source.label)
            student.backward(terms, last=last and not adapt)
            run.record(terms, 1 / args.iter_size)
            if not adapt:
                continue
            # --- the other domains: each is forwarded once, for all methods together
            source.outputs = {key: value.detach() for key, value in source.outputs.items()}
            seen = Seen(step, source)
            for name in adapting.domains:
                batch = augment(next(batches[name]), "target")
                setattr(seen, name, batch)
                if adapting.needs & {f"{name}_out", f"{name}_detached"}:
                    with torch.set_grad_enabled(f"{name}_out" in adapting.needs):
                        batch.outputs = student(batch.image)
            if teacher is not None:
                seen.teacher = teacher(seen.target.image)
            # --- what the methods make of it; a control keeps every forward pass at weight 0
            terms = adapting(seen, student)
            student.backward(terms, 0.0 if args.control else 1.0, last)
            run.record(terms, 1 / args.iter_size)
        student.end()
        if teacher is not None:
            teacher.end()
        if adapt:
            run.record(adapting.after_step(rate))
        if run.prints:
            values, warnings = adapting.diagnose()
            run.record(values)
            for line in warnings if step >= args.adapt_from + 100 else ():
                say(f"warning: {line}")
            run.flush(student.learning_rate)
        if run.scores:
            run.scored(network, score(), picture)
            run.save()
    run.end_if_stopped()
    return finish(args, data, student, adapting, run, score)


def finish(args, data: Domains, student: Student, adapting: Adapting, run: Run, score) -> tuple:
    """Let the methods change the trained network; return it and its scores."""
    network = student.published
    if run.last is None or run.last["step"] != run.step:  # resumed at the end, never scored there
        run.scored(network, score())
    scores = {"last": run.last, "best": run.best}

    def target_images():
        for batch in make_loader(data.target, options.loading(args), batch_size=args.batch_size):
            images = batch["image"].to(student.device)
            if "extent" in batch:  # what all fill: black would count in their statistics
                width, height = batch["extent"].amin(0).tolist()
                images = images[..., :height, :width]
            yield models.normalise(images, network.normalisation)

    if adapting.finish(network, target_images):
        scores["finished"] = score()
        run.publish(network, "finished", scores["finished"])
    run.close()
    return network.eval(), {**(scores.get("finished") or run.last), **scores}


if __name__ == "__main__":
    start.run(main, parse_args)
