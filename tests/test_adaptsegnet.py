"""The command lines of AdaptSegNet's README, run under our scripts' names, otherwise unchanged."""

import json
import os
from pathlib import Path

import pytest
import torch

import evaluate
import fakedata
import train_da
import train_seg
from engine.errors import UserError
from published import published_weights

MULTI = {"multi_level": True, "aspp_dilations": (6, 12), "encoder": "resnet101"}
# its README's three training commands: flags -> what they must come to
TRAINING = {
    "--snapshot-dir ./snapshots/GTA2Cityscapes_single_lsgan --lambda-seg 0.0 "
    "--lambda-adv-target1 0.0 --lambda-adv-target2 0.01 --gan LS": (0.0, 0.0, 0.01, "LS"),
    "--snapshot-dir ./snapshots/GTA2Cityscapes_multi --lambda-seg 0.1 "
    "--lambda-adv-target1 0.0002 --lambda-adv-target2 0.001": (0.1, 0.0002, 0.001, "Vanilla"),
    "--snapshot-dir ./snapshots/GTA2Cityscapes_single --lambda-seg 0.0 "
    "--lambda-adv-target1 0.0 --lambda-adv-target2 0.001": (0.0, 0.0, 0.001, "Vanilla"),
    # a vanilla run, on features alone, with most of what its parser has
    "--snapshot-dir s --model DeepLab --target cityscapes --batch-size 1 --iter-size 1 --gpu 0 "
    "--num-workers 4 --data-dir ./data/GTA5 --data-list ./dataset/gta5_list/train.txt "
    "--ignore-label 255 --input-size 1280,720 --data-dir-target ./data/Cityscapes/data "
    "--data-list-target ./dataset/cityscapes_list/train.txt --input-size-target 1024,512 "
    "--is-training --learning-rate 2.5e-4 --learning-rate-D 1e-4 --lambda-seg 0.1 "
    "--lambda-adv-target1 0.0002 --lambda-adv-target2 0 --momentum 0.9 --not-restore-last "
    "--num-classes=19 --num-steps 250000 --num-steps-stop 150000 --power 0.9 --random-mirror "
    "--random-scale --random-seed 1234 --restore-from model/init.pth --save-num-images 2 "
    "--save-pred-every 5000 --weight-decay 0.0005 --set train "
    "--gan Vanilla": (0.1, 0.0002, 0.0, "Vanilla"),
}


@pytest.fixture
def there(tmp_path: Path, monkeypatch) -> Path:
    """Go to a folder with GTA5, Cityscapes and the lists where AdaptSegNet has them."""
    gta5 = fakedata.make_gta5(tmp_path / "data/GTA5")
    made = fakedata.make_cityscapes(tmp_path / "data/Cityscapes/data", n=1, splits=("train", "val"))
    for name, folder in (("gta5", gta5 / "images"), ("cityscapes", made / "leftImg8bit/train")):
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
        listed = tmp_path / f"dataset/{name}_list/train.txt"
        listed.parent.mkdir(parents=True)
        listed.write_text("\n".join(names) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", TRAINING, ids=range(4))
def test_its_training_commands_are_understood(line: str, there: Path, capsys):
    args = train_da.parse_args(line.split())
    weights = (args.lambda_seg, args.lambda_adv_target1, args.lambda_adv_target2, args.gan)
    assert weights == TRAINING[line]
    assert args.recipe == "adaptsegnet-multi"
    assert {key: args.model[key] for key in MULTI} == MULTI
    assert (args.source, args.target, args.method) == (["gta5"], "cityscapes", ["adversarial"])
    assert Path(args.data_dir[0]) == Path("data/GTA5")
    assert Path(args.data_dir_target) == Path("data/Cityscapes/data")
    assert (args.num_steps, args.num_steps_stop, args.align_corners) == (250_000, 150_000, True)
    said = capsys.readouterr().out
    assert said.count("not needed here, and left aside: ") == ("--gpu" in line)
    if "--gpu" in line:
        assert (
            "--gpu 0 (--device cuda:N chooses one), --ignore-label 255 (255), --is-training" in said
        )
        assert args.weights == "none"  # the file that it starts from has all


def test_its_whole_command_line_trains(there: Path, capsys):
    (there / "model").mkdir()
    torch.save(published_weights(19, True, (3, 4, 23, 3)), there / "model/init.pth")
    line = list(TRAINING)[-1].replace("1280,720", "64,48").replace("1024,512", "64,32")
    words = [*line.split(), "--num-steps-stop", "1", "--num-workers", "0"]
    train_da.main(train_da.parse_args(words))
    said = capsys.readouterr().out
    assert "source images: gta5 train: 3 images" in said
    assert "target images: cityscapes train: 1 image;" in said
    assert (there / "s/gta5_1.pth").exists()
    assert json.loads((there / "s/result.json").read_text())["adapted"]["last"]["step"] == 1


@pytest.mark.parametrize("model", ["", "--model DeeplabMulti --gpu 0 --ignore-label 255"])
def test_its_evaluation_runs_as_it_stands(model: str, there: Path, capsys):
    (there / "model").mkdir()
    name = "GTA2Cityscapes_multi-ed35151c.pth" if not model else "mine.pth"
    torch.save(published_weights(19, True, (3, 4, 23, 3)), there / "model" / name)
    words = ["--restore-from", f"./model/{name}", *model.split(), "--save", "result/cityscapes"]
    evaluate.main(evaluate.parse_args(words))
    said = capsys.readouterr().out
    assert "input 1024x512" in said
    assert "align_corners yes" in said
    assert "===> mIoU: " in said
    # compute_iou.py GT_DIR PRED_DIR, over what was saved
    scored = said.split("===>road")[1].split("mIoU: ")[1].split()[0]
    words = ["./data/Cityscapes/data/gtFine/val", "result/cityscapes"]
    evaluate.main(evaluate.parse_args(words))
    assert f"===> mIoU: {scored}" in capsys.readouterr().out


ADVERSARIAL = ["--lambda-adv-target2 0.01", "--gan LS", "--data-dir-target data", "--lambda-seg 0"]
ADVERSARIAL += ["--data-list list.txt", "--gpu 0", "--model DeepLab", "--input-size-target 64,32"]


@pytest.mark.parametrize("flags", ADVERSARIAL)
def test_the_drawn_demo_is_not_trained_in_place_of_data(flags: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--snapshot-dir", "s", *flags.split()]
    with pytest.raises(UserError, match=r"give --data-dir, .*there is no data/GTA5 here"):
        train_da.parse_args(words)
    args = train_da.parse_args([*words, "--recipe", "streets"])  # where it is asked for
    assert args.source == ["streets"]
    assert os.listdir(tmp_path) == []


def test_ours_stay_ours(capsys):
    words = ["--snapshot-dir", "s", "--data-dir", "data/GTA5", "--lambda-adv-target2", "0.01"]
    assert train_da.parse_args(words).num_steps_stop is None
    words = ["--snapshot-dir", "s", "--source", "folder", "--target", "folder", "--data-dir", "a"]
    assert train_da.parse_args([*words, "--data-dir-target", "b"]).recipe is None
    assert "left aside" not in capsys.readouterr().out
    assert train_seg.parse_args(["--snapshot-dir", "s", "--gpu", "1"]).recipe is None
    assert capsys.readouterr().out.startswith("not needed here, and left aside: --gpu 1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--ignore-label 0", "--ignore-label 0: it is 255 here"),
        ("--model DeeplabVGG", "that network of AdaptSegNet is not here"),
        ("--restore-from http://host/a.pth", "give a file; download it first"),
    ],
)
def test_what_it_has_and_we_have_not(words: str, message: str):
    with pytest.raises(UserError, match=message):
        train_da.parse_args(["--snapshot-dir", "s", *words.split()])
