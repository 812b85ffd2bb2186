"""The words of --augment and --loss: what they mean, and what is refused in one line."""

import pytest
import torch

from engine.errors import UserError
from training import losses
from training.augment import Augment
from training.losses import PixelLoss, parse_loss


@pytest.mark.parametrize(
    ("words", "source", "target"),
    [
        ([], {"jitter": [0.0]}, {}),
        (["hflip", "crop=64,32"], {"mirror", "crop"}, {"mirror", "crop"}),
        (["source:jitter=0.4"], {"jitter": [0.4]}, {}),
        (["jitter=0.4"], {"jitter": [0.4]}, {"jitter": [0.4]}),
        (["target:auto", "scale"], {"scale": [(0.5, 1.5)]}, {"auto": [], "scale": [(0.5, 1.5)]}),
        (
            ["target:elastic alpha=9", "sigma=4", "scale"],
            {"scale": [(0.5, 1.5)]},
            {"elastic": [9, 4], "scale": [(0.5, 1.5)]},
        ),
        (["rotate=5", "target:rotate=0"], {"rotate": [(-5, 5)]}, {}),
    ],
)
def test_a_word_is_of_one_side_or_of_all(words: list[str], source, target):
    augment = Augment(words)
    for side, expected in (("source", source), ("target", target)):
        chosen = augment.chosen[side]
        if isinstance(expected, set):
            assert chosen["hflip"].p == 0.5
            assert chosen["crop"].values == {"size": (64, 32)}
        else:
            assert {key: [*chosen[key].values.values()] for key in expected} == expected
            assert chosen.keys() - {"jitter"} == expected.keys() - {"jitter"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("twirl", "no augmentation 'twirl'; there are: hflip, scale, crop, vflip"),
        ("hflip=2", "hflip: p=2: expected 0 to 1"),
        ("scale p=0.3", "scale has no option 'p'; it has: factors"),
        ("elastic=30 width=3", "elastic has no option 'width'; it has: alpha, sigma"),
        ("rotate=9,3", "rotate: degrees=9,3: expected LOW,HIGH or one number, -180 <= LOW"),
        ("crop", "crop needs a value: crop=SIZE"),
        ("crop=64", "crop: size=64: expected W,H in pixels"),
        ("scale=2,1", "scale: factors=2,1: expected LOW,HIGH"),
        ("jitter=x", "jitter: strength=x: expected float >= 0"),
        ("left:hflip", "before the colon stands one of source, target"),
    ],
)
def test_words_of_augment_that_do_not_exist(word: str, message: str):
    with pytest.raises(UserError) as error:
        Augment([word])
    assert str(error.value).startswith(f"--augment {word}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_side_that_the_script_does_not_have_is_refused():
    with pytest.raises(UserError, match="--augment target:auto: this script has no target"):
        Augment(["target:auto"], sides=("source",))
    assert "auto" in Augment(["auto"], sides=("source",)).chosen["source"]


def test_a_loss_is_a_sum_of_weighted_words():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    words = "0.8*ce 0.2*ohem threshold=0.7 kept=5".split()
    assert parse_loss(words) == [(0.8, "ce", {}), (0.2, "ohem", {"threshold": 0.7, "kept": 5})]
    expected = 0.8 * losses.cross_entropy(logits, label)
    expected = expected + 0.2 * losses.ohem(logits, label, threshold=0.7, kept=5)
    torch.testing.assert_close(PixelLoss(parse_loss(words))(logits, label.byte()), expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dise", "no loss 'dise'; there are: ce, ohem, focal"),
        ("much*ce", "the weight before * is a number of at least 0"),
        ("-1*ce", "the weight before * is a number of at least 0"),
        ("threshold=0.7 ohem", "an argument follows the loss that it belongs to"),
        ("ohem limit=0.7", "loss ohem has no option 'limit'; it has: threshold, kept"),
        ("ohem threshold=high", "loss ohem: threshold=high: expected float"),
        ("ohem threshold=2", "expected 0 to 1"),
        ("ce threshold=0.7", "loss ce has no option 'threshold'; it has: smoothing"),
    ],
)
def test_words_of_loss_that_do_not_exist(words: str, message: str):
    with pytest.raises(UserError) as error:
        parse_loss(words.split())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ ohem


def test_ohem_by_hand():
    """Probabilities of the true class 0.5, 0.8, 0.95, 0.99; three are harder than 0.96."""
    probs = torch.tensor([0.5, 0.8, 0.95, 0.99])
    logits = torch.stack([probs, 1 - probs]).log().view(1, 2, 1, 4)
    label = torch.zeros(1, 1, 4, dtype=torch.int64)
    cost = -probs.log()
    assert losses.ohem(logits, label, threshold=0.96, kept=1).item() == pytest.approx(
        cost[:3].mean().item(), rel=1e-5
    )
    # below 0.6 is one pixel, but two are kept: below the third one's probability
    assert losses.ohem(logits, label, threshold=0.6, kept=2).item() == pytest.approx(
        cost[:2].mean().item(), rel=1e-5
    )
    label[0, 0, 0] = 255  # what has no label is neither hard nor counted
    assert losses.ohem(logits, label, threshold=0.6, kept=2).item() == pytest.approx(
        cost[1:3].mean().item(), rel=1e-5
    )


def test_ohem_of_fewer_pixels_than_are_kept_and_of_none():
    logits = torch.zeros(1, 2, 1, 3, requires_grad=True)
    label = torch.tensor([[[0, 255, 255]]])
    loss = losses.ohem(logits, label)  # one pixel of probability 1/2, below 0.9
    assert loss.item() == pytest.approx(0.6931472)
    loss = losses.ohem(logits, torch.full((1, 1, 3), 255))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_ohem_takes_class_and_pixel_weights():
    logits, label = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    weighted = losses.ohem(logits, label, torch.tensor([3.0, 1.0]))
    assert weighted.item() == pytest.approx(2 * 0.6931472)  # the plain mean of 3 ln 2 and ln 2
    weighted = losses.ohem(logits, label, None, torch.tensor([[[1.0, 0.0]]]))
    assert weighted.item() == pytest.approx(0.5 * 0.6931472)
