"""What evaluate.py says of a scored dataset: its protocol, then the scores."""

import math

from datasets.base import SegmentationDataset
from engine import processes
from inference import intervals
from inference.metrics import ConfusionMatrix, plain
from inference.others import Others


def shown_sizes(seen: set[tuple[int, int]]) -> str:
    """Return the one size of all processes' images as WxH, else how many there are."""
    sizes = sorted({tuple(size) for part in processes.gather(sorted(seen)) for size in part})
    if len(sizes) == 1:
        return f"{sizes[0][1]}x{sizes[0][0]}"
    return f"{len(sizes)} sizes"


def report(
    dataset: SegmentationDataset,
    confusion: ConfusionMatrix,
    scored: list[int] | None,
    protocol: dict,
    seconds: float,
    others: Others,
    *,
    classes: str | None,
    draws: bool,
) -> dict:
    """Print the protocol and the scores, of boundaries and instances too; return all.

    Args:
        dataset: that was scored.
        confusion: of all its images.
        scored: train ids; None for all.
        protocol: how it was scored, by what people call it.
        seconds: that it took.
        others: further scores.
        classes: what the subset that was scored is called; None for all classes.
        draws: whether to say between what the mIoU lies; `confusion` has each image then.
    """
    protocol = {
        "dataset": dataset.name,
        "images": dataset.list_file or dataset.split,
        "count": len(dataset),
        **{key: value for key, value in dataset.option.items() if value is not None},
        "classes": classes or dataset.num_classes,
        **protocol,
    }
    if confusion.is_empty:
        why = (
            "every label is ignored" if getattr(dataset, "labelled", True) else "no label is there"
        )
        print(f"{len(dataset)} images in {seconds:.1f} s; not scored: {why}", flush=True)
        return {**protocol, "miou": None, "seconds": seconds}
    found = confusion.compute(scored)
    print("protocol: " + ", ".join(f"{key} {shown(value)}" for key, value in protocol.items()))
    print("\n".join(confusion.lines(found)))
    wanted = len(found["scored"])
    print(
        f"mIoU is the mean of {found['classes_scored']} of {wanted} classes, the others neither "
        "in the labels nor predicted"
        if found["classes_scored"] < wanted
        else f"mIoU is the mean of all {wanted} classes"
    )
    print(
        f"pixel accuracy {found['pixel_accuracy']:.2f}, mean accuracy "
        f"{found['mean_accuracy']:.2f}, frequency-weighted IoU {found['fw_iou']:.2f}"
    )
    if found["void_share"]:
        print(f"{found['void_share']:.2f} % of the pixels have no predicted class: misses")
    result = {**protocol, **confusion.summary(scored), "seconds": seconds}
    if draws:
        result["draws"] = intervals.drawn_miou(confusion.images, scored)
        result["miou_interval"] = intervals.interval(result["draws"])
        print(f"mIoU {found['miou']:.1f} {result['miou_interval']}, 95 % of the draws of images")
    more, lines = others.results(confusion, scored)
    result |= more
    print("\n".join(lines), end="\n" if lines else "")
    if dataset.categories:
        categories = confusion.group_iou(dataset.categories)
        present = [iou for iou in categories.values() if not math.isnan(iou)]
        result["categories"] = {name: plain(iou) for name, iou in categories.items()}
        result["category_miou"] = sum(present) / len(present)
        print("\n".join(f"category {name}\t{round(iou, 2)}" for name, iou in categories.items()))
        print(f"category mIoU {result['category_miou']:.2f}")
    print(f"{len(dataset)} images in {seconds:.1f} s", flush=True)
    return result


def shown(value: object) -> str:
    """Return an entry of the protocol as text."""
    if value is None or isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(f"{x:g}" for x in value) if isinstance(value, tuple) else str(value)
