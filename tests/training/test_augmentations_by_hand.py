"""Augmentations without a namesake's figures: what each does, worked by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import fakedata
import train_da
from engine.errors import UserError
from training.augment import (
    AUGMENTATIONS,
    Augment,
    Word,
    blur,
    colour,
    distortion,
    find_way,
    moves,
    noise,
    occlusion,
    pasting,
    policies,
    style,
    weather,
)
from training.batch import Batch
from worlds import SMALL


def flat(level: float, n: int = 1, height: int = 40, width: int = 60) -> torch.Tensor:
    """Return images of one grey level."""
    return torch.full((n, 3, height, width), level)


# ------------------------------------------------------------------ geometry and colour


def test_a_resized_crop_shows_a_window_of_its_area():
    """A quarter of the area in the frame's own ratio: half of each side, within the frame."""
    torch.manual_seed(0)
    how = {"area": (0.25, 0.25), "ratio": (1.0, 1.0)}
    matrix = moves.random_resized_crop(50, (60, 40), **how)
    torch.testing.assert_close(matrix[:, 0, 0], torch.full((50,), 0.5))
    torch.testing.assert_close(matrix[:, 1, 1], torch.full((50,), 0.5))
    assert (matrix[:, :2, 2].abs() <= 0.5).all()
    assert matrix[:, :2, 2].std(0).min() > 0.2


def test_hue_turns_in_yiq():
    """Half a turn: x -> 2 luma - x. Grey has no colour to turn."""
    mean = torch.tensor([[120.0, 90.0, 60.0]])
    matrix, added = colour.hue(mean, turn=(0.5, 0.5))
    luma = (mean * torch.tensor(colour.LUMA)).sum()
    torch.testing.assert_close(matrix @ mean[0], (2 * luma - mean), atol=0.05, rtol=0)
    torch.testing.assert_close(matrix.sum(2), torch.ones(1, 3), atol=1e-3, rtol=0)
    assert not added.any()


def test_channels_are_permuted():
    torch.manual_seed(0)
    matrix, _ = colour.channel_shuffle(torch.zeros(60, 3))
    assert ((matrix == 0) | (matrix == 1)).all()
    assert (matrix.sum(1) == 1).all()
    assert (matrix.sum(2) == 1).all()
    assert len({tuple(m.flatten().tolist()) for m in matrix}) == 6


def test_linear_colours_together_are_cut_once():
    """100 times 1.5 times 2 less 100: 200; brightness alone would have cut 300 to 255."""
    words = ["brightness=0.5,0.5", "brightness_contrast brightness_by=0 contrast_by=1,1"]
    words += ["rgb_shift=-100,-100"]
    batch = {"image": flat(100.0, 2).to(torch.uint8)}
    out = Augment([f"{word} p=1" for word in words])(batch, "target").image
    torch.testing.assert_close(out, flat(200.0, 2))


def test_linear_colours_come_in_their_order():
    """Grey first: 0.299 of red, whatever channel it would have been put into after."""
    red = flat(0.0, 6).to(torch.uint8)
    red[:, 0] = 200
    torch.manual_seed(0)
    out = Augment(["saturation=-1,-1 p=1", "channel_shuffle p=1"])({"image": red}, "target").image
    torch.testing.assert_close(out, flat(0.299 * 200, 6))


def test_what_comes_last_is_looked_through_first():
    words = {
        "optical_distortion": {"strength": (0.1, 0.1)},
        "elastic": {"alpha": 9.0, "sigma": 4.0},
    }
    words["grid_distortion"] = {"strength": (0.1, 0.1), "steps": 2}
    stages = {"bend": [(AUGMENTATIONS[name], Word(1.0, how)) for name, how in words.items()]}
    way = find_way(stages, [], 2, (8, 8))
    order = [bend.func for bend, _ in way.bends]
    assert order == [distortion.grid_distortion, distortion.elastic, distortion.optical_distortion]
    assert way.moved.all()


# ------------------------------------------------------------------ blur and noise


def test_motion_runs_along_its_direction():
    """Three pixels of way: half a pixel's worth at each end, of four of the whole."""
    image = flat(0.0, 1, 9, 9)
    image[..., 4, 4] = 80
    level = blur.motion(image, length=(3.0, 3.0), degrees=(0.0, 0.0))
    assert level[0, 0, 4, 4] == level[0, 0].max()
    assert level[0, 0, 4].sum().item() == pytest.approx(80, rel=1e-5)
    assert level[0, 0, 4, 2].item() == 0
    assert level[0, 0, 4, 3].item() == pytest.approx(level[0, 0, 4, 5].item(), rel=1e-5)
    upright = blur.motion(image, length=(3.0, 3.0), degrees=(90.0, 90.0))
    torch.testing.assert_close(upright, level.transpose(2, 3), atol=1e-4, rtol=0)
    # counter-clockwise, y pointing down: 45 degrees goes up to the right
    slanting = blur.motion(image, length=(5.0, 5.0), degrees=(45.0, 45.0))[0, 0]
    assert slanting[3, 5] > 5
    assert slanting[5, 5] == 0


def test_kernels_by_taps_are_the_convolution(monkeypatch):
    torch.manual_seed(0)
    images, kernels = torch.rand(2, 3, 9, 11) * 255, torch.rand(2, 3, 5)
    by_taps = blur.with_kernels(images, kernels)
    monkeypatch.setattr(blur, "FEW", 0)
    torch.testing.assert_close(by_taps, blur.with_kernels(images, kernels), atol=1e-2, rtol=0)
    assert blur.with_kernels(flat(7.0, 2, 2, 2), kernels).shape == (2, 3, 2, 2)


def test_noises_have_the_deviation_that_is_said():
    torch.manual_seed(0)
    grey = flat(127.5, 4, 64, 64)
    noisy = noise.gaussian_noise(grey, deviation=(10.0, 10.0))
    assert (noisy - grey).std().item() == pytest.approx(10, rel=0.05)
    times = noise.multiplicative_noise(grey, factor=(0.8, 1.2)) / grey
    assert times.min() >= 0.8
    assert times.max() <= 1.2
    assert times.std().item() == pytest.approx(0.4 / math.sqrt(12), rel=0.05)
    luma = torch.tensor(colour.LUMA).view(3, 1, 1)
    light = noise.iso_noise(grey, light=(10.0, 10.0), colour=(0.0, 0.0)) - grey
    torch.testing.assert_close(light[:, 0], light[:, 1])
    assert light.std().item() == pytest.approx(10, rel=0.05)
    dark = noise.iso_noise(flat(31.875, 4, 64, 64), light=(10.0, 10.0), colour=(0.0, 0.0))
    assert dark.std().item() == pytest.approx(5, rel=0.05)  # a quarter of the light
    tint = noise.iso_noise(grey, light=(0.0, 0.0), colour=(6.0, 6.0)) - grey
    assert (tint * luma).sum(1).abs().max() < 1e-3
    assert tint.std() > 3


# ------------------------------------------------------------------ occlusion


def test_coarse_dropout_cuts_as_many_rectangles_as_said():
    torch.manual_seed(0)
    label = torch.full((20, 2, 50, 80), 3, dtype=torch.uint8)
    how = {"holes": (1.0, 1.0), "height": (0.2, 0.2), "width": (0.25, 0.25)}
    images, maps = occlusion.coarse_dropout(flat(9.0, 20, 50, 80), label, **how)
    assert ((images == 0).sum((1, 2, 3)) == 3 * 10 * 20).all()
    assert torch.equal(maps, label)
    images, maps = occlusion.coarse_dropout(images + 1, label, **how, label="ignore")
    assert torch.equal(maps[:, 0] == 255, images[:, 0] == 0)
    assert (maps[:, 1] == 3).all()  # a confidence stays


def test_grid_dropout_hides_a_square_of_every_cell():
    torch.manual_seed(0)
    how = {"ratio": (0.5, 0.5), "cell": (8.0, 8.0)}
    images, _ = occlusion.grid_dropout(flat(9.0, 3, 40, 64), None, **how)
    assert ((images == 0).sum((1, 2, 3)) == 3 * 40 * 64 / 4).all()
    assert ((images[0, 0] == 0).unfold(0, 8, 8).unfold(1, 8, 8).sum((2, 3)) == 16).all()


def test_masks_are_whole_blocks():
    torch.manual_seed(0)
    how = {"ratio": (0.7, 0.7), "block": (8.0, 8.0)}
    images, _ = occlusion.mask_blocks(flat(9.0, 8, 64, 64), None, **how)
    blocks = (images[:, 0] == 0).unfold(1, 8, 8).unfold(2, 8, 8).float().mean((3, 4))
    assert ((blocks == 0) | (blocks == 1)).all()
    assert blocks.mean().item() == pytest.approx(0.7, abs=0.06)


# ------------------------------------------------------------------ weather


def test_fog_covers_by_its_strength():
    """Between half the strength and all of it, of 230."""
    out = weather.fog(flat(30.0, 4), strength=(0.6, 0.6), patch=(0.25, 0.25))
    assert out.min() >= 30 + 0.3 * 200 - 0.01
    assert out.max() <= 30 + 0.6 * 200 + 0.01
    assert out.std() > 3


def test_rain_darkens_and_draws_streaks():
    torch.manual_seed(0)
    how = {"density": (0.002, 0.002), "length": 10, "slant": (0.0, 0.0)}
    out = weather.rain(flat(100.0, 2, 80, 80), strength=(0.5, 0.5), **how)
    assert out.min().item() == pytest.approx(90)  # less half of a fifth
    assert out.max().item() == pytest.approx(90 + 0.5 * 110, abs=0.01)
    streaks = (out[0, 0] > 91).sum(0)
    assert streaks[streaks > 0].min() >= 5  # upright and cut at most by the border
    assert (streaks == 0).any()


def test_snow_bleaches_dark_pixels_alone():
    images = torch.cat([flat(60.0), flat(120.0)], 3)
    out = weather.snow(images, strength=(1.0, 1.0), point=(0.4, 0.4))  # of 102
    assert (out[..., :60] == 120).all()
    assert (out[..., 60:] == 120).all()


def test_a_flare_is_white_at_its_centre_and_fades():
    torch.manual_seed(3)
    out = weather.sun_flare(flat(50.0), strength=(1.0, 1.0), radius=(0.5, 0.5), ghosts=0)[0, 0]
    top = divmod(out.argmax().item(), 60)
    assert out.max() > 230
    assert top[0] <= 20
    far = [(abs(r - top[0]) ** 2 + abs(c - top[1]) ** 2) ** 0.5 for r in (0, 39) for c in (0, 59)]
    corner = far.index(max(far))
    assert out[(0, 39)[corner // 2], (0, 59)[corner % 2]] == 50
    ghosts = weather.sun_flare(flat(50.0), strength=(1.0, 1.0), radius=(0.5, 0.5), ghosts=4)
    assert ghosts.min() >= 50


def test_a_shadow_takes_its_share_below_its_top():
    torch.manual_seed(1)
    out = weather.shadow(flat(80.0, 8), strength=(0.5, 0.5), top=(0.5, 0.5))
    assert {*out.unique().tolist()} == {40.0, 80.0}
    assert (out[:, :, :20] == 80).all()


# ------------------------------------------------------------------ pasting and style


def numbered(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images whose levels are ten times their label, which halves differ in."""
    label = torch.arange(2 * n, dtype=torch.uint8).view(n, 1, 1, 2).repeat(1, 1, 8, 6)
    label = label.sort(3).values
    return label.expand(-1, 3, -1, -1).float() * 10, label


def test_cutmix_pastes_half_of_the_next_image():
    torch.manual_seed(0)
    images, label = numbered()
    mixed, ids = pasting.cutmix(images, label, torch.tensor([True, True, False]))
    torch.testing.assert_close(mixed[:, 0], ids[:, 0].float() * 10)
    pasted = (ids[:2] // 2 != label[:2] // 2).float().mean((1, 2, 3))
    assert (pasted - 0.5).abs().max() < 0.15  # sides are whole pixels
    assert torch.equal(ids[2], label[2])


def test_classmix_pastes_one_of_two_classes():
    torch.manual_seed(0)
    images, label = numbered()
    mixed, ids = pasting.classmix(images, label, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(mixed[:, 0], ids[:, 0].float() * 10)
    for i in range(3):
        new = {*ids[i].unique().tolist()} - {*label[i].unique().tolist()}
        assert len(new) == 1
        assert new < {*label[(i + 1) % 3].unique().tolist()}


def test_copy_paste_pastes_what_was_named_where_it_was_moved():
    images, label = numbered()
    on, still = torch.ones(3, dtype=torch.bool), {"zoom": (1.0, 1.0), "degrees": (0.0, 0.0)}
    mixed, ids = pasting.copy_paste(images, label, on, classes=(3,), shift=(0.0, 0.0), **still)
    assert (ids[0, 0, :, :6] == 0).all()  # 3 is the right half of the second image
    assert (ids[0, 0, :, 6:] == 3).all()
    assert torch.equal(ids[1:], label[1:])
    torch.testing.assert_close(mixed[:, 0], ids[:, 0].float() * 10)
    _, ids = pasting.copy_paste(images, label, on, classes=(3,), shift=(-0.5, -0.5), **still)
    assert (ids[0, 0, :4, :6] == 3).all()  # half a width to the left, half a height up
    assert (ids[0, 0, 4:, :6] == 0).all()
    assert (ids[0, 0, :, 6:] == 1).all()


def test_pasting_says_what_it_needs():
    images, label = numbered(1)
    with pytest.raises(UserError, match="cutmix pastes within a batch: give --batch-size 2"):
        pasting.cutmix(images, label, torch.ones(1, dtype=torch.bool))
    with pytest.raises(UserError, match="classmix pastes by labels, and these images have none"):
        pasting.classmix(*numbered()[:1], None, torch.ones(3, dtype=torch.bool))
    with pytest.raises(UserError, match="fda: there is no target to take the style from"):
        Augment(["fda"], sides=("source",))


def test_fda_equals_the_whole_transform():
    """As FDA's code: fft2, the centre of the amplitudes replaced, phases kept, back."""
    torch.manual_seed(0)
    images, other = (torch.rand(1, 3, 40, 61) * 80 + 80 for _ in range(2))
    ours = style.fda(images, other, beta=(0.1, 0.1))
    spectra = [np.fft.fft2(x[0].double().numpy()) for x in (images, other)]
    amplitude, theirs = (np.fft.fftshift(np.abs(x), axes=(-2, -1)) for x in spectra)
    b = math.floor(40 * 0.1)
    rows, columns = slice(20 - b, 20 + b + 1), slice(30 - b, 30 + b + 1)
    amplitude[:, rows, columns] = theirs[:, rows, columns]
    amplitude = np.fft.ifftshift(amplitude, axes=(-2, -1))
    back = np.fft.ifft2(amplitude * np.exp(1j * np.angle(spectra[0])))
    expected = torch.from_numpy(np.real(back)).float().clamp(0, 255)
    torch.testing.assert_close(ours[0], expected, atol=0.02, rtol=0)
    assert (ours - images).abs().mean() > 1


def test_lab_is_cies():
    """White, mid grey and pure red, by the tables of sRGB under D65 (as OpenCV has them)."""
    colours = torch.tensor([[255.0] * 3, [119.0] * 3, [255.0, 0, 0]]).T.view(1, 3, 1, 3)
    lab = style.to_lab(colours)[0, :, 0].T
    expected = torch.tensor([[100.0, 0, 0], [50.03, 0, 0], [53.24, 80.09, 67.20]])
    torch.testing.assert_close(lab, expected, atol=0.05, rtol=0)
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 8) * 255
    torch.testing.assert_close(style.from_lab(style.to_lab(images)), images, atol=0.2, rtol=0)


def test_lab_statistics_become_the_targets():
    torch.manual_seed(0)
    images, target = torch.rand(2, 3, 32, 32) * 60 + 90, torch.rand(1, 3, 20, 20) * 30 + 60
    ours, theirs = style.to_lab(style.lab(images, target)), style.to_lab(target)
    torch.testing.assert_close(
        ours.mean((2, 3)), theirs.mean((2, 3)).repeat(2, 1), atol=0.1, rtol=0
    )
    torch.testing.assert_close(ours.std((2, 3)), theirs.std((2, 3)).repeat(2, 1), atol=0.1, rtol=0)


# ------------------------------------------------------------------ policies and sides


def test_randaugment_and_trivialaugment_draw_torchvisions_magnitudes():
    """Level 9 of 30: 9 degrees, shear 0.09, factors 1 +- 0.27; posterize 8 - 1.2 bits."""
    torch.manual_seed(0)
    plan = policies.rand(400, level=9, operations=2)
    assert {len(one) for one in plan} == {2}
    every = [operation for one in plan for operation in one]
    found = {
        name: {round(abs(v), 6) for n, v in every if n == name} for name in policies.OPERATIONS
    }
    assert len(found) == 14
    assert found["rotate"] == {9.0}
    assert found["shear_x"] == {0.09}
    assert found["color"] == {0.27}
    assert found["posterize"] == {7.0}
    assert found["solarize"] == {178.5}
    assert {v for n, v in every if n == "rotate"} == {-9.0, 9.0}
    plan = policies.trivial(2000)
    assert {len(one) for one in plan} == {1}
    turns = {v for ((name, v),) in plan if name == "rotate"}
    assert max(turns) > 110
    assert min(turns) < -110
    assert all(abs(v) / 4.5 == pytest.approx(round(abs(v) / 4.5)) for v in turns)
    assert {v for ((name, v),) in plan if name == "posterize"} == {2.0, 3, 4, 5, 6, 7, 8}


def test_mixed_images_move_with_labels_and_weights():
    image = torch.arange(12.0).view(1, 1, 3, 4).expand(2, 3, 3, 4)
    label = torch.arange(12, dtype=torch.uint8).view(1, 3, 4).repeat(2, 1, 1)
    weight = torch.linspace(0, 0.99, 12).view(1, 3, 4).repeat(2, 1, 1)
    batch = Batch(image, label, weight)
    assert Augment(["vflip=1"]).mixed(batch) is batch  # without a side, of source and target
    out = Augment(["mixed:vflip=1", "mixed:shift_scale_rotate shift=0.5,0.5 zoom=0 degrees=0 p=1"])
    out = out.mixed(batch)
    # upside down, then two columns to the right and 1.5 rows down
    assert (out.label[:, 0] == 255).all()
    assert (out.label[:, :, :2] == 255).all()
    assert out.label[0, 2, 2:].tolist() in ([8, 9], [4, 5])
    inside = out.label != 255
    moved = weight.flatten(1)[:, :12].gather(1, out.label.long().flatten(1).clamp(max=11))
    torch.testing.assert_close(out.weight[inside], moved.view_as(weight)[inside], atol=1e-4, rtol=0)
    assert (out.weight[~inside].abs() < 1e-4).all()
    assert out.label.dtype == torch.uint8


def test_a_jpeg_of_quality_100_changes_levels_by_rounding_alone():
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 3, 6, 8) * 255, (41, 50), mode="bilinear"
    )
    assert (noise.jpeg(smooth.round(), quality=(100.0, 100.0)) - smooth).abs().max() <= 4
    steps = noise.quantisation(torch.tensor([50.0, 25.0, 100.0]))
    assert steps[0, 0, :3].tolist() == [16, 11, 10]  # the standard's own
    assert steps[1, 0, 0] == 32
    assert (steps[2] == 1).all()


WORDS = """source:fda source:lab=0.5 elastic p=1 hflip crop=48,32 target:fog=0.5 coarse_dropout
    label=ignore source:copy_paste=0,1 p=1 mixed:rotate=20 p=1 mixed:gaussian_noise""".split()


def test_a_run_with_all_sides_goes_on_as_if_it_had_not_stopped(tmp_path: Path):
    """Styles of the target, pasting, and mixed images: 2 steps, and 1 and then 2."""
    data = fakedata.make_camvid(tmp_path / "camvid", n=6, size=(64, 48))
    words = [*SMALL, "--data-dir", str(data), "--method", "mix", "--num-workers", "0"]
    words += ["--num-steps", "2", "--augment", *WORDS]
    for folder, more in (("whole", []), ("parts", ["--num-steps-stop", "1"]), ("parts", [])):
        to = ["--snapshot-dir", str(tmp_path / folder)]
        train_da.main(train_da.parse_args([*words, *to, *more]))
    whole, parts = (
        torch.load(tmp_path / folder / "camvid_2.pth", weights_only=True)["model"]
        for folder in ("whole", "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    with pytest.raises(UserError, match="mixed:gaussian_noise goes with --method mix or fixmatch"):
        train_da.parse_args([*SMALL, "--snapshot-dir", "x", "--augment", *WORDS])
