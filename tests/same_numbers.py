"""Show that two commits train the same networks: equal losses and weights, to the last digit.

    git worktree add /tmp/before 7b171e3
    python tests/same_numbers.py /tmp/before . --work /tmp/same --camvid data/CamVid

Every run below is made in both checkouts on this machine, on one CPU thread and in fp32; log.jsonl
and the last published checkpoint are then compared. A run that is finished in --work is not made
again. Exit status 1 where anything differs.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch

STREETS = "train_da.py --recipe streets --no-baseline --random-seed 0 --print-every 1"
TWO_HEADS = "--model deeplabv3plus --backbone efficientnet_lite0 --multi-level --adapt-from 2"
RUNS = {
    "adversarial": f"{STREETS} --num-steps 20 --adapt-from 5",
    "mix": f"{STREETS} --num-steps 20 --adapt-from 5 --method mix",
    "fixmatch": f"{STREETS} --num-steps 20 --adapt-from 5 --method fixmatch",
    "memory": f"{STREETS} --num-steps 20 --method memory {TWO_HEADS}",
    "adabn": f"{STREETS} --num-steps 20 --method adabn {TWO_HEADS} --norm batch",
    "advent-entropy": f"{STREETS} --num-steps 6 --adapt-from 2 --method advent entropy",
    "augmented": f"{STREETS} --num-steps 6 --adapt-from 2 --method mix --color-jitter 0.4"
    " --auto-augment --random-scale 0.8,1.2 --crop-size 96,64 --rare-class-sampling",
    "labelled": f"{STREETS} --num-steps 6 --adapt-from 2 --method target_supervised mix"
    " --target-labels 8 --mix-labels true --mix box --iter-size 2",
    "seg": "train_seg.py --recipe streets --random-seed 0 --print-every 1 --num-steps 8"
    " --color-jitter 0.3 --auto-augment source",
    "deeplabv2": f"{STREETS} --num-steps 3 --adapt-from 1 --model deeplabv2 --backbone resnet50"
    " --multi-level --aspp-dilations 6,12 --align-corners --optimizer sgd --batch-size 1",
    "two-processes": f"torchrun {STREETS} --num-steps 10 --adapt-from 5",
    "camvid": "train_da.py --recipe camvid --num-steps 20 --print-every 1 --random-seed 0"
    " --data-dir CAMVID --data-list CAMVID/day_train.txt --data-list-target CAMVID/dusk_train.txt"
    " --val-list CAMVID/dusk_val.txt --method mix adabn",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("before", help="a checkout")
    parser.add_argument("after", help="another checkout")
    parser.add_argument("--work", required=True, metavar="DIR", help="where the runs go")
    parser.add_argument(
        "--camvid", metavar="DIR", help="with lists day_train.txt and so on; left out without it"
    )
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN")
    return parser.parse_args(argv)


def make(name: str, checkout: Path, folder: Path, camvid: str | None) -> None:
    """Run one of RUNS in a checkout, unless its result is there."""
    if (folder / "result.json").exists():
        return
    words = RUNS[name].replace("CAMVID", str(camvid)).split()
    command = [sys.executable]
    if words[0] == "torchrun":
        words = words[1:]
        port = "--rdzv-backend=c10d --rdzv-endpoint=localhost:0"
        command += f"-m torch.distributed.run --nproc-per-node 2 {port}".split()
    command += [*words, "--precision", "fp32", "--snapshot-dir", str(folder)]
    print(f"{checkout}: {shlex.join(command[1:])}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed in {checkout}:\n{done.stderr[-2000:]}")


def losses(folder: Path) -> list[dict]:
    """Return the lines of a log without what depends on the clock or was renamed since."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    clock = ("steps_per_second", "images_per_step", "memory_gib", "val_iou")
    clock += ("rate", "learning_rate", "seconds_left")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the newest published network of a run."""
    files = [path for path in folder.glob("*_*.pth") if not path.stem.endswith("_best")]
    newest = max(files, key=lambda path: path.stat().st_mtime)
    return torch.load(newest, map_location="cpu", weights_only=True)["model"]


def difference(before: Path, after: Path) -> str:
    """Say what differs between two runs; empty where nothing does."""
    for ours, theirs in zip(losses(after), losses(before), strict=True):
        if ours != theirs:
            return f"log.jsonl: {theirs} before, {ours} after"
    old, new = weights(before), weights(after)
    if old.keys() != new.keys():
        return f"other tensors: {sorted(old.keys() ^ new.keys())[:5]}"
    other = [key for key in old if not torch.equal(old[key], new[key])]
    return f"{len(other)} tensors differ, the first is {other[0]}" if other else ""


def main(args: argparse.Namespace) -> int:
    """Make every run twice and compare; return the exit status."""
    failed = 0
    for name in args.only:
        if name == "camvid" and args.camvid is None:
            print(f"{name:16} left out: no --camvid")
            continue
        camvid = args.camvid and str(Path(args.camvid).resolve())
        folders = []
        for side, checkout in (("before", args.before), ("after", args.after)):
            folders.append(Path(args.work, side, name).resolve())
            make(name, Path(checkout), folders[-1], camvid)
        problem = difference(*folders)
        failed += bool(problem)
        print(f"{name:16} {problem or 'equal'}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(parse_args()))
