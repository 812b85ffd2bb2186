"""What a run shows people at its end: a table of its networks, and a picture."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.utils.data import Dataset

from datasets import colourise
from inference.predictor import Predictor

_GAP, _TITLE = 4, 20  # pixels


def print_table(
    results: dict[str, dict], class_names: list[str], method: str, on: str = "target"
) -> None:
    """Print the IoU of each network trained, per class, then last and best of each.

    Args:
        results: title -> `iou` by class name, `miou`, and the scores `last`, `best` and, after
            AdaBN, `finished`; in percent. "source_only" is what "adapted" is compared with.
        class_names: the rows.
        method: what the difference is called.
        on: whose images they were scored on.
    """
    first = next(iter(results.values()))
    on, also = first.get("on", f"the {on}"), first.get("also", {})
    width = max(20, *(len(f"mIoU on {name}") for name in (on, *also)))
    print(f"\n{f'IoU on {on}':>{width}}" + "".join(f"{name:>14}" for name in results))
    for name in class_names:
        ious = [result["iou"][name] for result in results.values()]
        row = "".join(f"{'-' if iou is None else f'{iou:.2f}':>14}" for iou in ious)
        print(f"{name:>{width}}{row}")
    means = {"mIoU": [result["miou"] for result in results.values()]}
    for name in also:
        means[f"mIoU on {name}"] = [result["also"][name]["miou"] for result in results.values()]
    for name, values in means.items():
        print(f"{name:>{width}}" + "".join(f"{value:14.2f}" for value in values))
    for name, result in results.items():
        best, last = result["best"], result["last"]
        line = f"{name}: last {last['miou']:.2f}, best {best['miou']:.2f} (step {best['step']}"
        line += f", chosen on {result.get('on', 'the validation images themselves')})"
        if "finished" in result:
            line += f", after adabn {result['finished']['miou']:.2f}"
        print(line)
    if "source_only" in results:
        gain = results["adapted"]["miou"] - results["source_only"]["miou"]
        print(f"{method} adds {gain:+.2f} points of mIoU on {on}")


def side_by_side(results: list[dict]) -> list[str]:
    """Return a table with a column for each checkpoint and a row for each class, then the mean."""
    rows = {"mIoU": [result["miou"] for result in results]}
    for result in reversed(results):  # of other datasets' classes, each has its own rows
        rows = {name: [] for name in result.get("iou", {})} | rows
    for name in rows.keys() - {"mIoU"}:
        rows[name] = [result.get("iou", {}).get(name) for result in results]
    width = max(len(name) for name in rows)
    numbers = "".join(f"{f'({i})':>8}" for i in range(1, len(results) + 1))
    return [
        f"{'IoU':{width}}{numbers}",
        *(
            f"{name:{width}}" + "".join(f"{'-' if x is None else f'{x:.2f}':>8}" for x in values)
            for name, values in rows.items()
        ),
        *(f"({i}) {result['checkpoint']}" for i, result in enumerate(results, start=1)),
    ]


def below_each_other(results: list[dict]) -> list[str]:
    """Return a table with a row for each set of images, `val`, and a column for each checkpoint."""
    rows: dict[str, list[float | None]] = {}
    for result in results:
        rows.setdefault(result["val"], []).append(result["miou"])
    width, count = max(map(len, ["mIoU", *rows])), len(next(iter(rows.values())))
    numbers = "".join(f"{f'({i})':>8}" for i in range(1, count + 1))
    return [
        f"\n{'mIoU':{width}}{numbers}",
        *(
            f"{name:{width}}" + "".join(f"{'-' if x is None else f'{x:.2f}':>8}" for x in values)
            for name, values in rows.items()
        ),
        *(f"({i}) {result['checkpoint']}" for i, result in enumerate(results[:count], start=1)),
    ]


def picture(
    predictors: dict[str, Callable], dataset: Dataset, rows: int = 4, width: int = 320
) -> Image.Image:
    """Draw some images of a dataset, each beside its truth and every network's prediction.

    Args:
        predictors: title -> function (uint8 images [1,3,h,w], (H, W)) -> train ids [1,H,W].
        dataset: labelled; rows are taken at equal distances.
        rows: how many images.
        width: of one panel, in pixels.

    Returns:
        an RGB picture with a title over each column and the classes below.
    """
    chosen = [i * len(dataset) // min(rows, len(dataset)) for i in range(min(rows, len(dataset)))]
    table = []
    for index in chosen:
        sample = dataset[index]
        label = sample["label"]
        ids = [
            predict(sample["image"][None], tuple(label.shape))[0] for predict in predictors.values()
        ]
        image = sample["image"].permute(1, 2, 0).numpy()
        maps = [colourise(one.cpu().numpy(), dataset.palette) for one in (label, *ids)]
        table.append([image, *maps])

    height = round(width * dataset[0]["label"].shape[0] / dataset[0]["label"].shape[1])
    titles = ["image", "truth", *predictors]
    cell_w, cell_h = width + _GAP, height + _GAP
    sheet = Image.new("RGB", (cell_w * len(titles), _TITLE + cell_h * len(table) + _TITLE), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        draw.text((column * cell_w + 2, 2), title, "black", font)
        for row, panels in enumerate(table):
            how = Image.BICUBIC if column == 0 else Image.NEAREST
            panel = Image.fromarray(panels[column]).resize((width, height), how)
            sheet.paste(panel, (column * cell_w, _TITLE + row * cell_h))
    _legend(draw, dataset, sheet.width, sheet.height - _TITLE, font)
    return sheet


def validation_picture(network: nn.Module, dataset: Dataset, precision: str) -> np.ndarray:
    """Draw `picture` of a network in the middle of its training, uint8 [H,W,3]."""
    drawn = picture({"prediction": Predictor(network.eval(), precision)}, dataset)
    network.train()
    return np.asarray(drawn)


def _legend(draw: ImageDraw.ImageDraw, dataset: Dataset, width: int, top: int, font) -> None:
    step = width / dataset.num_classes
    for c, (name, colour) in enumerate(zip(dataset.class_names, dataset.palette, strict=True)):
        left = c * step
        draw.rectangle([left + 2, top + 4, left + 14, top + 16], fill=tuple(colour))
        draw.text((left + 18, top + 2), name, "black", font)
