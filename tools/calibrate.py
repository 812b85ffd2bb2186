"""Fit the temperature that makes a network's confidences right, and store it in the checkpoint.

    python -m tools.calibrate snapshots/day/camvid_best.pth --output snapshots/day/calibrated.pth
    python pseudo_label.py --restore-from snapshots/day/calibrated.pth --temperature \\
        --threshold 0.9 --save data/pseudo

On the labelled images that the checkpoint was validated on, unless others are named; logits are
divided by the temperature, which changes no prediction, only how sure it is. The expected
calibration error (ECE) before and after is of the same images: `evaluate.py --calibration
--temperature` says it of others. The output is the checkpoint and its temperature.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from datasets import DATASETS
from datasets.loading import make_loader
from engine import data_options, options, start
from engine.device import pick_device
from engine.errors import UserError
from engine.files import refuse_replacing
from engine.values import Views
from inference import calibration, loop
from models.checkpoint import load_checkpoint, save_checkpoint


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    parser.add_argument("restore_from", metavar="FILE", help="the checkpoint")
    parser.add_argument("--output", required=True, metavar="FILE", help="the new one: .pth")
    data_options.add_data(parser, DATASETS)
    options.add_device(parser)
    return options.parse(parser, argv, evaluates=True)


def main(args: argparse.Namespace) -> None:
    """Fit, say what it changes, and write the checkpoint."""
    if Path(args.output).suffix not in (".pth", ".safetensors"):
        raise UserError(f"--output {args.output}: must end in .pth or .safetensors")
    refuse_replacing([args.output], [args.restore_from])
    predictor, dataset = loop.restore(
        args.restore_from,
        pick_device(args.device),
        foreign=None,
        images=data_options.images(args),
        precision=args.precision,
        views=Views(),
    )
    logits, labels = [], []
    loader = make_loader(dataset, options.loading(args), batch_size=1)
    for index, batch in enumerate(tqdm(loader, disable=None, leave=False)):
        (found,) = predictor.logits(batch["image"])
        how = (predictor.align_corners, dataset.ignore_index, index)
        some = calibration.sampled(found, batch["label"][0], *how)
        logits.append(some[0])
        labels.append(some[1])
    logits, labels = torch.cat(logits), torch.cat(labels)
    temperature = calibration.fit_temperature(logits, labels)
    before, after = (error(logits / t, labels) for t in (1.0, temperature))
    checkpoint = load_checkpoint(args.restore_from) | {"temperature": temperature}
    save_checkpoint(checkpoint, Path(args.output))
    print(
        f"temperature {temperature:.4f} from {len(labels)} pixels of {len(dataset)} images; "
        f"ECE of them {before:.2f} before, {after:.2f} after; written to {args.output}"
    )


def error(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the expected calibration error of some pixels, in percent."""
    confidence, pred = logits.softmax(1).float().max(1)
    found = calibration.Calibration(logits.shape[1])
    found.update(*(x[None, None] for x in (pred.byte(), confidence, labels.byte())))
    found.add_up_processes()
    return calibration.expected_error(found.counts.double().sum(0), found.sums.sum(0))


if __name__ == "__main__":
    start.run(main, parse_args)
