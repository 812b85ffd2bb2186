"""Train a segmentation network on labelled images of one domain: source only, or an oracle.

    python train_seg.py --dataset cityscapes --data-dir data/Cityscapes --style torchvision \\
        --weights imagenet --snapshot-dir snapshots/cityscapes_seg
    python train_seg.py --recipe camvid --dataset camvid --data-dir data/CamVid \\
        --set day_train --val-set day_val --snapshot-dir snapshots/day

The same command again resumes. Options as in train_da.py, without the target. A recipe's dataset
is its target, for the oracle, unless --dataset says otherwise.
"""

import json

from engine import options, parsing, processes, start  # first: it says what is to be installed

# isort: split

from datasets import build_dataset, build_pseudo_labelled
from datasets.loading import step_batches
from datasets.statistics import class_statistics
from engine.device import pick_device, pick_precision
from engine.files import write_text
from inference import loop
from training import losses
from training.augment import geometry, policies
from training.run import Run, describe, make_folder
from training.schedule import make_optimizer, poly_rate, set_rate
from training.student import make_forward, make_model


def parse_args(argv: list[str] | None = None):
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    options.add_recipe(parser)
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", default="cityscapes", metavar="NAME")
    group.add_argument("--data-dir", metavar="DIR")
    images = group.add_mutually_exclusive_group()
    images.add_argument("--data-list", metavar="FILE")
    images.add_argument("--pseudo-labels", metavar="DIR", help="what pseudo_label.py wrote")
    group.add_argument("--set", default="train", help="split; default %(default)s")
    group.add_argument("--num-images", type=parsing.at_least(1), help="use N of them, at random")
    size = parsing.width_height
    group.add_argument("--input-size", type=size, default=(1024, 512), metavar="W,H")
    options.add_data_option(group, "--data-option")
    options.add_validation(parser)
    options.add_model(parser)
    options.add_training(parser)
    options.add_device(parser)
    return options.parse(parser, argv)


def main(args) -> None:
    """Train, validate now and then, and end with last and best."""
    make_folder(args.snapshot_dir)
    device = pick_device(args.device)
    precision = pick_precision(args.precision, device)
    loading = {"num_workers": args.num_workers, "timeout_seconds": args.loader_timeout}
    where = {"size": args.input_size, "seed": args.random_seed, "cache_dir": args.cache}
    where |= dict(args.data_option)
    which = {"split": args.set, "num_images": args.num_images, **where}
    if args.pseudo_labels:
        train_set = build_pseudo_labelled(
            args.dataset, args.data_dir, args.pseudo_labels, confidence=False, **which
        )
    else:
        train_set = build_dataset(args.dataset, args.data_dir, list_file=args.data_list, **which)
    val = build_dataset(
        args.dataset,
        args.data_dir,
        split=args.val_set,
        list_file=args.val_list,
        resize_label=False,
        **where,
    )
    model = make_model(
        args.model,
        train_set.num_classes,
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
    class_weight, rare_classes = class_statistics(
        train_set,
        args.cache or args.snapshot_dir,
        args.input_size,
        balance=args.class_balance,
        temperature=args.rare_class_sampling,
        **loading,
    )
    if class_weight is not None:
        class_weight = class_weight.to(device)
    meta = describe(val, args.input_size, args.align_corners, precision)
    plain = {**vars(args), "precision": precision}
    saving = {"save_every_minutes": args.save_every_minutes, "keep_last": args.keep_last}
    run = Run(args.snapshot_dir, val.name, plain, meta, **saving)
    state = {"model": model, "optimizer": optimizer}
    start = run.resume(state)
    if args.tensorboard:
        run.log.open_board()

    student = make_forward(model, precision, device, compiled=args.compile)

    def validate() -> dict:
        how = {"precision": precision, "align_corners": args.align_corners}
        return loop.validate(model, val, **how, **loading)

    crop = {"crop_size": args.crop_size, "scale": args.random_scale, "mirror": args.random_mirror}
    how = {"class_weight": class_weight, "align_corners": args.align_corners}
    batches = step_batches(
        train_set,
        args.batch_size,
        seed=args.random_seed,
        start=start * args.iter_size,
        device=device,
        rare_classes=rare_classes,
        **loading,
    )
    stop = min(args.num_steps_stop or args.num_steps, args.num_steps)
    for step in run.steps(stop, args.random_seed, state):
        rate = poly_rate(step, args.num_steps, args.power, args.warmup_steps)
        set_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)
        for _ in range(args.iter_size):
            batch = next(batches)
            rare = batch.get("rare_class")
            images, label = geometry.warp(batch["image"], batch["label"], rare_class=rare, **crop)
            if args.auto_augment:
                images, label = policies.auto_augment(images, label)
            images = geometry.color_jitter(images, args.color_jitter, args.color_jitter / 4)
            out = student(images)
            terms = losses.segmentation(out, label, args.lambda_seg, **how)
            (sum(terms.values()) / args.iter_size).backward()
            run.record(terms, 1 / args.iter_size)
        processes.average(model, of="gradients")
        optimizer.step()
        processes.average(model, of="buffers")

        if run.step % args.print_every == 0 or run.step == stop:
            run.flush(rate)
        if run.step % args.save_pred_every == 0 or run.step == stop:
            run.scored(model, validate())
            run.save(state)

    if run.stopped is not None:
        run.stop_here(state)
    if run.last is None or run.last["step"] != run.step:  # resumed at the end, never scored there
        run.scored(model, validate())
    result = {"last": run.last, "best": run.best}
    if processes.rank() == 0:
        write_text(f"{args.snapshot_dir}/result.json", json.dumps(result, indent=1) + "\n")
    best = f"best {run.best['miou']:.2f} (step {run.best['step']}, chosen on the same images)"
    print(f"mIoU: last {run.last['miou']:.2f}, {best}")
    run.close()


if __name__ == "__main__":
    start.run(main, parse_args)
