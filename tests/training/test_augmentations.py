"""Every row of --augment: beside its namesake, at strength 0, seeded, and labels that follow."""

import json

import pytest
import torch

from augment_figures import KEPT, picture
from training.augment import AUGMENTATIONS, Augment, distortion, moves
from training.augment.geometry import Way, make_grid
from worlds import ROOT

FIGURES = json.loads((ROOT / "tests/augment_figures.json").read_text())
NEEDED = {"crop": "crop=48,32", "copy_paste": "copy_paste=3,4,5"}
GEOMETRY = [name for name, row in AUGMENTATIONS.items() if row.stage in ("warp", "move", "bend")]
# the values of a batch's labels; 8x8 patches
IDS = torch.arange(19, dtype=torch.uint8)


def batch_of(n: int = 3, height: int = 40, width: int = 64) -> dict[str, torch.Tensor]:
    """Return patches of ids and images that are 10 times them, with noise in the last channel."""
    draws = torch.Generator().manual_seed(7)
    ids = IDS[torch.randint(0, 19, (n, -(-height // 8), -(-width // 8)), generator=draws)]
    label = ids.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :height, :width]
    noise = torch.randint(0, 256, label.shape, dtype=torch.uint8, generator=draws)
    return {"image": torch.stack([label * 10, 250 - label * 10, noise], 1), "label": label}


def references() -> torch.Tensor:
    """Return two images of another size."""
    draws = torch.Generator().manual_seed(8)
    return torch.randint(60, 200, (2, 3, 30, 50), dtype=torch.uint8, generator=draws)


def changed(word: str, batch: dict, seed: int = 0):
    """Return a batch after a word, of a seed."""
    torch.manual_seed(seed)
    return Augment([word], read_references=references)(batch, "target")


def always(name: str) -> str:
    """Return the word with which an augmentation changes every image."""
    return NEEDED.get(name, name) + ("" if AUGMENTATIONS[name].p is None else " p=1")


@pytest.mark.parametrize("words", FIGURES)
def test_values_are_the_namesakes(words: str):
    torch.manual_seed(0)
    image = torch.from_numpy(picture()).permute(2, 0, 1)[None]
    every = [f"{word} p=1" for word in words.replace("grey ", "grey|").split("|")]
    ours = Augment(every)({"image": image}, "target").image[0].permute(1, 2, 0)[KEPT]
    theirs = torch.tensor(FIGURES[words]["kept"])
    assert (ours - theirs).abs().max() <= FIGURES[words]["within"]
    assert (theirs - torch.from_numpy(picture())[KEPT]).abs().max() > 3  # it does something


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_ids_are_never_new_and_levels_stay_in_range(name: str):
    batch = batch_of()
    for seed in range(3):
        out = changed(always(name), batch, seed)
        assert out.label.dtype == torch.uint8
        assert out.image.dtype == torch.float32
        assert out.image.shape[2:] == out.label.shape[1:]
        assert {*out.label.unique().tolist()} <= {*IDS.tolist(), 255}
        assert out.image.min() >= -1e-3
        assert out.image.max() <= 255 + 1e-3
    assert not torch.equal(out.image, batch["image"].float()[..., : out.image.shape[2], :48])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_seed_gives_the_same_and_leaves_the_batch_alone(name: str):
    batch = batch_of()
    before = {key: value.clone() for key, value in batch.items()}
    first, second = (changed(always(name), batch, 5) for _ in range(2))
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.label, second.label)
    assert all(torch.equal(batch[key], before[key]) for key in batch)


@pytest.mark.parametrize("name", [n for n, row in AUGMENTATIONS.items() if row.p is not None])
def test_nothing_is_the_identity_to_the_bit(name: str):
    """At strength 0, at probability 0, and for the images that are left out."""
    row, batch = AUGMENTATIONS[name], batch_of(8)
    plain = batch["image"].float()
    still = " ".join(
        f"{key}={','.join(map(str, v)) if isinstance(v, tuple) else v}"
        for key, v in row.still.items()
    )
    for words in ([f"{NEEDED.get(name, name)} p=0"], [f"{name} {still} p=1"] if still else []):
        if words:
            out = changed(words[0], batch)
            assert torch.equal(out.image, plain)
            assert torch.equal(out.label, batch["label"])
    if name == "hflip":  # one grid for all, as crops have it
        return
    out = changed(f"{NEEDED.get(name, name)} p=0.4", batch, 3)
    same = (out.image == plain).flatten(1).all(1)
    assert same.any()
    assert torch.equal(out.label[same], batch["label"][same])


@pytest.mark.parametrize("name", GEOMETRY)
def test_labels_follow_images(name: str):
    """Inside a patch images are ten times the label; outside they are 0 and ignored."""
    batch = batch_of(3, 64, 96)
    batch = {k: v.repeat_interleave(3, -1).repeat_interleave(3, -2) for k, v in batch.items()}
    for seed in range(4):
        # a gentle field: others fold, and enlarge a pixel's rim without end
        gentle = always(name).replace("elastic", "elastic=300 sigma=20")
        out = changed(gentle, batch, seed)
        label = out.label.float()[:, None]
        low = -torch.nn.functional.max_pool2d(-label, 9, 1)
        alike = (low == torch.nn.functional.max_pool2d(label, 9, 1))[:, 0]
        label, image = label[:, 0, 4:-4, 4:-4], out.image[..., 4:-4, 4:-4]
        inside = alike & (label != 255)
        assert inside.float().mean() > 0.02
        assert (image[:, 0] - 10 * label)[inside].abs().max() < 0.05
        assert not image[:, 1][alike & (label == 255)].any()


def test_all_geometry_is_one_resampling(monkeypatch):
    calls = []
    sample = torch.nn.functional.grid_sample

    def record(maps, grid, **how):
        calls.append(how["mode"])
        return sample(maps, grid, **how)

    monkeypatch.setattr(torch.nn.functional, "grid_sample", record)
    words = [always(name) for name in GEOMETRY if name != "scale"]
    out = Augment([*words, "auto"])(batch_of(), "target")
    assert calls == ["bilinear", "nearest"]
    assert out.label.shape == (3, 32, 48)


def test_geometry_in_one_grid_is_geometry_in_turn():
    """Smooth images: turned and then seen through a lens, in one resampling and in two."""
    image = torch.from_numpy(picture()).permute(2, 0, 1)[None]
    lens, turn = "optical_distortion=0.9,0.9 p=1", "rotate=15,15 p=1"
    once = Augment([lens, turn])({"image": image}, "target").image
    first = Augment([turn])({"image": image}, "target").image
    twice = Augment([lens])({"image": first}, "target").image
    centre = (..., slice(8, 40), slice(10, 54))
    assert (once - twice)[centre].abs().mean() < 0.6
    assert (once - first)[centre].abs().mean() > 1


# ------------------------------------------------------------------ by hand


def test_quarters_and_transpose_on_a_square():
    batch = batch_of(16, 40, 40)
    turned = changed("rotate90 p=1", batch).label
    quarters = [torch.rot90(batch["label"], k, (1, 2)) for k in range(4)]
    which = torch.stack([(turned == one).flatten(1).all(1) for one in quarters])
    assert which.any(0).all()
    assert which.any(1).all()
    out = changed("transpose p=1", batch)
    assert torch.equal(out.label, batch["label"].transpose(1, 2))


def test_a_homography_takes_corners_to_corners():
    corners = torch.tensor([[[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]])
    wanted = torch.tensor([[[-0.9, -0.8], [0.7, -1.0], [0.8, 0.9], [-1.0, 0.6]]])
    matrix = moves.homography(corners, wanted)
    points = torch.cat([corners, torch.ones(1, 4, 1)], 2) @ matrix.transpose(1, 2)
    torch.testing.assert_close(points[..., :2] / points[..., 2:], wanted)
    # a grid whose corner pixel lies at -1 + 1/w: nearly the corner itself
    grid = make_grid(torch.eye(3)[None, :2], Way(matrix, torch.ones(1) > 0), (800, 800), "cpu")
    torch.testing.assert_close(grid[0, 0, 0], wanted[0, 0], atol=3e-3, rtol=0)
    torch.testing.assert_close(grid[0, -1, 0], wanted[0, 3], atol=3e-3, rtol=0)


def test_columns_of_a_distorted_grid_are_as_wide_as_drawn():
    """Two columns, shares 0.5 and 1.5 of two: the first half of the frame shows a quarter."""
    x = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).view(1, 1, 5)
    moved = distortion.stretch(x, torch.tensor([[0.5, 1.5]]))
    assert moved.flatten().tolist() == [-1, -0.75, -0.5, 0.25, 1]


def test_an_elastic_fields_deviation_is_that_of_blurred_noise():
    """alpha 100, sigma 5: 100 / sqrt 3 / (2 sqrt pi 5) = 3.257 pixels; albumentations' has 3.25."""
    torch.manual_seed(0)
    x, y = torch.zeros(1, 1, 256), torch.zeros(1, 256, 1)
    dx, dy = distortion.elastic(x, y, torch.ones(4), (256, 256), alpha=100.0, sigma=5.0)
    for field in (dx, dy):
        pixels = field * 128
        assert pixels.std().item() == pytest.approx(3.257, rel=0.05)
        assert abs(pixels.mean().item()) < 0.2
        # neighbours sigma pixels apart correlate by exp(-1/4)
        alike = (pixels[..., 5:] * pixels[..., :-5]).mean() / pixels.square().mean()
        assert alike.item() == pytest.approx(0.7788, abs=0.04)
