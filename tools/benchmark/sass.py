"""Count the machine instructions of the CUDA kernels, and say how fast they let an H100 be.

A ceiling, not a time: every branch counts as taken, and waiting as nothing. What it needs (nvcc,
nvdisasm, a torch with CUDA's headers) need not be on a machine with a GPU.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import build
from tools.benchmark import scenes

# NVIDIA H100 SXM: multiprocessors, Hz, warp instructions a cycle each, bytes/s that a copy reaches.
PROCESSORS, CLOCK, ISSUED, MEMORY = 132, 1.7e9, 4, 3.0e12
LANES, THREADS, MOST_THREADS, REGISTERS = 32, 256, 2048, 65536
SIZE, STRIDE = (2048, 1024), 8  # of the upsampled map
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([\w.]+)(.*);")


class Code(NamedTuple):
    """The machine code of one kernel, or of a loop in it: operations, and loops as index ranges."""

    operations: list[str]
    loops: list[tuple[int, int]]

    def inside(self, begin: int, end: int) -> "Code":
        """Return a part of it, with the loops within."""
        within = [(b - begin, e - begin) for b, e in self.loops if begin <= b and e <= end]
        whole = (0, end - begin)
        return Code(self.operations[begin:end], [bounds for bounds in within if bounds != whole])

    def count(self, operation: str) -> int:
        """Return how many instructions begin with this."""
        return sum(op.startswith(operation) for op in self.operations)

    def loop(self, *operations: str, without: tuple[str, ...] = ()) -> "Code":
        """Return the longest loop with these operations that has no other such loop inside."""

        def fits(code: Code) -> bool:
            return all(map(code.count, operations)) and not any(map(code.count, without))

        found = [part for part in (self.inside(*bounds) for bounds in self.loops) if fits(part)]
        innermost = [c for c in found if not any(fits(c.inside(*bounds)) for bounds in c.loops)]
        if not innermost:
            raise LookupError(f"no loop with {', '.join(operations)}")
        return max(innermost, key=lambda code: len(code.operations))


class Kernel(NamedTuple):
    """A row: where the kernel is, what its loop does, and bytes that must move for a pixel."""

    name: str
    source: str
    symbol: str  # a part of the mangled name
    per_pixel: Callable[[Code], float]  # instructions of a thread
    num_bytes: float


def counting(pixels: int) -> Callable[[Code], float]:
    """Count the loop that finds cells and adds them up in shared memory."""
    return lambda code: len(code.loop("LDG", "ATOMS", "SHFL").operations) / pixels


def mixing(pixels: int) -> Callable[[Code], float]:
    """Count the most costly loop over whole packs of 16 bytes; it may hold two of them."""

    def count(code: Code) -> float:
        loop = code.loop("LDG.E.128", "STG.E.128")
        return len(loop.operations) / loop.count("STG.E.128") / pixels

    return count


def upsampling(rivals: float) -> Callable[[Code], float]:
    """Count a thread of two passes over 4x4 pixels: classes seen twice, rivals in each pass."""

    def count(code: Code) -> float:
        def seen(loop: Code) -> float:  # a class has four corners to load
            return len(loop.operations) / (loop.count("LDG") / 4) * scenes.NUM_CLASSES

        lowest = code.loop("LDG", "FMNMX", "FADD", without=("FSEL",))
        highest = code.loop("LDG", "FMNMX", "FSETP", without=("FADD", "FSEL"))
        rival, one_pass = code.loop("LDG", "FMUL", "FSEL"), code.loop("FSEL", "STG")
        loops = sum(len(code.inside(*bounds).operations) for bounds in outermost(one_pass))
        passing = len(one_pass.operations) - loops + len(rival.operations) * rivals
        once = len(code.operations) - len(one_pass.operations)  # unrolled loops and all
        return (once + seen(lowest) + seen(highest) + 2 * passing) / 32

    return count


def outermost(code: Code) -> list[tuple[int, int]]:
    """Return the loops that lie in no other."""
    loops = code.loops
    return [a for a in loops if not any(b[0] <= a[0] and a[1] <= b[1] for b in loops if b != a)]


def count_rivals(logits: Tensor) -> float:
    """Return how many classes a warp compares in a cell: the most of its 16 cells, on average."""
    corners = logits[0].unfold(1, 2, 1).unfold(2, 2, 1).flatten(-2)  # [C, h - 1, w - 1, 4]
    rivals = (corners.amax(-1) >= corners.amin(-1).amax(0)).sum(0)
    whole = rivals.shape[1] // 16 * 16
    return rivals[:, :whole].unflatten(1, (-1, 16)).amax(-1).float().mean().item()


def table() -> list[Kernel]:
    """Return the rows."""
    generator = torch.Generator().manual_seed(0)
    finer = (SIZE[0] * 16 // STRIDE, SIZE[1] * 16 // STRIDE)  # as smooth_logits has stride 16
    rivals = count_rivals(scenes.smooth_logits(finer, scenes.NUM_CLASSES, generator))
    wide = "MatrixCellsIllEE"
    return [
        Kernel("confusion_matrix uint8", "confusion", "9ByteCells", counting(16), 2),
        Kernel("confusion_matrix int64", "confusion", wide, counting(2), 16),
        Kernel("confidence_histogram", "confidence", "ConfidenceCells", counting(4), 5),
        *(
            Kernel(f"hard_vote of {m}", "vote", f"count_votes_kernelILi{m}E", voting, m + 1)
            for m in (3, 5, 8)
        ),
        Kernel("cutmix, one box, uint8", "mix", "InBoxes", mixing(16), 2),
        Kernel("classmix, uint8", "mix", "InClasses", mixing(16), 3),
        Kernel(
            f"argmax_upsample x{STRIDE}, {rivals:.1f} of {scenes.NUM_CLASSES} classes in a cell",
            "upsample",
            "kernelILi4ELb0Ef",
            upsampling(rivals),
            1,
        ),
    ]


def voting(code: Code) -> float:
    """Count the loop over 16 pixels."""
    return len(code.loop("LDG.E.128", "STG.E.128").operations) / 16


def missing() -> str:
    """Say in one sentence what is not there; empty if nothing is."""
    tools = [tool for tool in ("nvcc", "nvdisasm") if shutil.which(tool) is None]
    if tools:
        return f"skipped: {' and '.join(tools)} not on the PATH"
    if not torch_folder():
        return "skipped: this torch has no CUDA headers; SEGSHIFT_CUDA_TORCH names another's folder"
    return ""


def torch_folder() -> Path | None:
    """Return the folder of a torch that has CUDA's headers."""
    given = os.environ.get("SEGSHIFT_CUDA_TORCH")
    if not given and torch.version.cuda is None:
        return None
    return Path(given or torch.__path__[0])


def nvcc_flags(folder: Path) -> list[str]:
    """Return what the build of that torch passes to nvcc, and ours."""
    from torch.utils import cpp_extension  # which takes a while

    standard = re.search(r"-std=c\+\+\d+", (folder / "utils/cpp_extension.py").read_text())
    includes = [folder / "include", folder / "include/torch/csrc/api/include"]
    return [
        *cpp_extension.COMMON_NVCC_FLAGS,
        standard[0],
        *build.CUDA_FLAGS,
        *(f"-I{include}" for include in includes),
    ]


def compile_source(source: str, folder: Path, architecture: str) -> tuple[dict[str, Code], str]:
    """Return the code of each kernel of a source, and what the assembler said about them."""
    cubin = folder / f"{source}.cubin"
    command = ["nvcc", "-cubin", f"-arch={architecture}", "-Xptxas=-v", "-o", str(cubin)]
    command += [*nvcc_flags(torch_folder()), str(build.HERE / f"{source}_cuda.cu")]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode != 0:
        raise RuntimeError(f"nvcc cannot compile {source}_cuda.cu:\n{said.stderr[-2000:]}")
    listing = subprocess.run(["nvdisasm", "-c", str(cubin)], capture_output=True, text=True)
    return parse(listing.stdout), said.stderr


def parse(listing: str) -> dict[str, Code]:
    """Read what nvdisasm -c prints."""
    codes = {}
    for part in re.split(r"^\.text\.", listing, flags=re.M)[1:]:
        name, _, body = part.partition(":\n")
        operations, labels, jumps = [], {}, []
        for line in body.splitlines():
            if label := re.match(r"(\.L_x_\d+):", line):
                labels[label[1]] = len(operations)
            elif found := INSTRUCTION.search(line):
                # Without a condition it is the way back from code that was put elsewhere.
                if target := re.search(r"@.*BRA.*`\((\.L_x_\d+)", line):
                    jumps.append((target[1], len(operations)))
                operations.append(found[1])
        backward = {(labels[to], at + 1) for to, at in jumps if labels[to] <= at}
        codes[name] = Code(operations, sorted(backward))
    return codes


def run(architecture: str) -> Iterator[dict]:
    """Yield a row for each kernel."""
    compiled = {}
    with tempfile.TemporaryDirectory() as folder:
        for kernel in table():
            if kernel.source not in compiled:
                compiled[kernel.source] = compile_source(kernel.source, Path(folder), architecture)
            codes, said = compiled[kernel.source]
            name = next(name for name in codes if kernel.symbol in name)
            about = said.partition(f"Compiling entry function '{name}'")[2]
            registers = int(re.search(r"Used (\d+) registers", about)[1])
            instructions = kernel.per_pixel(codes[name])
            rate = PROCESSORS * CLOCK * ISSUED * LANES / instructions  # pixels/s
            blocks = min(REGISTERS // (-(-registers // 8) * 8 * THREADS), MOST_THREADS // THREADS)
            yield {
                "name": kernel.name,
                "registers": registers,
                "spilled_bytes": int(re.search(r"(\d+) bytes spill stores", about)[1]),
                "occupancy": blocks * THREADS / MOST_THREADS,
                "instructions": instructions,
                "bytes": kernel.num_bytes,
                "issue_tb_per_s": rate * kernel.num_bytes / 1e12,
                "memory_tb_per_s": MEMORY / 1e12,
                "us_a_map": SIZE[0] * SIZE[1] * 1e6 / min(rate, MEMORY / kernel.num_bytes),
            }


def show(architecture: str) -> None:
    """Print the table in Markdown, or why there is none."""
    if reason := missing():
        print(reason)
        return
    print("| kernel | registers | spilled | threads | instructions, bytes a pixel |", end="")
    print(" TB/s: issue, memory | us a map |\n|---|---|---|---|---|---|---|")
    for row in run(architecture):
        print(
            f"| {row['name']} | {row['registers']} | {row['spilled_bytes']} | "
            f"{row['occupancy']:.0%} | {row['instructions']:.1f}, {row['bytes']:g} | "
            f"{row['issue_tb_per_s']:.1f}, {row['memory_tb_per_s']:.1f} | {row['us_a_map']:.1f} |",
            flush=True,
        )
