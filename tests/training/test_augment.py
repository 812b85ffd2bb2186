"""Augmentations: what they move, what they keep, and that labels follow images."""

import pytest
import torch

from engine.errors import UserError
from training.augment import Augment, blur, colour, geometry


def pattern(n: int = 2, height: int = 12, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images whose red channel is 10 times their label."""
    label = (torch.arange(height)[:, None] + torch.arange(width)[None]) % 20
    label = label.expand(n, -1, -1).to(torch.uint8)
    return torch.stack([label * 10, label, label], 1), label


def test_warp_without_options_copies():
    images, labels = pattern()
    warped, moved = geometry.warp(images, labels)
    assert torch.equal(warped, images.float())
    assert torch.equal(moved, labels)


@pytest.mark.parametrize("mirror", [False, True])
def test_crops_copy_pixels_and_labels_follow(mirror: bool):
    images, labels = pattern()
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        warped, moved = geometry.warp(images, labels, crop_size=(7, 5), mirror=mirror / 2)
        assert moved.shape == (2, 5, 7)
        torch.testing.assert_close(warped[:, 0], moved.float() * 10, atol=1e-3, rtol=0)
        for crop in moved:
            windows = labels[0].unfold(0, 5, 1).unfold(1, 7, 1).reshape(-1, 5, 7)
            plain = (windows == crop).all((1, 2)).any().item()
            flipped = (windows == crop.flip(1)).all((1, 2)).any().item()
            assert plain or (mirror and flipped)
            seen.add((plain, flipped))
    assert len(seen) == (2 if mirror else 1)  # both orientations were drawn


def test_outside_of_a_shrunken_image_is_black_and_ignored():
    images, labels = pattern()
    torch.manual_seed(0)
    warped, moved = geometry.warp(images + 1, labels, scale=(0.5, 0.5))
    outside = moved == 255
    assert outside.float().mean() == pytest.approx(0.75, abs=0.08)
    # bilinear sampling fades over one pixel at the border
    assert (warped[:, 0][outside] <= 210 / 2).all()
    assert (warped[:, 0][~outside] > 0).all()


def test_a_crop_larger_than_the_image_is_an_error():
    with pytest.raises(UserError, match=r"--crop-size 20,5 is larger than the images 16,12"):
        geometry.warp(pattern()[0], crop_size=(20, 5))


def test_jitter_of_grey_keeps_it_grey_and_zero_strength_is_the_identity():
    torch.manual_seed(0)
    grey = (torch.rand(4, 1, 6, 6) * 200).expand(-1, 3, -1, -1)
    changed = colour.color_jitter(grey, 0.4, 0.1)
    torch.testing.assert_close(changed[:, 0], changed[:, 1], atol=0.3, rtol=0)
    assert (changed - grey).abs().amax((1, 2, 3)).min() > 0.5
    assert torch.equal(colour.color_jitter(grey, 0.0, 0.0), grey)


def test_jitter_stays_in_range_and_leaves_the_share_it_should():
    torch.manual_seed(0)
    images = torch.rand(200, 3, 4, 4) * 255
    changed = colour.color_jitter(images, 0.5, 0.1, probability=0.25)
    assert changed.min() >= 0
    assert changed.max() <= 255
    same = (changed == images).flatten(1).all(1).float().mean().item()
    assert same == pytest.approx(0.75, abs=0.1)


def test_blur_keeps_the_mean_and_lowers_the_contrast():
    torch.manual_seed(0)
    images = torch.rand(3, 3, 16, 16) * 255
    blurred = blur.gaussian_blur(images, probability=1.0, sigma=(1.0, 1.0))
    assert blurred.var() < images.var() / 3
    flat = torch.full((2, 3, 8, 8), 77.0)
    torch.testing.assert_close(blur.gaussian_blur(flat, 1.0), flat)
    assert torch.equal(blur.gaussian_blur(images, 0.0), images)


def test_blur_equals_a_kernel_worked_by_hand():
    image = torch.zeros(1, 3, 9, 9)
    image[:, :, 4, 4] = 1
    blurred = blur.gaussian_blur(image, 1.0, sigma=(0.5, 0.5))
    side = torch.exp(torch.tensor(-2.0))  # exp(-1 / (2 * 0.25)); the next is exp(-8)
    total = 1 + 2 * side + 2 * torch.exp(torch.tensor(-8.0))
    assert blurred[0, 0, 4, 4].item() == pytest.approx((1 / total**2).item(), rel=1e-5)
    assert blurred[0, 0, 4, 5].item() == pytest.approx((side / total**2).item(), rel=1e-5)


def test_half_a_turn_of_hue_makes_the_complement():
    """Half a turn mirrors the colour at grey of the same luminance: x -> 2 luma - x."""
    torch.manual_seed(0)
    images = 100 + torch.rand(64, 3, 2, 2) * 50
    luma = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    turned = colour.color_jitter(images, 0.0, 0.5)
    away = (turned - (2 * luma - images)).abs().amax((1, 2, 3))
    back = (turned - images).abs().amax((1, 2, 3))
    assert away.min() < 4  # some draw comes close to half a turn, some to none
    assert back.min() < 4
    torch.testing.assert_close(
        (turned * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True),
        luma,
        atol=0.1,
        rtol=0,
    )


def test_vflip_turns_images_and_labels_alike():
    images, labels = pattern()
    batch = {"image": images.to(torch.uint8), "label": labels}
    torch.manual_seed(0)
    turned = Augment(["vflip=1"])(batch, "target")
    assert torch.equal(turned.label, labels.flip(1))
    expected = images.to(torch.uint8).float().flip(2)
    torch.testing.assert_close(turned.image, expected, atol=1e-3, rtol=0)
    plain = Augment(["vflip=0"])(batch, "target")
    assert torch.equal(plain.label, labels)
    both = Augment(["vflip=1", "crop=7,5"])(batch, "target")
    torch.testing.assert_close(both.image[:, 0], both.label.float() * 10, atol=1e-3, rtol=0)
    seen = {Augment(["vflip"])(batch, "target").label[0].equal(labels[0]) for _ in range(20)}
    assert seen == {True, False}
