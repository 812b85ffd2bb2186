"""Small data sets in the folder layouts of the real ones, for every test that needs files.

Each `make_*` writes a few labelled images below a root, the same for the same seed. Labels are
blocks of random raw ids; images show each id in a colour of its own, so that a network can learn.
"""

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CITYSCAPES_IDS = (7, 8, 11, 12, 17, 21, 23, 24, 26, 33, 0, 1)
SYNTHIA_IDS = (3, 4, 2, 6, 7, 1, 10, 8, 11, 0, 22)


def blocks(rng: np.random.Generator, size: tuple[int, int], ids: Sequence[int]) -> np.ndarray:
    """Return uint8 [H,W]: blocks of 8 pixels of random ids."""
    width, height = size
    cells = rng.choice(np.array(ids, np.uint8), (-(-height // 8), -(-width // 8)))
    return np.repeat(np.repeat(cells, 8, 0), 8, 1)[:height, :width]


def picture(rng: np.random.Generator, ids: np.ndarray) -> np.ndarray:
    """Return uint8 [H,W,3]: a colour for each id, and noise."""
    colours = np.random.default_rng(1).integers(30, 220, (256, 3))
    return (colours[ids] + rng.integers(-20, 21, (*ids.shape, 3))).astype(np.uint8)


def save(path: Path, array: np.ndarray, palette: bool = False) -> None:
    """Write an image file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image.putpalette(np.random.default_rng(2).integers(0, 256, 768, np.uint8).tobytes())
    image.save(path)


def make_gta5(root: Path, n: int = 3, size: tuple[int, int] = (64, 48), seed: int = 0) -> Path:
    """Write images/00001.png ... and palette labels of Cityscapes ids."""
    rng = np.random.default_rng(seed)
    for i in range(1, n + 1):
        ids = blocks(rng, size, (*CITYSCAPES_IDS, 34))
        save(root / "images" / f"{i:05d}.png", picture(rng, ids))
        save(root / "labels" / f"{i:05d}.png", ids, palette=True)
    return root


def make_cyclegta(root: Path, n: int = 3, size: tuple[int, int] = (64, 48), seed: int = 0) -> Path:
    """Write GTA5 and images_translated/00001.jpg ..., one fewer than there are labels."""
    make_gta5(root, n, size, seed)
    for i in range(1, n):
        image = np.asarray(Image.open(root / "images" / f"{i:05d}.png"))
        save(root / "images_translated" / f"{i:05d}.jpg", 255 - image)
    return root


def make_synthia(root: Path, n: int = 3, size: tuple[int, int] = (64, 48), seed: int = 0) -> Path:
    """Write RGB/0000001.png ... and 16-bit labels, the ids in red and instances in green."""
    rng = np.random.default_rng(seed)
    for i in range(1, n + 1):
        ids = blocks(rng, size, SYNTHIA_IDS)
        save(root / "RGB" / f"{i:07d}.png", picture(rng, ids))
        channels = [ids, rng.integers(0, 65536, ids.shape), np.zeros_like(ids)]
        (root / "GT" / "LABELS").mkdir(parents=True, exist_ok=True)
        write_png16(root / "GT" / "LABELS" / f"{i:07d}.png", np.stack(channels, -1))
    return root


def make_cityscapes(
    root: Path,
    n: int = 3,
    size: tuple[int, int] = (64, 32),
    seed: int = 0,
    splits: Sequence[str] = ("train", "val"),
) -> Path:
    """Write leftImg8bit and gtFine with labelIds and labelTrainIds, in two cities a split."""
    train_ids = np.full(256, 255, np.uint8)
    train_ids[[7, 8, 11, 12, 17, 21, 23, 24, 26, 33]] = [0, 1, 2, 3, 5, 8, 10, 11, 13, 18]
    rng = np.random.default_rng(seed)
    for split in splits:
        for i in range(n):
            city = ("bremen", "aachen")[i % 2]
            frame = f"{city}_{i:06d}_000019"
            ids = blocks(rng, size, CITYSCAPES_IDS)
            save(root / f"leftImg8bit/{split}/{city}/{frame}_leftImg8bit.png", picture(rng, ids))
            labels = root / f"gtFine/{split}/{city}"
            save(labels / f"{frame}_gtFine_labelIds.png", ids)
            save(labels / f"{frame}_gtFine_labelTrainIds.png", train_ids[ids])
    return root


def make_loveda(root: Path, n: int = 2, size: tuple[int, int] = (64, 64), seed: int = 0) -> Path:
    """Write Train and Val, Urban and Rural."""
    rng = np.random.default_rng(seed)
    number = 0
    for split in ("Train", "Val"):
        for domain in ("Urban", "Rural"):
            for _ in range(n):
                ids = blocks(rng, size, range(8))
                save(root / split / domain / "images_png" / f"{number}.png", picture(rng, ids))
                save(root / split / domain / "masks_png" / f"{number}.png", ids)
                number += 1
    return root


def make_camvid(root: Path, n: int = 6, size: tuple[int, int] = (60, 45), seed: int = 0) -> Path:
    """Write train, val, test and their labels; n frames of 0001TP and n by day in train."""
    rng = np.random.default_rng(seed)
    frames = {
        "train": [f"0001TP_{6690 + 30 * i:06d}" for i in range(n)]
        + [f"0006R0_f{930 + 30 * i:05d}" for i in range(n)],
        "val": [f"0016E5_{7959 + 2 * i:05d}" for i in range(n)],
        "test": [f"Seq05VD_f{30 * i:05d}" for i in range(n)],
    }
    for split, names in frames.items():
        for name in names:
            ids = blocks(rng, size, range(12))
            save(root / split / f"{name}.png", picture(rng, ids))
            save(root / f"{split}annot" / f"{name}.png", ids)
    return root


def make_folder(
    root: Path,
    n: int = 3,
    size: tuple[int, int] = (64, 48),
    seed: int = 0,
    splits: Sequence[str] = ("train", "val"),
) -> Path:
    """Write images/SPLIT/*.jpg, labels/SPLIT/*.png (ids 10, 20, 30; 40 ignored), classes.json."""
    rng = np.random.default_rng(seed)
    for split in splits:
        for i in range(n):
            ids = blocks(rng, size, (10, 20, 30, 40))
            save(root / "images" / split / f"{i}.jpg", picture(rng, ids))
            save(root / "labels" / split / f"{i}.png", ids)
    names = ("ground", "plant", "water")
    classes = [
        {"id": 10 * i, "name": name, "color": [60 * i, 0, 255 - 60 * i]}
        for i, name in enumerate(names, start=1)
    ]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore": [40]}))
    return root


def make_waste(root: Path, n: int = 10, size: tuple[int, int] = (64, 48), seed: int = 0) -> Path:
    """Write train.json (COCO) and its images, test/ without labels, and sample_submission.csv."""
    rng, names = np.random.default_rng(seed), ("bottle", "can", "paper")
    images, annotations = [], []
    for i in range(n):
        ids = np.zeros(size[::-1], np.uint8)
        for category in (1, 2, 3):
            left, top = 20 * (category - 1) + int(rng.integers(0, 4)), int(rng.integers(0, 30))
            ids[top : top + 12, left : left + 12] = category
            corners = [left, top, left + 12, top, left + 12, top + 12, left, top + 12]
            row = {"id": len(annotations), "image_id": i, "category_id": category}
            annotations.append(row | {"segmentation": [corners], "iscrowd": 0})
        name = f"batch_{i // 4:02d}/{i:04d}.jpg"
        save(root / name, picture(rng, ids))
        images.append({"id": i, "file_name": name, "width": size[0], "height": size[1]})
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    value = {"images": images, "categories": categories, "annotations": annotations}
    (root / "train.json").write_text(json.dumps(value))
    rows = ["image_id,PredictionString"]
    for i in range(3):
        save(root / f"test/batch_09/{i:04d}.jpg", picture(rng, blocks(rng, size, range(4))))
        rows.append(f"batch_09/{i:04d}.jpg,")
    (root / "sample_submission.csv").write_text("\n".join(rows) + "\n")
    return root


def write_list(path: Path, pairs: Sequence[Sequence[str]]) -> Path:
    """Write a list file."""
    path.write_text("".join(" ".join(pair) + "\n" for pair in pairs))
    return path


def write_png16(path: Path, pixels: np.ndarray, filters: Sequence[int] = (0, 1, 2, 3, 4)) -> None:
    """Write uint16 [H,W,3] as a 16-bit RGB PNG whose rows take turns with the filters."""
    height, width, _ = pixels.shape
    raw = pixels.astype(">u2").view(np.uint8).reshape(height, width * 6).astype(np.int64)
    above, rows = np.zeros(width * 6, np.int64), []
    for i, row in enumerate(raw):
        left, corner = (np.concatenate([np.zeros(6, np.int64), x[:-6]]) for x in (row, above))
        kind = filters[i % len(filters)]
        guess = left + above - corner
        order = np.abs(guess - np.stack([left, above, corner])).argmin(0)  # first of equals, as PNG
        paeth = np.choose(order, [left, above, corner])
        prediction = (0 * row, left, above, (left + above) // 2, paeth)[kind]
        rows.append(bytes([kind]) + ((row - prediction) % 256).astype(np.uint8).tobytes())
        above = row
    packed = zlib.compress(b"".join(rows))
    path.write_bytes(png((width, height, 16, 2, 0, 0, 0), packed[:50], packed[50:]))


def png(header: tuple[int, ...], *data: bytes) -> bytes:
    """Return a PNG file of this header (width, height, bits, colour type, 0, 0, 0) and data."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *header)), *((b"IDAT", part) for part in data)]
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in (*chunks, (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        parts.append(struct.pack(">I", len(body)) + kind + body + checksum)
    return b"".join(parts)
