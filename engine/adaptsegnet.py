"""Command lines of AdaptSegNet, which run here but for the script's name.

Its flags are ours, but for some that need nothing here, its names of networks, and what it takes
where nothing is said: the folders of its README, and the network of both levels.

Source: AdaptSegNet's README.md, train_gta2cityscapes_multi.py, evaluate_cityscapes.py and
compute_iou.py.
"""

import argparse
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from engine import processes
from engine.errors import UserError

# flag -> how many values, and why it needs nothing here
NOTHING_TO_DO = {
    "--gpu": (1, "--device cuda:N chooses one"),
    "--is-training": (0, "train_*.py trains"),
    "--not-restore-last": (0, "what fits is loaded"),
    "--num-classes": (1, "the dataset's"),
    "--ignore-label": (1, "255"),
    "--save-num-images": (1, "--tensorboard shows images"),
}
_DEEPLAB = ["deeplabv2", "encoder=resnet101", "aspp_dilations=6,12"]
NETWORKS = {
    "deeplab": [*_DEEPLAB, "multi_level=yes"],
    "deeplabmulti": [*_DEEPLAB, "multi_level=yes"],
    "oracle": _DEEPLAB,
}
# of train_da.py: with these, nobody means the drawn images
OF_OTHER_DATA = {"data_dir_target", "data_list", "data_list_target", "input_size_target"}
OF_OTHER_DATA |= {"lambda_adv_target1", "lambda_adv_target2", "lambda_seg", "gan"}
SOURCES = ("data/GTA5",)
TARGETS = ("data/Cityscapes/data", "data/Cityscapes")


def translate(
    argv: Sequence[str], evaluates: bool = False, own: Collection[str] = ()
) -> tuple[list[str], bool]:
    """Return the words of a command line in our spelling, and whether it is AdaptSegNet's.

    Args:
        argv: without the script's name.
        evaluates: whether they stand behind evaluate.py.
        own: flags that the script has itself, whatever AdaptSegNet means by them.

    Raises:
        UserError: an ignored label other than 255, its VGG, or weights by their address.
    """
    words, dropped, theirs = [], [], False
    rest = [part for word in argv for part in _divided(word)]
    while rest:
        word = rest.pop(0)
        if word in NOTHING_TO_DO and word not in own:
            count, reason = NOTHING_TO_DO[word]
            values, rest = rest[:count], rest[count:]
            if word == "--ignore-label" and values != ["255"]:
                raise UserError(f"--ignore-label {' '.join(values)}: it is 255 here")
            dropped.append(f"{' '.join([word, *values])} ({reason})")
        elif word == "--model" and rest and rest[0].lower() in NETWORKS:
            words += [word, *NETWORKS[rest.pop(0).lower()]]
            theirs = True
        elif word == "--model" and rest and rest[0].lower() == "deeplabvgg":
            raise UserError(
                "--model DeeplabVGG: that network of AdaptSegNet is not here; its DeepLab is"
            )
        elif word == "--restore-from" and rest and "://" in rest[0]:
            raise UserError(f"--restore-from {rest[0]}: give a file; download it first")
        else:
            words.append(word)
    if dropped and processes.is_first():
        print(f"not needed here, and left aside: {', '.join(dropped)}", flush=True)
    if evaluates:
        return _evaluated(words, theirs), theirs
    return words, theirs or bool(dropped)


def _divided(word: str) -> list[str]:
    """Return FLAG=VALUE as two words, of flags that are looked at here."""
    flag, equals, value = word.partition("=")
    looked_at = flag in NOTHING_TO_DO or flag in ("--model", "--restore-from")
    return [flag, value] if equals and looked_at else [word]


def _evaluated(words: list[str], theirs: bool) -> list[str]:
    """Return what evaluate_cityscapes.py and compute_iou.py would do, as words of evaluate.py."""
    folders = words[:2]
    if len(folders) == 2 and not any(word.startswith("-") for word in folders):
        truth, predictions = folders  # compute_iou.py GT_DIR PRED_DIR
        root, split = Path(truth).parent.parent, Path(truth).name
        rest = words[4:] if words[2:3] == ["--devkit_dir"] else words[2:]
        named = ["--dataset", "cityscapes", "--data-dir", str(root), "--set", split]
        return ["--predictions", predictions, *named, *rest]
    if "--model" not in words and "--restore-from" in words[:-1]:
        name = Path(words[words.index("--restore-from") + 1]).name
        if name.startswith("GTA2Cityscapes_multi"):
            words, theirs = [*words, "--model", *NETWORKS["deeplabmulti"]], True
    if not theirs:
        return words
    return [*words, "--align-corners", *_unless(words, "--dataset", "cityscapes"),
            *_unless(words, "--data-dir", _first(TARGETS)),
            *_unless(words, "--input-size", "1024,512")]  # fmt: skip


def _unless(words: list[str], flag: str, value: str | None) -> list[str]:
    return [] if flag in words or value is None else [flag, value]


def trained(given: argparse.Namespace, theirs: bool) -> list[str]:
    """Return what train_gta2cityscapes_multi.py takes where a command line says nothing.

    Args:
        given: what it says, None for what it does not.
        theirs: whether it is AdaptSegNet's without doubt.

    Returns:
        words of train_da.py; none where the command line is one of ours.

    Raises:
        UserError: it is for other images than drawn ones, which are not where that script looks.
    """
    about_data = [dest for dest in OF_OTHER_DATA if getattr(given, dest) is not None]
    others = given.source is not None or given.target not in (None, "cityscapes")
    without_data = given.data_dir is None and about_data
    if given.recipe is not None or others or not (theirs or without_data):
        return []
    words = ["--recipe", "adaptsegnet-multi"]
    if given.restore_from is not None and given.weights is None:
        words += ["--weights", "none"]
    if given.data_dir is None:
        words += ["--data-dir", _there("--data-dir", SOURCES)]
    if given.data_dir_target is None:
        words += ["--data-dir-target", _there("--data-dir-target", TARGETS)]
    return words


def _first(folders: Sequence[str]) -> str | None:
    return next((folder for folder in folders if os.path.isdir(folder)), None)


def _there(flag: str, folders: Sequence[str]) -> str:
    found = _first(folders)
    if found is None:
        raise UserError(
            f"give {flag}, the folder of the images: there is no {' or '.join(folders)} here, "
            "where AdaptSegNet has them; --recipe streets is the demo on drawn images"
        )
    return found
