"""Draw one street: a textured canyon of house fronts in perspective, with things standing in it.

Everything is integer arithmetic on the raw bits of PCG64, so a key gives the same bytes on every
machine and with every version of every library.
"""

import numpy as np

from datasets.streets.canvas import CLASS_OF, HEIGHT, WIDTH, Canvas, Dice
from datasets.streets.scenery import paint_fronts, paint_ground, paint_sky
from datasets.streets.things import place

# Strength per class of the fine grain and of the large blotches on its surfaces, in grey levels.
GRAIN = np.array([7, 6, 5, 20, 1, 3, 4, 4, 2], np.int16)
BLOTCH = np.array([12, 10, 8, 14, 0, 0, 0, 0, 0], np.int16)
SKY = CLASS_OF["sky_top"]
FOG = np.array([186, 178, 184], np.int16)
DARKENING = np.array([80, 70, 36], np.int16)  # out of 128; blue stays, as it does at dusk
CLOUD_CELL = 16  # pixels between the random values that clouds and blotches are stretched from


def draw(key: tuple[int, ...], gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the street of a key.

    Args:
        key: non-negative integers, the seed of everything in the picture.
        gap: 0 (clear day) to 128 (foggy dusk); moves colours, fog, light, blur and noise together.
    Returns:
        image uint8 [96,160,3] RGB and label uint8 [96,160] of class ids, in the order of COLOURS.
    """
    canvas = Canvas(Dice(*key), gap)
    dice = canvas.dice
    # From the camera, in cm: both edges of the road, then both house fronts.
    road = (-dice.roll(430, 680), dice.roll(260, 420))
    fronts = (road[0] - dice.roll(180, 380), road[1] + dice.roll(180, 380))
    paint_sky(canvas)
    paint_ground(canvas, road, fronts)
    paint_fronts(canvas, fronts)
    for depth, draw_at in sorted(place(canvas, road, fronts), key=lambda t: t[0], reverse=True):
        draw_at(depth)
    image, label, depth = halve(canvas)
    image = texture(image, label, dice, gap)
    return weather(image, depth, dice, gap), label


def halve(canvas: Canvas) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return colours int16 [H,W,3], averaged for smooth edges, labels uint8 and depths [H,W]."""
    red, green, blue = np.array(canvas.colours, np.int32).T
    # Ten bits a channel: four colours add up without a carry, and one lookup serves all three.
    packed = (red | green << 10 | blue << 20)[canvas.material]
    total = packed[::2, ::2] + packed[::2, 1::2] + packed[1::2, ::2] + packed[1::2, 1::2]
    total += 2 | 2 << 10 | 2 << 20  # rounds
    image = np.stack([total >> 2 & 255, total >> 12 & 255, total >> 22 & 255], -1)
    label = np.array(canvas.classes, np.uint8)[canvas.material[1::2, ::2]]
    return image.astype(np.int16), label, canvas.depth[1::2, ::2]


def texture(image: np.ndarray, label: np.ndarray, dice: Dice, gap: int) -> np.ndarray:
    """Return the image with grain and blotches on its surfaces and clouds in its sky."""
    blotches = smooth_noise(dice)
    grain = dice.octets(HEIGHT, WIDTH) - 128
    image = image + ((grain * GRAIN[label] + blotches * BLOTCH[label]) >> 7)[..., None]
    white = np.clip(blotches, 0, 85) * (label == SKY)
    return toward(image, 250 - gap // 2, white[..., None])


def weather(image: np.ndarray, depth: np.ndarray, dice: Dice, gap: int) -> np.ndarray:
    """Return uint8 pixels: fog by depth, dusk, a soft lens and a noisy sensor, all by the gap."""
    fog = (gap * depth // (depth + 4500)).astype(np.int16)
    image = toward(image, FOG, fog[..., None])
    image = toward(image, 0, DARKENING * gap // 128)
    soft = image.copy()
    soft[1:-1] = (image[:-2] + 2 * image[1:-1] + image[2:]) >> 2
    soft[:, 1:-1] = (soft[:, :-2] + 2 * soft[:, 1:-1] + soft[:, 2:]) >> 2
    image = toward(image, soft, gap)
    noise = dice.octets(HEIGHT, WIDTH, 3) + dice.octets(HEIGHT, WIDTH, 3) - 255
    image = image + (noise * (3 + gap * 6 // 128) >> 7)
    return np.clip(image, 0, 255).astype(np.uint8)


def toward(image: np.ndarray, other: np.ndarray | int, weight: np.ndarray | int) -> np.ndarray:
    """Return the pixels weight/128 of the way to the others; int16 holds 255 * 128."""
    return image + ((other - image) * weight >> 7)


def smooth_noise(dice: Dice) -> np.ndarray:
    """Return int16 [H,W] in -128..127: a coarse random grid, stretched linearly."""
    grid = dice.octets(HEIGHT // CLOUD_CELL + 1, WIDTH // CLOUD_CELL + 1) - 128
    return stretch(stretch(grid).T).T


def stretch(values: np.ndarray) -> np.ndarray:
    """Return the rows with CLOUD_CELL - 1 rows between each two of them."""
    weight = np.arange(CLOUD_CELL, dtype=np.int16)[:, None]
    between = values[:-1, None] * (CLOUD_CELL - weight) + values[1:, None] * weight
    return between.reshape(-1, values.shape[1]) // CLOUD_CELL
