"""Augmentation of a batch beside albumentations, image by image: bytes to what a network is given.

Both begin with images and labels in bytes, as a loader has them, and end with a batch of floats and
its labels. Every operation is at the same strength, and happens to every image.
"""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.errors import UserError
from tools.benchmark.timing import alternate, compare
from training.augment import Augment

CHAIN = {
    "geometry": "hflip shift_scale_rotate perspective optical_distortion elastic grid_distortion",
    "colour": "brightness_contrast rgb_shift saturation",
    "blur": "gaussian_blur",
}
# words -> transform of albumentations, and its arguments
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "hflip": ("HorizontalFlip", {}),
    "vflip": ("VerticalFlip", {}),
    "transpose": ("Transpose", {}),
    "rotate": ("Rotate", {"limit": 30}),
    "shift_scale_rotate": ("ShiftScaleRotate", {}),
    "affine": ("Affine", {"scale": (0.9, 1.1), "translate_percent": (-0.1, 0.1), "rotate": 15,
                          "shear": (-10, 10)}),
    "perspective": ("Perspective", {}),
    "random_resized_crop": ("RandomResizedCrop", {"size": "size"}),
    "optical_distortion": ("OpticalDistortion", {}),
    "elastic": ("ElasticTransform", {"alpha": 120, "sigma": 6}),
    "grid_distortion": ("GridDistortion", {}),
    "brightness_contrast": ("RandomBrightnessContrast", {}),
    "rgb_shift": ("RGBShift", {}),
    "channel_shuffle": ("ChannelShuffle", {}),
    "grey": ("ToGray", {}),
    "saturation": ("ColorJitter", {"brightness": 0, "contrast": 0, "saturation": 0.3, "hue": 0}),
    "jitter=0.2": ("ColorJitter", {"hue": 0.05}),
    "gamma": ("RandomGamma", {}),
    "hue_saturation_value": ("HueSaturationValue", {}),
    "clahe": ("CLAHE", {}),
    "equalize": ("Equalize", {}),
    "posterize": ("Posterize", {"num_bits": 4}),
    "solarize": ("Solarize", {"threshold_range": (0.5, 0.5)}),
    "sharpen": ("Sharpen", {}),
    "gaussian_blur": ("GaussianBlur", {"blur_limit": 0, "sigma_limit": (0.5, 3)}),
    "motion_blur": ("MotionBlur", {"blur_limit": (3, 7)}),
    "median_blur": ("MedianBlur", {"blur_limit": 3}),
    "defocus": ("Defocus", {"radius": (3, 8)}),
    "rain": ("RandomRain", {}),
    "snow": ("RandomSnow", {}),
    "fog": ("RandomFog", {}),
    "sun_flare": ("RandomSunFlare", {}),
    "shadow": ("RandomShadow", {}),
    "gaussian_noise": ("GaussNoise", {"std_range": (0.02, 0.08)}),
    "iso_noise": ("ISONoise", {}),
    "multiplicative_noise": ("MultiplicativeNoise", {"elementwise": True, "per_channel": True}),
    "jpeg": ("ImageCompression", {"quality_range": (30, 90)}),
    "coarse_dropout": ("CoarseDropout", {"num_holes_range": (1, 8), "hole_height_range": (25, 100),
                                         "hole_width_range": (50, 200)}),
    "grid_dropout": ("GridDropout", {}),
}  # fmt: skip


def run(
    device: torch.device, *, size: tuple[int, int], batch_size: int, repeats: int
) -> Iterator[tuple[dict, str]]:
    """Yield a row and a remark: the chain of CHAIN, its parts, and every operation by itself.

    Args:
        device: of ours; theirs runs on the CPU.
        size: W, H of the images in pixels.
        batch_size: images.
        repeats: rounds.

    Raises:
        UserError: albumentations is not installed.
    """
    try:
        import albumentations
        import cv2
    except ImportError:
        raise UserError("the plain way is albumentations: pip install albumentations") from None
    cv2.setNumThreads(torch.get_num_threads())
    images, labels = scenes(size, batch_size)
    batch = {
        "image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(device),
        "label": torch.from_numpy(np.stack(labels)).to(device),
    }
    whole = " ".join(CHAIN.values())
    subjects = {f"chain: {', '.join(CHAIN)}": whole}
    subjects |= {f"chain: {name} alone": part for name, part in CHAIN.items()}
    subjects |= {name: name for name in PAIRS}
    for name, words in subjects.items():
        ours = augment_batch(words.split(), batch)
        plain = augment_each(albumentations, words.split(), images, labels)
        row = compare(*alternate([ours, plain], device, repeats))
        yield {"name": name, **row}, ""


def scenes(size: tuple[int, int], count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return smooth images with some noise, uint8 [H,W,3], and labels of patches, uint8 [H,W]."""
    rng, (width, height) = np.random.default_rng(0), size
    y, x = np.mgrid[:height, :width]
    images, labels = [], []
    for _ in range(count):
        phase, slope = rng.uniform(0, 6, 3), rng.uniform(20, 90, 3)
        waves = 128 + 70 * np.sin(x[..., None] / slope + phase) * np.cos(y[..., None] / slope)
        noisy = waves + rng.normal(0, 8, waves.shape)
        images.append(noisy.clip(0, 255).astype(np.uint8))
        labels.append(((x // 64 + y // 32) % 19).astype(np.uint8))
    return images, labels


def augment_batch(words: list[str], batch: dict[str, Tensor]) -> Callable:
    """Return ours: a batch at once."""
    augment = Augment([w if w.startswith("crop") else f"{w} p=1" for w in words], ("target",))
    return lambda: augment(batch, "target")


def augment_each(
    albumentations: ModuleType, words: list[str], images: list[np.ndarray], labels: list[np.ndarray]
) -> Callable:
    """Return the plain way: images one by one, then stacked."""
    made = []
    for word in words:
        name, how = PAIRS[word]
        how = {k: images[0].shape[:2] if v == "size" else v for k, v in how.items()}
        made.append(getattr(albumentations, name)(p=1, **how))
    change = albumentations.Compose(made)

    def apply() -> tuple[Tensor, Tensor]:
        pairs = [change(image=i, mask=m) for i, m in zip(images, labels, strict=True)]
        pixels = torch.from_numpy(np.stack([pair["image"] for pair in pairs]))
        masks = torch.from_numpy(np.stack([pair["mask"] for pair in pairs]))
        return pixels.permute(0, 3, 1, 2).float(), masks

    return apply
