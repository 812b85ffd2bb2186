"""More small data sets in the folder layouts of the real ones; see `fakedata`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fakedata import CITYSCAPES_IDS, blocks, picture, save

TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 17: 5, 21: 8, 23: 10, 24: 11, 26: 13, 33: 18}
# ISPRS: class id -> colour of the files, 0 is the rim of objects
ISPRS_COLOURS = np.array(
    [(0, 0, 0), (255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0)]
    + [(255, 0, 0)],
    np.uint8,
)
# as the download's files hold them
VOC_COLOURS = (
    "000000 800000 008000 808000 000080 800080 008080 808080 400000 c00000 408000 c08000 400080 "
    "c00080 408080 c08080 004000 804000 00c000 80c000 004080"
)
SIZE = (48, 32)


def to_train_ids(ids: np.ndarray) -> np.ndarray:
    """Return ids of Cityscapes as train ids."""
    table = np.full(256, 255, np.uint8)
    table[list(TRAIN_IDS)] = list(TRAIN_IDS.values())
    return table[ids]


def pairs(root: Path, names: Sequence[tuple[str, str]], ids: Sequence[int]) -> None:
    """Write an image and a label of these ids for each (image, label or "")."""
    rng = np.random.default_rng(0)
    for image, label in names:
        drawn = blocks(rng, SIZE, ids)
        save(root / image, picture(rng, drawn))
        if label:
            save(root / label, drawn)


def make_minicity(root: Path) -> Path:
    """Write train and val with labelIds, test with numbered images alone."""
    for split in ("train", "val"):
        names = [f"aachen_{i:06d}_000019" for i in range(2)]
        pairs(
            root,
            [
                (f"leftImg8bit/{split}/{n}_leftImg8bit.png", f"gtFine/{split}/{n}_gtFine_{k}.png")
                for n in names
                for k in ("labelIds",)
            ],
            CITYSCAPES_IDS,
        )
    pairs(root, [("leftImg8bit/test/1.png", ""), ("leftImg8bit/test/2.png", "")], CITYSCAPES_IDS)
    return root


def make_acdc(root: Path) -> Path:
    """Write every condition: train, val and test, and the reference images of train."""
    for i, condition in enumerate(("fog", "night", "rain", "snow")):
        for split in ("train", "val", "test", "train_ref"):
            frame = f"{condition}/{split}/GOPR{i:04d}/GOPR{i:04d}_frame_000{i}00"
            end = "_rgb_ref_anon" if split == "train_ref" else "_rgb_anon"
            label = f"gt/{frame}_gt_labelIds.png" if split in ("train", "val") else ""
            pairs(root, [(f"rgb_anon/{frame}{end}.png", label)], CITYSCAPES_IDS)
            if label:
                ids = np.asarray(Image.open(root / label))
                save(root / f"gt/{frame}_gt_labelTrainIds.png", to_train_ids(ids))
    return root


def make_dark_zurich(root: Path) -> Path:
    """Write train by day, twilight and night, and val at night with labels."""
    for time in ("day", "twilight", "night"):
        frame = f"train/{time}/GOPR0345/GOPR0345_frame_000001"
        pairs(root, [(f"rgb_anon/{frame}_rgb_anon.png", "")], CITYSCAPES_IDS)
    for i in range(2):
        frame = f"val/night/GOPR0356/GOPR0356_frame_00000{i}"
        names = [(f"rgb_anon/{frame}_rgb_anon.png", f"gt/{frame}_gt_labelIds.png")]
        pairs(root, names, CITYSCAPES_IDS)
    return root


def make_bdd100k(root: Path, older: bool = False) -> Path:
    """Write train and val in the folders of 2020, or of 2018."""
    for split in ("train", "val"):
        for i in range(2):
            image, label = f"images/10k/{split}/a{i}.jpg", f"labels/sem_seg/masks/{split}/a{i}.png"
            if older:
                image = f"seg/images/{split}/a{i}.jpg"
                label = f"seg/labels/{split}/a{i}_train_id.png"
            pairs(root, [(image, label)], [*range(19), 255])
    return root


def make_mapillary(root: Path, folders: Sequence[str] = ("v1.2/labels", "v2.0/labels")) -> Path:
    """Write training and validation, with labels of both versions: 66 and 124 ids."""
    for folder in folders:
        ids = range(124) if "2.0" in folder else range(66)
        for split in ("training", "validation"):
            names = [(f"{split}/images/{n}.jpg", f"{split}/{folder}/{n}.png") for n in "ab"]
            pairs(root, names, ids)
    return root


def make_voc(root: Path) -> Path:
    """Write lists of train, val and trainaug; labels with the palette of VOC, grey ones in Aug."""
    lists = {"train": ["2007_01", "2007_02"], "val": ["2007_03"], "trainaug": ["2007_01", "2008_9"]}
    for name, stems in lists.items():
        path = root / "ImageSets/Segmentation" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{stem}\n" for stem in stems))
    palette = bytearray(768)
    palette[: 3 * 21], palette[3 * 255 :] = bytes.fromhex(VOC_COLOURS), (224, 224, 192)
    rng = np.random.default_rng(0)
    for stem in ("2007_01", "2007_02", "2007_03", "2008_9"):
        ids = blocks(rng, SIZE, [*range(21), 255])
        save(root / "JPEGImages" / f"{stem}.jpg", picture(rng, ids))
        save(root / "SegmentationClassAug" / f"{stem}.png", ids)
        if stem != "2008_9":
            label = Image.fromarray(ids)
            label.putpalette(bytes(palette))
            (root / "SegmentationClass").mkdir(exist_ok=True)
            label.save(root / "SegmentationClass" / f"{stem}.png")
    return root


def make_ade20k(root: Path) -> Path:
    """Write training and validation with ids 0 to 150."""
    for split, name in (("training", "ADE_train"), ("validation", "ADE_val")):
        names = [f"{split}/{name}_0000000{i}" for i in (1, 2)]
        pairs(root, [(f"images/{n}.jpg", f"annotations/{n}.png") for n in names], range(151))
    return root


def make_synscapes(root: Path) -> Path:
    """Write img/rgb and img/class."""
    pairs(root, [(f"img/rgb/{i}.png", f"img/class/{i}.png") for i in (1, 2)], CITYSCAPES_IDS)
    return root


def make_urbansyn(root: Path) -> Path:
    """Write rgb and ss with ids 0 to 19."""
    pairs(root, [(f"rgb/rgb_{i:04d}.png", f"ss/ss_{i:04d}.png") for i in (1, 2)], range(20))
    return root


def make_potsdam(root: Path) -> Path:
    """Write two tiles of train and one of val, labels in colours, with and without boundaries."""
    tiles = ("2_10", "7_9", "2_13")
    for i, tile in enumerate(tiles):
        rng = np.random.default_rng(i)
        ids = blocks(rng, SIZE, range(1, 7))
        for folder, kind in (("2_Ortho_RGB", "RGB"), ("3_Ortho_IRRG", "IRRG")):
            save(root / folder / f"top_potsdam_{tile}_{kind}.tif", picture(rng, ids))
        save(root / "5_Labels_all" / f"top_potsdam_{tile}_label.tif", ISPRS_COLOURS[ids])
        ids[::8] = 0
        path = root / "5_Labels_all_noBoundary" / f"top_potsdam_{tile}_label_noBoundary.tif"
        save(path, ISPRS_COLOURS[ids])
    return root


def make_vaihingen(root: Path, folder: str = "gts_for_participants") -> Path:
    """Write two areas of train, one of val, and area 9, which has no label."""
    for i, area in enumerate((1, 11, 2, 9)):
        rng = np.random.default_rng(i)
        ids = blocks(rng, SIZE, range(1, 7))
        save(root / "top" / f"top_mosaic_09cm_area{area}.tif", picture(rng, ids))
        if area != 9:
            save(root / folder / f"top_mosaic_09cm_area{area}.tif", ISPRS_COLOURS[ids])
    return root


def make_waste(root: Path) -> Path:
    """Write images and labels of train and val, ids 0 to 10."""
    for split in ("train", "val"):
        names = [(f"images/{split}/b/{i}.jpg", f"labels/{split}/b/{i}.png") for i in range(2)]
        pairs(root, names, range(11))
    return root


# name -> (writer, split, how many)
SETS = {
    "minicity": (make_minicity, "train", 2),
    "acdc": (make_acdc, "val", 4),
    "dark_zurich": (make_dark_zurich, "val", 2),
    "bdd100k": (make_bdd100k, "train", 2),
    "mapillary": (make_mapillary, "val", 2),
    "voc": (make_voc, "train", 2),
    "ade20k": (make_ade20k, "val", 2),
    "synscapes": (make_synscapes, "train", 2),
    "urbansyn": (make_urbansyn, "train", 2),
    "potsdam": (make_potsdam, "train", 2),
    "vaihingen": (make_vaihingen, "train", 2),
    "waste": (make_waste, "train", 2),
}
# RobustNet's map of Mapillary Vistas 1.2, as its code writes it down
ROBUSTNET = {13: 0, 24: 0, 41: 0, 2: 1, 15: 1, 17: 2, 6: 3, 3: 4, 45: 5, 47: 5, 48: 6, 50: 7}
ROBUSTNET |= {30: 8, 29: 9, 27: 10, 19: 11, 20: 12, 21: 12, 22: 12, 55: 13, 61: 14, 54: 15}
ROBUSTNET |= {58: 16, 57: 17, 52: 18}
# raw -> train ids as the tests know them, apart from the class tables
TABLES = {
    **{name: TRAIN_IDS for name in ("minicity", "acdc", "dark_zurich", "synscapes")},
    **{name: {i: i for i in range(19)} for name in ("bdd100k", "urbansyn")},
    "mapillary": ROBUSTNET,
    "voc": {i: i for i in range(21)},
    "ade20k": {i + 1: i for i in range(150)},
    **{name: {i + 1: i for i in range(6)} for name in ("potsdam", "vaihingen")},
    "waste": {i: i for i in range(11)},
}
