"""CycleGAN: the authors' networks and files, the losses by hand, exact resuming, translation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fakedata
from engine.errors import UserError
from models.cyclegan import Discriminator, Generator, initialise, read_generator
from tools import cyclegan, translate
from training.translation import Game, Pool, fools, judging, rate_at
from worlds import assert_equal

SMALL = """--input-size 48,32 --blocks 1 --channels 4 --num-steps 4 --num-workers 0 --pool 1
    --augment hflip --print-every 1""".split()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return folders day, six bright images, and dusk, five dark ones."""
    rng = np.random.default_rng(0)
    for name, count, divisor in (("day", 6, 1), ("dusk", 5, 3)):
        for i in range(count):
            image = fakedata.picture(rng, fakedata.blocks(rng, (50, 35), range(4))) // divisor
            fakedata.save(tmp_path / name / f"{i}.png", image)
    return tmp_path


def train(root: Path, folder: str, *more: str) -> Path:
    words = [str(root / "day"), "--like", str(root / "dusk"), "--snapshot-dir", str(root / folder)]
    cyclegan.main(cyclegan.parse_args([*words, *SMALL, *more]))
    return root / folder


def filled(network: torch.nn.Module) -> torch.nn.Module:
    """Return a network whose weights are 0.2 sin(0.37 k), k counted on over all of them."""
    first = 0
    with torch.no_grad():
        for weight in network.parameters():
            k = torch.arange(first, first + weight.numel(), dtype=torch.float64)
            weight.copy_((torch.sin(k * 0.37) * 0.2).view_as(weight))
            first += weight.numel()
    return network.eval()


def test_networks_are_the_authors():
    """Outputs of their code (ResnetGenerator, NLayerDiscriminator), run once with these weights."""
    k = torch.arange(3 * 32 * 40, dtype=torch.float64)
    images = torch.sin(k * 0.11).float().view(1, 3, 32, 40)
    with torch.no_grad():
        done, verdict = filled(Generator(2, 4))(images), filled(Discriminator(4))(images)
    assert done[0, :, 5, 7].tolist() == pytest.approx([-0.368316, 0.168161, -0.602768], abs=1e-4)
    assert done[0, :, 31, 39].tolist() == pytest.approx([-0.056845, -0.544872, 0.446855], abs=1e-4)
    assert done.mean().item() == pytest.approx(-0.0445438, abs=1e-5)
    assert verdict.shape == (1, 1, 2, 3)
    assert verdict[0, 0, 0].tolist() == pytest.approx([-1.498938, 0.943036, -0.389304], abs=1e-4)
    # as their code prints: 11.378 M and 2.765 M parameters
    assert sum(weight.numel() for weight in Generator().parameters()) == 11378179
    assert sum(weight.numel() for weight in Discriminator().parameters()) == 2764737


def test_a_file_of_the_authors_loads(tmp_path: Path):
    generator = filled(Generator(6, 4))
    state = generator.state_dict()
    assert list(state)[:6:2] == ["model.1.weight", "model.4.weight", "model.7.weight"]
    assert "model.15.conv_block.5.bias" in state
    assert list(state)[-6::2] == ["model.16.weight", "model.19.weight", "model.23.weight"]
    state |= {"model.2.running_mean": torch.zeros(4), "model.2.running_var": torch.ones(4)}
    state["model.2.num_batches_tracked"] = torch.tensor(3)  # of files before PyTorch 0.4
    torch.save(state, tmp_path / "latest_net_G_A.pth")
    loaded = read_generator(tmp_path / "latest_net_G_A.pth")
    assert_equal(loaded.state_dict(), generator.state_dict())
    parallel = {f"module.{key}": value for key, value in generator.state_dict().items()}
    torch.save(parallel, tmp_path / "parallel.pth")
    assert_equal(read_generator(tmp_path / "parallel.pth").state_dict(), generator.state_dict())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model.1.weight": torch.zeros(4, 3, 7, 7)}, "is no generator of 0 blocks: .*Missing key"),
        ({"layer.weight": torch.zeros(2)}, "is no generator of CycleGAN"),
        ([1, 2], "is no generator of CycleGAN"),
        ({"state": {}, "options": {}}, "is for resuming"),
        ({"arch": {"name": "cyclegan", "blocks": 10**9, "width": 4}}, "arch: its blocks"),
        ({"arch": {"name": "cyclegan", "blocks": 1, "width": 4}, "model": 3}, "no generator of 1"),
    ],
)
def test_other_files_are_refused(content, message: str, tmp_path: Path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"x.pth.*{message}"):
        read_generator(tmp_path / "x.pth")


def test_losses_by_hand():
    """Verdicts of 0.5 and 0 on real, 1 on translated: ((0.25 + 1) / 2 + 1) / 2 for the judge."""
    verdict = torch.tensor([0.5, 0.0])
    assert fools(verdict).item() == 0.625
    judge = {"real": verdict, "fake": torch.ones(2)}.get
    assert judging(judge, "real", "fake").item() == 0.8125


class Brighter(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + 0.5


def test_terms_of_generators_that_do_nothing():
    """Cycle and identity are 0, and what is judged are the images themselves."""
    game = Game(1, 4)
    game.generators.ab = game.generators.ba = torch.nn.Identity()
    a, b = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    terms, fake_b, fake_a = game.played(a, b, 10.0, 0.5)
    assert torch.equal(fake_b, a)
    assert torch.equal(fake_a, b)
    assert terms["cycle"].item() == terms["identity"].item() == 0
    wanted = fools(game.judge_b(a)) + fools(game.judge_a(b))
    assert terms["judged"].item() == pytest.approx(wanted.item())
    game.generators.ab = game.generators.ba = Brighter()  # there and back: 1 away
    terms, _, _ = game.played(a, b, 10.0, 0.5)
    assert terms["cycle"].item() == pytest.approx(10 * (1 + 1), rel=1e-5)
    assert terms["identity"].item() == pytest.approx(5 * (0.5 + 0.5), rel=1e-5)
    assert set(game.played(a, b, 10.0, 0)[0]) == {"judged", "cycle"}


def test_weights_begin_as_the_authors():
    torch.manual_seed(0)
    generator = Generator(2, 16)
    initialise(generator)
    weight = generator.model[10].conv_block[1].weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not generator.model[10].conv_block[1].bias.any()


def test_the_pool_shows_older_images():
    torch.manual_seed(0)
    pool, images = Pool(2), torch.arange(60.0).view(60, 1, 1, 1)
    shown = torch.cat([pool.swapped(images[i : i + 1]) for i in range(60)]).flatten()
    assert shown[:2].tolist() == [0, 1]  # while it fills
    older = shown != images.flatten()
    assert 15 < older.sum() < 45  # one in two
    assert (shown[older] < images.flatten()[older]).all()
    assert len(pool.images) == 2
    other = Pool(2)
    other.load_state_dict(pool.state_dict())
    assert all(map(torch.equal, other.images, pool.images))
    assert Pool(0).swapped(images[:1]).item() == 0


def test_the_rate_falls_in_the_second_half():
    rates = [rate_at(step, 8, 1.0) for step in range(8)]
    assert rates == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_two_steps_and_two_more_equal_four(root: Path):
    whole, parts = train(root, "whole"), train(root, "parts", "--num-steps-stop", "2")
    assert not (parts / "cyclegan_4.pth").exists()
    train(root, "parts")
    for name in ("last.pth", "cyclegan_4.pth"):
        one, two = (torch.load(folder / name, weights_only=True) for folder in (whole, parts))
        for key in ("state", "model"):
            assert_equal(one.get(key, {}), two.get(key, {}))
    with pytest.raises(UserError, match=r"other options \(--blocks 1 -> 2\)"):
        train(root, "parts", "--blocks", "2")
    (root / "dusk/4.png").unlink()
    with pytest.raises(UserError, match="other contents of the target images"):
        train(root, "parts")


def test_what_it_learns_translates_a_folder(root: Path):
    run = train(root, "run", "--num-steps", "2")
    for direction in ("ab", "ba"):
        words = [str(root / "day"), "--method", "cyclegan", "--save", str(root / direction)]
        words += ["--restore-from", str(run / "cyclegan_2.pth"), "--direction", direction]
        translate.main(translate.parse_args([*words, "--device", "cpu"]))
    ab, ba = (np.asarray(Image.open(root / d / "images_translated/0.png")) for d in ("ab", "ba"))
    assert ab.shape == ba.shape == (35, 50, 3)  # no multiple of four
    assert not np.array_equal(ab, ba)
    generator = read_generator(run / "cyclegan_2.pth", "ba")
    image = torch.from_numpy(np.asarray(Image.open(root / "day/0.png")).copy()).permute(2, 0, 1)
    padded = torch.nn.functional.pad(image[None].float() / 127.5 - 1, (0, 2, 0, 1), "reflect")
    with torch.no_grad():
        wanted = ((generator(padded)[0, :, :35, :50] + 1) * 127.5).round().clamp(0, 255)
    assert np.array_equal(ba, wanted.permute(1, 2, 0).byte().numpy())


def test_mistakes(root: Path):
    with pytest.raises(UserError, match="--input-size 50,32: multiples of 4"):
        train(root, "x", "--input-size", "50,32")
    words = [str(root / "day"), "--method", "cyclegan", "--save", str(root / "s")]
    with pytest.raises(UserError, match="--method cyclegan needs --restore-from"):
        translate.parse_args(words)
    with pytest.raises(UserError, match="--like goes with --method lab, fda, histogram"):
        translate.parse_args([*words, "--like", "x"])
    with pytest.raises(UserError, match="--direction goes with --method cyclegan"):
        translate.parse_args([words[0], "--method", "lab", "--save", "x", "--direction", "ba"])
    for path in (root / "dusk").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"dusk: nothing here matches"):
        train(root, "x")
