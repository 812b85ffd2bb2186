"""Time the vote over submission files: five CSVs in, one out, beside pandas and scipy."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from inference.submissions import format_ids
from tools.benchmark.timing import compare

MEMBERS = 5
NUM_CLASSES = 11
# Each side runs in a process of its own, whose peak is its own; imports are not timed.
MEASURE = """
import json, re, sys, time
{imports}
started = time.perf_counter()
{call}
seconds = time.perf_counter() - started
# not ru_maxrss, in which a process begins with the peak of the one that started it
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
print(json.dumps([seconds, int(peak) / 1024]))
"""
OURS = MEASURE.format(
    imports="import ensemble", call="ensemble.main(ensemble.parse_args(sys.argv[1:]))"
)
PLAIN = MEASURE.format(
    imports="import pandas, scipy.stats, benchmarks.votes",
    call="benchmarks.votes.plain_vote(sys.argv[3:], sys.argv[1], int(sys.argv[2]))",
)


def run(
    *, size: tuple[int, int], images: int, plain_images: int, repeats: int
) -> Iterator[tuple[dict, str]]:
    """Yield one row, the time of an image, and a remark.

    Args:
        size: W, H of a label map in pixels.
        images: rows of each file.
        plain_images: rows that the plain way does; its time grows with their number alone.
        repeats: rounds.
    """
    plain_images = min(images, plain_images)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder), size, images)
        megabytes = Path(paths[0]).stat().st_size / 1e6
        ours_save, plain_save = f"{folder}/ours.csv", f"{folder}/plain.csv"
        times, peaks = ([], []), (0.0, 0.0)
        for _ in range(repeats):
            results = (
                measure(OURS, ["--csv", *paths, "--save", ours_save]),
                measure(PLAIN, [plain_save, str(plain_images), *paths]),
            )
            for side, (seconds, _), count in zip(
                times, results, (images, plain_images), strict=True
            ):
                side.append(seconds / count)
            peaks = tuple(max(a, b) for a, (_, b) in zip(peaks, results, strict=True))
        check_equal(ours_save, plain_save)
    row = {
        "name": f"vote, {MEMBERS} files of {images} rows of {size[0] * size[1]} ids",
        **compare(*times),
        "ours_peak_mb": peaks[0],
        "plain_peak_mb": peaks[1],
        "plain_images": plain_images,
    }
    yield (
        row,
        (
            f"{row['ours_ms'] * images / 1e3:.1f} s in all, files of {megabytes:.0f} MB; "
            f"peak memory {peaks[0]:.0f} MiB, of the plain way {peaks[1]:.0f} MiB "
            f"for {plain_images} rows"
        ),
    )


def measure(code: str, words: list[str]) -> tuple[float, float]:
    """Return the seconds and the peak memory in MiB of a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def plain_vote(paths: list[str], save: str, rows: int) -> None:
    """Vote with pandas and scipy, as it is commonly done.

    Args:
        paths: submissions whose rows have one order.
        save: the file to write.
        rows: how many of them to do.
    """
    import pandas
    import scipy.stats

    frames = [pandas.read_csv(path, nrows=rows) for path in paths]
    result = []
    for texts in zip(*(frame["PredictionString"] for frame in frames), strict=True):
        maps = np.array([np.array(text.split(), np.uint8) for text in texts])
        vote = scipy.stats.mode(maps, axis=0).mode
        result.append(" ".join(map(str, vote.tolist())))
    images = frames[0]["image_id"]
    pandas.DataFrame({"image_id": images, "PredictionString": result}).to_csv(save, index=False)


def write_files(folder: Path, size: tuple[int, int], images: int) -> list[str]:
    """Write submissions of blocks of classes, one pixel in ten another class in each file."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, NUM_CLASSES, (size[1] // 16 + 1, size[0] // 16 + 1), np.uint8)
    truth = blocks.repeat(16, 0).repeat(16, 1)[: size[1], : size[0]].ravel()
    paths = [f"{folder}/{member}.csv" for member in range(MEMBERS)]
    for path in paths:
        noise = rng.integers(0, NUM_CLASSES, truth.shape, np.uint8)
        seen = np.where(rng.random(truth.shape) < 0.1, noise, truth)
        with open(path, "wb") as file:
            file.write(b"image_id,PredictionString\n")
            for image in range(images):
                file.write(b"%d.jpg,%b\n" % (image, format_ids(np.roll(seen, 17 * image))))
    return paths


def check_equal(ours: str, plain: str) -> None:
    """Stop unless the plain file's lines are our first ones."""
    with open(ours) as one, open(plain) as other:
        equal = [a == b for a, b in zip(one, other, strict=False)]
    assert len(equal) > 1, "no row to compare"
    assert all(equal), "the votes differ"
