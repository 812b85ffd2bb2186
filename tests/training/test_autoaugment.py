"""AutoAugment: each operation beside Pillow's own, and what is drawn."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

import fakedata
import train_da
import train_seg
from training.augment import Augment, geometry, pillow, policies
from worlds import SMALL

WIDTH, HEIGHT = 61, 43  # odd, and no multiple of each other


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Return smooth colours with noise on one side, 20 to 230: neither flat nor full range."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(x / 9 + c) + np.cos(y / 7 - c) for c in range(3)]
    pixels = 125 + 40 * np.stack(waves, -1)
    pixels[:, 40:] += rng.normal(0, 12, (HEIGHT, WIDTH - 40, 3))
    return Image.fromarray(pixels.clip(20, 230).astype(np.uint8))


@pytest.fixture(scope="module")
def map_of_ids() -> Image.Image:
    """Return a label of 5x5 patches."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] // 5
    return Image.fromarray(((x + 3 * y) % 19).astype(np.uint8))


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


def moved(name: str, value: float, images: torch.Tensor, labels: torch.Tensor | None = None):
    """Return images and labels after one operation of geometry."""
    matrix = policies.matrix([(name, value)], (images.shape[3], images.shape[2]))
    theta = matrix[None, :2].repeat(len(images), 1, 1)
    grid = geometry.make_grid(theta, None, images.shape[2:], images.device)
    return geometry.sample(images, labels, grid)


def enhance(kind: str):
    return lambda image, change: getattr(ImageEnhance, kind)(image).enhance(1 + change)


PILLOW = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "solarize": lambda image, threshold: ImageOps.solarize(image, threshold),
    "posterize": lambda image, bits: ImageOps.posterize(image, round(bits)),
    "color": enhance("Color"),
    "contrast": enhance("Contrast"),
    "brightness": enhance("Brightness"),
    "sharpness": enhance("Sharpness"),
}
EXACT = {"equalize", "invert", "solarize", "posterize"}


def every_value(name: str) -> list[float]:
    return sorted(
        {policies.magnitude(name, level, sign) for level in range(10) for sign in (-1, 1)}
    )


@pytest.mark.parametrize("name", sorted(pillow.COLOUR))
def test_colours_equal_pillow(name: str, photo: Image.Image):
    changes = False
    for value in every_value(name):
        ours = pillow.COLOUR[name](to_tensor(photo), value)
        theirs = to_tensor(PILLOW[name](photo, value))
        if name in EXACT:
            assert torch.equal(ours, theirs), value
        else:  # Pillow cuts to whole levels, ours stay fractional
            assert (ours - theirs).abs().max() <= 1, value
        changes |= not torch.equal(theirs, to_tensor(photo))
    assert changes


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (8, 6), (7, 7, 9)),  # flat
        Image.fromarray(
            np.arange(3 * 48, dtype=np.uint8).reshape(6, 8, 3)
        ),  # fewer than 255 pixels
        Image.effect_noise((64, 64), 90).convert("RGB").filter(ImageFilter.BLUR),
    ],
)
@pytest.mark.parametrize("name", ["autocontrast", "equalize", "sharpness"])
def test_images_that_histograms_are_awkward_for(name: str, image: Image.Image):
    ours = pillow.COLOUR[name](to_tensor(image), 0.5)
    theirs = to_tensor(PILLOW[name](image, 0.5))
    assert (ours - theirs).abs().max() <= (0 if name == "equalize" else 1)


def matrix_of(name: str, value: float) -> tuple:
    """Return Pillow's affine data of an operation, as AutoAugment's code gives it."""
    return {
        "shear_x": (1, value, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, value, 1, 0),
        "translate_x": (1, 0, value * WIDTH, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, value * HEIGHT),
    }[name]


def moved_by_pillow(name: str, value: float, image: Image.Image, how, outside) -> Image.Image:
    if name == "rotate":
        return image.rotate(value, how, fillcolor=outside)
    data = matrix_of(name, value)
    return image.transform(image.size, Image.Transform.AFFINE, data, how, fillcolor=outside)


@pytest.mark.parametrize("name", sorted(policies.GEOMETRY))
def test_geometry_equals_pillow(name: str, photo: Image.Image, map_of_ids: Image.Image):
    labels = torch.from_numpy(np.array(map_of_ids))[None]
    how = Image.Resampling
    for value in every_value(name):
        images, ids = moved(name, value, to_tensor(photo), labels)
        # ties between two pixels are rounding's: then a hair more or less must give ours
        theirs = [
            np.array(moved_by_pillow(name, value * hair, map_of_ids, how.NEAREST, 255))
            for hair in (1, 1 - 3e-4, 1 + 3e-4, 1 - 3e-3, 1 + 3e-3)
        ]
        assert (ids[0].numpy() == theirs).any(0).all(), value
        assert (ids[0].numpy() == theirs[0]).mean() > 0.97, value
        theirs = to_tensor(moved_by_pillow(name, value, photo, how.BILINEAR, 0))
        inside = torch.nn.functional.max_pool2d((theirs == 0).all(1, True).float(), 3, 1, 1) == 0
        inside[..., [0, -1], :] = inside[..., :, [0, -1]] = False  # ours fade over the last pixel
        assert inside.float().mean() > 0.3
        assert (images - theirs).abs()[inside.expand_as(images)].max() < 1.001, value
        outside = (ids == 255)[0]
        assert (images[0, :, outside] <= 230 / 2 + 1).all()
        assert outside.any() == (abs(value) > 1e-9 and abs(value) * 43 > 0.6)


def test_several_maps_move_together(map_of_ids: Image.Image):
    label = torch.from_numpy(np.array(map_of_ids))[None]
    maps = torch.stack([label, 100 + label], 1)
    _, ids = moved("rotate", 20.0, torch.zeros(1, 3, HEIGHT, WIDTH), maps)
    inside = ids[:, 0] != 255
    assert torch.equal(ids[:, 1][inside], 100 + ids[:, 0][inside])
    assert (ids[:, 1][~inside] == 255).all()


def test_a_shear_worked_by_hand():
    """Slope 1.25: row y takes its pixels from 1.25 (y + 0.5) to the right."""
    label = torch.arange(8, dtype=torch.uint8).expand(1, 4, 8)
    _, ids = moved("shear_x", 1.25, torch.zeros(1, 3, 4, 8), label)
    # x + 0.5 + 0.625 of row 0 is in pixel x + 1, x + 0.5 + 1.875 of row 1 in x + 2
    shifts = (1, 2, 3, 4)  # 3.125 and 4.375 more
    rows = [[x + more if x + more < 8 else 255 for x in range(8)] for more in shifts]
    assert ids[0].tolist() == rows


def test_levels_worked_by_hand():
    assert policies.magnitude("rotate", 9, -1) == -30
    assert policies.magnitude("shear_x", 3, 1) == pytest.approx(0.1)
    assert policies.magnitude("color", 8, -1) == pytest.approx(-0.8)
    assert policies.magnitude("posterize", 9, -1) == 4
    assert policies.magnitude("solarize", 0, -1) == 256  # inverts nothing
    assert policies.magnitude("translate_y", 9, 1) * 331 == pytest.approx(150)
    assert policies.magnitude("equalize", 7, -1) == 0


def test_the_policy_names_operations_that_exist():
    known = policies.GEOMETRY.keys() | pillow.COLOUR.keys()
    assert len(known) == 14
    assert len(policies.POLICY) == 25
    for pair in policies.POLICY:
        for name, probability, level in pair:
            assert name in known
            assert 0 <= probability <= 1
            assert level in range(10)


def auto(images: torch.Tensor, labels: torch.Tensor):
    """Return a batch after the word alone."""
    return Augment(["auto"])({"image": images.to(torch.uint8), "label": labels}, "target")


def test_each_image_draws_its_own_and_labels_follow(photo: Image.Image, map_of_ids: Image.Image):
    n = 60
    labels = torch.from_numpy(np.array(map_of_ids)).expand(n, -1, -1)
    images = to_tensor(photo).expand(n, -1, -1, -1)
    torch.manual_seed(0)
    batch = auto(images, labels)
    changed, ids = batch.image, batch.label
    assert changed.shape == images.shape
    assert changed.dtype == torch.float32
    assert ids.dtype == torch.uint8
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert len({image.sum().item() for image in changed}) > 15
    same_place = (ids == labels).flatten(1).all(1).float().mean().item()
    # the chance that geometry happens: of 25 pairs, 6 rotate and one shears
    expected = (0.6 + 0.8 + 0.2 + 0.8 + 0.4 + 0.8 + 0.6) / 25
    assert 1 - same_place == pytest.approx(expected, abs=0.1)
    for i in range(n):  # black where the label says outside, bar the pixel that fades
        outside = ids[i] == 255
        if outside.any():
            deep = -torch.nn.functional.max_pool2d(-outside[None].float(), 3, 1, 1)[0] == 1
            assert changed[i, :, deep].unique(dim=1).shape[1] <= 1  # one colour


def test_draws_are_the_generators_and_fixed_in_number():
    torch.manual_seed(5)
    first, after = policies.auto(4), torch.rand(1)
    torch.manual_seed(5)
    assert policies.auto(4) == first
    torch.manual_seed(5)
    torch.rand(4, 5)
    assert torch.equal(after, torch.rand(1))


def test_rotation_turns_counter_clockwise():
    image = torch.zeros(1, 3, 41, 41)
    image[..., 20, 35] = 255  # to the right of the centre
    turned, _ = moved("rotate", 30.0, image)
    row, column = divmod(turned[0, 0].argmax().item(), 41)
    assert column - 20 == pytest.approx(15 * math.cos(math.pi / 6), abs=1)
    assert 20 - row == pytest.approx(15 * math.sin(math.pi / 6), abs=1)


@pytest.mark.parametrize(
    ("where", "expected"),
    [("source", ["source"]), ("target", ["target", "labelled"]), ("both", None), ("", None)],
)
def test_whose_images_are_changed(monkeypatch, tmp_path: Path, where: str, expected: list | None):
    """In a step the source comes first, then the target's images, then the labelled ones."""
    data = fakedata.make_camvid(tmp_path / "camvid", n=6, size=(64, 48))
    seen = []
    augment = Augment.__call__

    def record(self, batch: dict, side: str):
        domain = "source" if side == "source" else "labelled" if "label" in batch else "target"
        monkeypatch.setattr(
            policies, "recolour", lambda images, plan: seen.append(domain) or images
        )
        return augment(self, batch, side)

    monkeypatch.setattr(Augment, "__call__", record)
    words = [*SMALL, "--data-dir", str(data), "--snapshot-dir", str(tmp_path / "run")]
    words += "--method entropy target_supervised --target-labels 2 --num-workers 0".split()
    words += ["--num-steps", "1", "--adapt-from", "0", "--auto-augment", *filter(None, [where])]
    train_da.main(train_da.parse_args(words))
    assert seen == (expected or ["source", "target", "labelled"])


def test_the_supervised_script_augments_too(monkeypatch, tmp_path: Path):
    data = fakedata.make_camvid(tmp_path / "camvid", n=6, size=(64, 48))
    seen = []
    monkeypatch.setattr(policies, "recolour", lambda images, plan: seen.append(1) or images)
    words = "--recipe streets --dataset camvid --set day_train --val-set day_val --num-steps 1"
    words += f" --input-size 64,48 --data-dir {data} --num-workers 0"
    for calls, flags in enumerate(("", " --auto-augment")):
        args = train_seg.parse_args(f"{words} --snapshot-dir {tmp_path}/{calls}{flags}".split())
        train_seg.main(args)
        assert len(seen) == calls
