"""Adapt a segmentation network to unlabelled images of another domain.

With no data flags, on images that are drawn on the fly (two CPU cores, two minutes):

    python train_da.py --snapshot-dir snapshots/demo

GTA5 to Cityscapes, as AdaptSegNet published it:

    python train_da.py --recipe adaptsegnet-multi --data-dir data/GTA5 \\
        --data-dir-target data/Cityscapes --weights resnet101.pth --snapshot-dir snapshots/gta5

The same command again resumes. docs/experiments.md has what was measured, with its commands.
"""

import copy
import functools
import json

from engine import options, parsing, processes, start  # first: it says what is to be installed

# isort: split

import torch

import methods
import models
from datasets import domains
from datasets.loading import make_loader, step_batches
from engine.device import autocast, pick_device, pick_precision
from engine.errors import UserError
from engine.files import write_text
from engine.seeds import seed_everything, seed_for
from inference import loop, report
from inference.predictor import Predictor
from training import losses
from training.augment import geometry, policies
from training.run import Run, describe, make_folder, say
from training.schedule import make_optimizer, poly_rate, set_rate
from training.student import make_forward, make_model
from training.teacher import update_teacher


def parse_args(argv: list[str] | None = None):
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    options.add_recipe(parser)
    domains.add_options(parser)
    options.add_validation(parser)
    options.add_model(parser)
    options.add_training(parser)
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
    )
    return options.parse(parser, argv, default_recipe="streets")


def main(args) -> None:
    """Adapt, train the baseline if asked for, then compare."""
    make_folder(args.snapshot_dir)
    data = domains.open_data(args)
    model, score = train(args, data, args.method, args.snapshot_dir)
    results, predictions = {"adapted": score}, {"adapted": model}
    if args.baseline:  # after the methods, so that a mistake in their options shows at once
        alone = {**data, "labelled": None, "pseudo": None}
        model, score = train(args, alone, ["none"], f"{args.snapshot_dir}/source")
        results = {"source_only": score, **results}
        predictions = {"source only": model, **predictions}
    if processes.rank() > 0:
        return
    write_text(f"{args.snapshot_dir}/result.json", json.dumps(results, indent=1) + "\n")
    report.print_table(results, data["val"].class_names, " + ".join(args.method))
    if args.baseline:
        how = {"align_corners": args.align_corners}
        shown = {name: Predictor(model, **how) for name, model in predictions.items()}
        report.picture(shown, data["val"]).save(f"{args.snapshot_dir}/demo.png")
        print(f"picture: {args.snapshot_dir}/demo.png")


def train(args, data: dict, method_names: list[str], folder: str) -> tuple:
    """Train one network in one snapshot folder; return it and its scores."""
    device = pick_device(args.device)
    precision = pick_precision(args.precision, device)
    source, target, val = data["source"], data["target"], data["val"]
    class_weight = data["class_weight"]
    loading = {"num_workers": args.num_workers, "timeout_seconds": args.loader_timeout}

    model = make_model(
        args.model,
        source.num_classes,
        options.model_options(args),
        seed=args.random_seed,
        device=device,
        weights=(args.weights, args.restore_from),
        recompute=args.checkpoint_activations,
        sync_bn=args.sync_bn,
    )
    optimizer = make_optimizer(
        args.optimizer,
        model.param_groups(args.learning_rate),
        learning_rate=args.learning_rate,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
    )
    seed_everything(args.random_seed, "methods")
    multi_level = bool(model.arch.get("multi_level"))
    values = {
        **vars(args),
        "num_classes": source.num_classes,
        "multi_level": multi_level,
        "class_weight": class_weight,
        "autocast": functools.partial(autocast, precision, device),
    }
    adapting = methods.build_methods(method_names, values).to(device)
    needs = frozenset().union(*(method.needs for method in adapting.values()))
    used = methods.domains_of(needs)
    for domain, flag in (("labelled", "--target-labels"), ("pseudo", "--pseudo-labels")):
        if (domain in used) != (data[domain] is not None):
            verb = "needs" if domain in used else "does not use"
            raise UserError(f"--method {' '.join(method_names)} {verb} {flag}")
    teacher = copy.deepcopy(model).requires_grad_(False) if "teacher_out" in needs else None
    for method in adapting.values():
        method.check(model)
    if class_weight is not None:
        class_weight = class_weight.to(device)

    meta = describe(val, args.input_size_target or args.input_size, args.align_corners, precision)
    plain = {**vars(args), "method": method_names, "precision": precision}
    saving = {"save_every_minutes": args.save_every_minutes, "keep_last": args.keep_last}
    run = Run(folder, source.name, plain, meta, **saving)
    state = {"model": model, "optimizer": optimizer, "methods": adapting}
    if teacher is not None:
        state["teacher"] = teacher
    start = run.resume(state)
    if args.tensorboard:
        run.log.open_board()

    student = make_forward(model, precision, device, compiled=args.compile)
    if teacher is not None:
        teach = make_forward(teacher, precision, device, compiled=args.compile)

    def validate() -> dict:
        how = {"precision": precision, "align_corners": args.align_corners}
        return loop.validate(model, val, **how, **loading)

    crop = {"crop_size": args.crop_size, "scale": args.random_scale, "mirror": args.random_mirror}
    policy_of = {
        domain: policies.auto_augment if args.auto_augment in (domain, "both") else None
        for domain in ("source", "target")
    }
    batches = {"seed": args.random_seed, "device": device, **loading}
    first_target = max(0, start - args.adapt_from) * args.iter_size
    next_source = step_batches(
        source,
        args.batch_size,
        start=start * args.iter_size,
        rare_classes=data["rare_classes"],
        **batches,
    )
    next_of = {}
    for domain in used:
        # another order for each: where all hold the same images, a step should not draw them twice
        if domain != "target":
            batches["seed"] = seed_for(args.random_seed, domain)
        next_of[domain] = step_batches(data[domain], args.batch_size, start=first_target, **batches)
    stop = min(args.num_steps_stop or args.num_steps, args.num_steps)
    how = {"class_weight": class_weight, "align_corners": args.align_corners}
    weight = 0.0 if args.control else 1.0

    for step in run.steps(stop, args.random_seed, state):
        rate = poly_rate(step, args.num_steps, args.power, args.warmup_steps)
        set_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)
        adapt = bool(used) and step >= args.adapt_from
        if adapt and teacher is not None:
            update_teacher(teacher, model, args.teacher_momentum, step - args.adapt_from)
        for _ in range(args.iter_size):
            batch = next(next_source)
            rare = batch.get("rare_class")
            images, label = geometry.warp(batch["image"], batch["label"], rare_class=rare, **crop)
            if policy_of["source"]:
                images, label = policy_of["source"](images, label)
            images = geometry.color_jitter(images, args.color_jitter, args.color_jitter / 4)
            out = student(images)
            terms = losses.segmentation(out, label, args.lambda_seg, **how)
            # the source's graph is freed before the target's is built: the lowest peak of memory
            (sum(terms.values()) / args.iter_size).backward()
            run.record(terms, 1 / args.iter_size)
            if not adapt:
                continue
            batch = {
                "step": step,
                "source_image": images,
                "source_label": label,
                "source_out": {key: value.detach() for key, value in out.items()},
            }
            for domain in used:
                then = policy_of["target"]
                batch |= geometry.warp_batch(next(next_of[domain]), domain, then, **crop)
                if needs & {f"{domain}_out", f"{domain}_detached"}:
                    with torch.set_grad_enabled(f"{domain}_out" in needs):
                        batch[f"{domain}_out"] = student(batch[f"{domain}_image"])
            if teacher is not None:
                with torch.no_grad():
                    batch["teacher_out"] = teach(batch["target_image"], aux=False)
            terms = {}
            for method in adapting.values():
                terms |= method(batch, student)
            (weight * sum(terms.values()) / args.iter_size).backward()
            run.record(terms, 1 / args.iter_size)
        processes.average(model, of="gradients")
        optimizer.step()
        for method in adapting.values() if adapt else ():
            run.record(method.after_step(rate))
        processes.average(*filter(None, (model, teacher)), of="buffers")

        if run.step % args.print_every == 0 or run.step == stop:
            for method in adapting.values():
                values, warnings = method.diagnose()
                run.record(values)
                for line in warnings if step >= args.adapt_from + 100 else ():
                    say(f"warning: {line}")
            run.flush(rate)
        if run.step % args.save_pred_every == 0 or run.step == stop:
            run.scored(model, validate())
            run.save(state)

    if run.stopped is not None:
        run.stop_here(state)
    if run.last is None or run.last["step"] != run.step:  # resumed at the end, never scored there
        run.scored(model, validate())
    score = {"last": run.last, "best": run.best}
    loader = make_loader(target, batch_size=args.batch_size, **loading)
    images = (models.normalise(b["image"].to(device), model.normalisation) for b in loader)
    if any([method.finish(model, images) for method in adapting.values()]):
        score["finished"] = validate()
        run.publish(model, "finished", score["finished"])
    run.close()
    return model.eval(), {**score.get("finished", run.last), **score}


if __name__ == "__main__":
    start.run(main, parse_args)
