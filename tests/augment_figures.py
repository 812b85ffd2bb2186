"""Write augment_figures.json: what others' augmentations make of one picture at fixed parameters.

    python tests/augment_figures.py     # with albumentations 1.4.24

test_augmentations.py holds ours to it, without those libraries. Of every picture a pixel in
twenty-five is kept.
"""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

HEIGHT, WIDTH = 48, 64
KEPT = (slice(2, None, 5), slice(2, None, 5))


def picture() -> np.ndarray:
    """Return smooth colours, uint8 [H,W,3], with a flat patch, a dark and a noisy one."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(x / 9 + c) + np.cos(y / 7 - c) + x / 60 for c in range(3)]
    pixels = 110 + 45 * np.stack(waves, -1)
    pixels[20:40, 20:30] += np.random.default_rng(0).normal(0, 8, (20, 10, 3))
    pixels[:10, :12] = (90, 60, 30)
    pixels[30:, 50:] *= 0.4
    return pixels.clip(0, 255).round().astype(np.uint8)


def figures() -> dict:
    """Return words -> (tolerance, uint8 or float [H,W,3])."""
    import albumentations as A
    import cv2

    image = picture()

    def albumentations(transform):
        return transform(image=image)["image"]

    def pillow(changed):
        return np.array(changed)

    pil, zero = Image.fromarray(image), {"border_mode": cv2.BORDER_CONSTANT, "p": 1}
    luma = np.round(image @ [0.299, 0.587, 0.114]).astype(np.uint8)
    equalised = cv2.createCLAHE(3, (4, 4)).apply(luma)
    saved = io.BytesIO()
    pil.save(saved, "jpeg", quality=40, subsampling=0)
    return {
        "hflip=1": (0.01, albumentations(A.HorizontalFlip(p=1))),
        "vflip=1": (0.01, albumentations(A.VerticalFlip(p=1))),
        "rotate=20,20": (2, albumentations(A.Rotate(limit=(20, 20), **zero))),
        "shift_scale_rotate shift=0.125,0.125 zoom=0.2,0.2 degrees=20,20": (
            2,
            albumentations(A.ShiftScaleRotate((0.125, 0.125), (0.2, 0.2), (20, 20), **zero)),
        ),
        "affine zoom=1.2,1.2 shift=0.125,0.125 degrees=20,20 shear=0": (
            2,
            albumentations(
                A.Affine(scale=1.2, translate_percent=0.125, rotate=20, shear=0, mode=0, p=1)
            ),
        ),
        "affine zoom=1,1 shift=0 degrees=0 shear=10,10": (
            2,
            albumentations(A.Affine(shear={"x": (10, 10), "y": (10, 10)}, mode=0, p=1)),
        ),
        "optical_distortion=0.3,0.3": (
            2,
            albumentations(A.OpticalDistortion((0.3, 0.3), **zero)),
        ),
        "brightness=0.3,0.3": (1, pillow(ImageEnhance.Brightness(pil).enhance(1.3))),
        "contrast=0.4,0.4": (1.5, pillow(ImageEnhance.Contrast(pil).enhance(1.4))),
        "saturation=0.5,0.5": (1, pillow(ImageEnhance.Color(pil).enhance(1.5))),
        "brightness_contrast brightness_by=0.1,0.1 contrast_by=-0.2,-0.2": (
            1,
            albumentations(A.RandomBrightnessContrast((0.1, 0.1), (-0.2, -0.2), p=1)),
        ),
        "rgb_shift=-12,-12": (
            1,
            albumentations(A.RGBShift((-12,) * 2, (-12,) * 2, (-12,) * 2, p=1)),
        ),
        "grey": (1, albumentations(A.ToGray(p=1))),
        "gamma=1.2,1.2": (1, albumentations(A.RandomGamma((120, 120), p=1))),
        "hue_saturation_value hue_by=15,15 saturation_by=-20,-20 value_by=10,10": (
            4,
            albumentations(A.HueSaturationValue((15, 15), (-20, -20), (10, 10), p=1)),
        ),
        # of colours theirs equalises LAB's L; of grey both are OpenCV's
        "grey clahe=3,3 tiles=4": (1.1, np.repeat(equalised[..., None], 3, 2)),
        "equalize": (0, pillow(ImageOps.equalize(pil))),
        "posterize=3": (0, albumentations(A.Posterize(3, p=1))),
        "solarize=100": (0, albumentations(A.Solarize((100 / 255, 100 / 255), p=1))),
        "sharpen=0.7,0.7": (1, pillow(ImageEnhance.Sharpness(pil).enhance(1.7))),
        "gaussian_blur=2,2": (1.5, albumentations(A.GaussianBlur((13, 13), (2, 2), p=1))),
        "median_blur": (0, albumentations(A.MedianBlur((3, 3), p=1))),
        "defocus=3,3": (4, albumentations(A.Defocus((3, 3), (0.1, 0.1), p=1))),
        "jpeg=40": (6, np.array(Image.open(saved))),
    }


def main() -> None:
    """Write the file beside this one."""
    table = {
        words: {"within": within, "kept": np.asarray(result)[KEPT].tolist()}
        for words, (within, result) in figures().items()
    }
    path = Path(__file__).with_suffix(".json")
    rows = [f" {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in table.items()]
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
