"""Time our kernels beside the plain PyTorch and NumPy way, in one process.

    python benchmark.py kernels
    python benchmark.py kernels --device cuda --repeats 50 --json kernels.json

Both sides alternate and see the same inputs: label maps of a 19-class scene with 10% ignored, and
predictions that differ from them. Each of our results is first compared with the reference, bit for
bit. Times are medians in milliseconds; `of copy` is how near we come to the time in which this
machine copies the bytes that the operation must read and write.
"""

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import engine

NUM_CLASSES, IGNORE = 19, 255


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["kernels"], help="what to time")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--size", type=_size, default=(2048, 1024), metavar="W,H", help="default 2048,1024"
    )
    parser.add_argument("--repeats", type=int, default=15, help="of each side, default 15")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    return parser.parse_args(argv)


def _size(text: str) -> tuple[int, int]:
    width, height = (int(part) for part in text.split(","))
    return width, height


@dataclass
class Case:
    """One operation on one input: our call, the plain one, and the checked definition."""

    name: str
    ours: Callable
    plain: Callable
    reference: Callable
    num_bytes: int  # that must be read and written


def main(args: argparse.Namespace) -> None:
    import kernels  # compiles, so not before --help is served

    device = torch.device(args.device)
    machine = {
        "kernels": kernels.backend(device),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else cpu_name(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "copy_gb_per_s": copy_rate(device, args.repeats),
        "fp32_gflop_per_s": matrix_rate(device, torch.float32, args.repeats),
        "bf16_gflop_per_s": matrix_rate(device, torch.bfloat16, args.repeats),
    }
    for name, value in machine.items():
        print(f"{name:18} {value:.0f}" if isinstance(value, float) else f"{name:18} {value}")
    print(f"\n{'operation':38} {'ours':>9} {'plain':>9} {'ratio':>7} {'of copy':>8}")
    rows = []
    for case in kernel_cases(args.size, device):
        check_equal(case)
        ours, plain = alternate([case.ours, case.plain], device, args.repeats)
        of_copy = case.num_bytes / (machine["copy_gb_per_s"] * 1e9) / ours
        row = {"name": case.name, "ours_ms": ours * 1e3, "plain_ms": plain * 1e3}
        rows.append(row | {"ratio": plain / ours, "of_copy": of_copy})
        times = f"{row['ours_ms']:9.3f} {row['plain_ms']:9.3f} {plain / ours:6.1f}x"
        print(f"{case.name:38} {times} {of_copy:8.0%}")
    if args.json:
        report = {"size": args.size, "repeats": args.repeats, "machine": machine, "kernels": rows}
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")


# ---- timing ------------------------------------------------------------------------------------


def alternate(calls: list[Callable], device: torch.device, repeats: int) -> list[float]:
    """Return the median seconds of each call; they take turns, so that they share the weather."""
    seconds = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, times in zip(calls, seconds, strict=True):
            started = time.perf_counter()
            result = call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat > 0:  # the first one warms up
                times.append(time.perf_counter() - started)
            del result  # outside the clock
    return [statistics.median(times) for times in seconds]


def cpu_name() -> str:
    with contextlib.suppress(OSError):  # Linux only
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.machine()


def copy_rate(device: torch.device, repeats: int) -> float:
    """Measure the gigabytes read plus written in a second of copying 256 MiB."""
    source = torch.randint(1, 255, (1 << 28,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    (seconds,) = alternate([lambda: target.copy_(source)], device, repeats)
    return 2 * source.numel() / seconds / 1e9


def matrix_rate(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Measure the arithmetic of a matrix product, in 10^9 operations a second."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device).to(dtype)
    (seconds,) = alternate([lambda: a @ a], device, min(repeats, 5))
    return 2 * side**3 / seconds / 1e9


def check_equal(case: Case) -> None:
    ours, reference = case.ours(), case.reference()
    if isinstance(ours, Tensor):
        ours, reference = [ours], [reference]
    for x, y in zip(ours, reference, strict=True):
        assert torch.equal(x, y), f"{case.name} differs from the reference"
        assert x.any(), f"{case.name} gives zeros only: not worth timing"


# ---- inputs and plain ways ---------------------------------------------------------------------


def scene(size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return a label map with 10% ignored, a prediction with moved borders, and a noisy one."""
    width, height = size
    coarse = torch.randn(1, NUM_CLASSES, 8, 16, generator=generator)
    regions = F.interpolate(coarse, size=(height, width), mode="bicubic").argmax(1)[0].byte()
    moved = regions.roll((2, 2), (0, 1))
    guesses = torch.randint(0, NUM_CLASSES, (height, width), generator=generator).byte()
    noisy = torch.where(torch.rand(height, width, generator=generator) < 0.2, guesses, moved)
    regions[-height // 10 :] = IGNORE
    return regions, moved, noisy


def fast_hist(label: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """Count as AdaptSegNet's compute_iou.py does: keep what is labelled, then bincount."""
    kept = (label >= 0) & (label < NUM_CLASSES)
    return np.bincount(NUM_CLASSES * label[kept].astype(int) + pred[kept], minlength=NUM_CLASSES**2)


def torch_hist(label: Tensor, pred: Tensor) -> Tensor:
    kept = (label >= 0) & (label < NUM_CLASSES)
    return torch.bincount(NUM_CLASSES * label[kept] + pred[kept], minlength=NUM_CLASSES**2)


def kernel_cases(size: tuple[int, int], device: torch.device) -> list[Case]:
    """Build every operation on inputs of this size."""
    import kernels
    from kernels import reference

    generator = torch.Generator().manual_seed(0)
    label, moved, noisy = (ids.to(device) for ids in scene(size, generator))
    width, height = size
    pixels = width * height
    cases = []

    for name, pred in (("moved borders", moved), ("20% random", noisy)):
        wide_label, wide_pred = label.long(), pred.long()
        numpy_label, numpy_pred = wide_label.cpu().numpy(), wide_pred.cpu().numpy()
        if device.type == "cpu":
            plain = lambda y=numpy_label, x=numpy_pred: fast_hist(y, x)  # noqa: E731
        else:
            plain = lambda y=wide_label, x=wide_pred: torch_hist(y, x)  # noqa: E731
        for dtype, y, x, beside in (
            ("uint8", label, pred, plain),
            ("int64", wide_label, wide_pred, lambda y=wide_label, x=wide_pred: torch_hist(y, x)),
        ):
            cases.append(
                Case(
                    f"confusion_matrix {dtype}, {name}",
                    lambda x=x, y=y: kernels.confusion_matrix(x, y, NUM_CLASSES),
                    beside,
                    lambda x=x, y=y: reference.confusion_matrix(x, y, NUM_CLASSES, IGNORE),
                    2 * pixels * y.element_size(),
                )
            )

    h, w = height // 16 + 1, width // 16 + 1
    noise = torch.randn(1, NUM_CLASSES, h, w, generator=generator).to(device)
    coarse = torch.randn(1, NUM_CLASSES, 9, 17, generator=generator).to(device)
    smooth = 4 * F.interpolate(coarse, size=(h, w), mode="bicubic") + 0.1 * noise
    out = (height, width)
    for name, logits in (("smooth", smooth), ("random", noise)):
        for with_confidence in (False, True):
            cases.append(
                Case(
                    f"argmax_upsample {name}" + ", confidence" * with_confidence,
                    lambda x=logits, c=with_confidence: kernels.argmax_upsample(x, out, True, c),
                    lambda x=logits, c=with_confidence: interpolate_argmax(x, out, c),
                    lambda x=logits, c=with_confidence: reference.argmax_upsample(x, out, True, c)[
                        slice(None) if c else 0
                    ],
                    pixels * (5 if with_confidence else 1),
                )
            )

    votes = torch.stack([moved.roll((i, 2 * i), (0, 1)) for i in range(5)])
    cases.append(
        Case(
            "hard_vote of 5",
            lambda: kernels.hard_vote(votes, NUM_CLASSES),
            lambda: torch.mode(votes, 0).values,
            lambda: reference.hard_vote(votes, NUM_CLASSES, None),
            6 * pixels,
        )
    )

    image = torch.randint(0, 256, (4, 3, height, width), generator=generator).byte().to(device)
    a = [image, label.expand(4, height, width).contiguous()]
    b = [image.flip(0).contiguous(), moved.expand(4, height, width).contiguous()]
    boxes = torch.tensor([[width // 4, height // 5, width * 9 // 10, height * 8 // 10]] * 4)
    boxes = boxes[:, None].to(device)
    inside = torch.zeros(4, height, width, dtype=torch.bool, device=device)
    x0, y0, x1, y1 = boxes[0, 0].tolist()
    inside[:, y0:y1, x0:x1] = True
    classes = (torch.rand(4, 256, generator=generator) < 0.5).to(device)
    cases += [
        Case(
            "cutmix images and labels, batch 4",
            lambda: kernels.cutmix(a, b, boxes),
            lambda: where(a, b, inside),
            lambda: reference.cutmix(a, b, boxes),
            2 * 4 * 4 * pixels,
        ),
        Case(
            "classmix images and labels, batch 4",
            lambda: kernels.classmix(a, b, b[1], classes),
            lambda: where(a, b, classes.gather(1, b[1].flatten(1).long()).view(b[1].shape)),
            lambda: reference.classmix(a, b, b[1], classes),
            (2 * 4 + 1) * 4 * pixels,
        ),
    ]

    confidence = torch.rand(height, width, generator=generator).pow(0.1).to(device)
    cases.append(
        Case(
            "confidence_histogram, 100 bins",
            lambda: kernels.confidence_histogram(confidence, moved, NUM_CLASSES, 100),
            lambda: bincount_confidence(confidence, moved, 100),
            lambda: reference.confidence_histogram(confidence, moved, NUM_CLASSES, 100),
            5 * pixels,
        )
    )
    return cases


def interpolate_argmax(logits: Tensor, size: tuple[int, int], with_confidence: bool):
    full = F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
    return full.softmax(1).max(1) if with_confidence else full.argmax(1)


def where(a: list[Tensor], b: list[Tensor], mask: Tensor) -> list[Tensor]:
    return [
        torch.where((mask if x.dim() == 3 else mask[:, None]).expand_as(x), y, x)
        for x, y in zip(a, b, strict=True)
    ]


def bincount_confidence(confidence: Tensor, pred: Tensor, bins: int) -> Tensor:
    column = (confidence * bins).long().clamp(max=bins - 1)
    return torch.bincount((pred.long() * bins + column).flatten(), minlength=NUM_CLASSES * bins)


if __name__ == "__main__":
    engine.run(main, parse_args)
