"""What stands in a street: trees, posts with lamps and signs, people, cars."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from datasets.streets import sprites
from datasets.streets.canvas import EYE, FOCAL, HEIGHT, WIDTH, Canvas
from datasets.streets.palettes import dimmed

CAR_HALF_WIDTH = 90


def place(
    canvas: Canvas, road: tuple[int, int], fronts: tuple[int, int]
) -> Iterator[tuple[int, Callable[[int], None]]]:
    """Yield (depth, function that draws at a depth) of everything in the street.

    Args:
        canvas: where the functions draw.
        road: x of its left and right edge, cm from the camera.
        fronts: x of the house fronts on both sides, cm.
    """
    dice = canvas.dice
    leaves = canvas.add_all("trunk", "leaf_dark", "leaf", "leaf_light")
    kind = dice.roll(0, len(sprites.TREES))
    for kerb, front, outward in zip(road, fronts, (-1, 1), strict=True):
        if dice.chance(70):
            for depth in range(dice.roll(1000, 2200), 5200, dice.roll(700, 1600)):
                x, height = kerb + outward * dice.roll(70, 130), dice.roll(380, 700)
                if dice.chance(75):
                    depth += dice.roll(0, 300)
                    yield depth, partial(draw_tree, canvas, kind, leaves, x, height)
        for depth in range(dice.roll(450, 1000), 1800, dice.roll(500, 1000)):
            x = kerb + outward * dice.roll(30, 60)
            yield depth, partial(draw_post, canvas, x, outward, dice.roll(0, 10))
        for _ in range(dice.roll(2, 5)):
            x = dice.roll(*sorted((kerb + outward * 40, front - outward * 30)))
            yield dice.roll(420, 1150), partial(draw_person, canvas, x)
        for depth in range(dice.roll(600, 1400), 4200, dice.roll(560, 900)):
            if dice.chance(45):
                yield depth, partial(draw_car, canvas, kerb - outward * 105, outward < 0)
    # On the road itself: a car ahead, one coming, somebody crossing.
    if dice.chance(55):
        yield dice.roll(900, 3500), partial(draw_car, canvas, dice.roll(-60, 40), False)
    if dice.chance(50):
        yield dice.roll(1000, 3500), partial(draw_car, canvas, road[0] * 5 // 8, True)
    if dice.chance(35):
        x = dice.roll(road[0] + 60, road[1] - 60)
        yield dice.roll(600, 1300), partial(draw_person, canvas, x)


def draw_tree(
    canvas: Canvas, kind: int, parts: np.ndarray, x: int, height: int, depth: int
) -> None:
    """Draw a tree three quarters as wide as high."""
    half = height * 3 // 8
    corners = canvas.upright(x - half, x + half, 0, height, depth)
    canvas.stamp(sprites.TREES[kind], parts, corners, depth)


def draw_person(canvas: Canvas, x: int, depth: int) -> None:
    """Draw somebody."""
    dice, height = canvas.dice, canvas.dice.roll(150, 192)
    parts = canvas.add_all("skin", "hair", "top", "trousers", "shoe", "bag")
    sprite = sprites.PEOPLE[dice.roll(0, len(sprites.PEOPLE))]
    corners = canvas.upright(x - 40, x + 40, 0, height, depth)
    canvas.stamp(sprite, parts, corners, depth, mirrored=dice.chance(50))


def draw_post(canvas: Canvas, x: int, outward: int, kind: int, depth: int) -> None:
    """Draw a pole with a street lamp (kinds 0 to 3), a traffic light (4, 5) or a sign."""
    pole = canvas.add("pole")
    height, half = (620, 20) if kind < 4 else (330, 18) if kind < 6 else (270, 16)
    canvas.box(canvas.upright(x - half, x + half, 0, height, depth), pole, depth)
    if kind < 4:
        head = x - outward * 150
        arm = canvas.upright(*sorted((x, head)), height - 26, height, depth)
        canvas.box(arm, pole, depth)
        lamp = canvas.upright(head - 36, head + 36, height - 40, height + 4, depth)
        canvas.box(lamp, canvas.add("lamp_head"), depth)
        return
    half, length, sprite = (
        (40, 150, sprites.TRAFFIC_LIGHT) if kind < 6 else (60, 120, sprites.SIGNS[kind % 3])
    )
    face = ("sign_blue", "sign_face") if kind % 3 == 2 else ("sign_face", "sign_dark")
    parts = canvas.add_all("sign_rim", *face, "red", "amber", "green")
    corners = canvas.upright(x - half, x + half, height + 10 - length, height + 10, depth)
    canvas.stamp(sprite, parts, corners, depth)


def draw_car(canvas: Canvas, x: int, oncoming: bool, depth: int) -> None:
    """Draw a car: its shadow, the side turned to the camera in perspective, then its near end."""
    dice, half = canvas.dice, CAR_HALF_WIDTH
    length, height = dice.roll(380, 470), dice.roll(138, 175)
    lamp = "headlight" if oncoming else "lamp"
    parts = canvas.add_all("car", "car_glass", "tyre", lamp, "plate", "car_trim")
    shadow = canvas.add_colour("road", dimmed(canvas.palette["road"][0], 55))
    corners = canvas.upright(x - half, x + half, 0, height, depth)
    left, _, right, foot = corners
    canvas.box((left - 2, canvas.row(0, depth + length), right + 2, foot + 2), shadow, depth)
    if abs(x) > half:  # else the camera looks straight at its end
        side = parts.copy()
        side[1] = canvas.add_colour("car", dimmed(canvas.colours[parts[1]], 100))
        plane = x - half if x > 0 else x + half
        draw_car_side(canvas, side, plane, depth, length, height, oncoming)
    canvas.stamp(sprites.CAR_END, parts, corners, depth)


def draw_car_side(
    canvas: Canvas,
    parts: np.ndarray,
    plane: int,
    depth: int,
    length: int,
    height: int,
    oncoming: bool,
) -> None:
    """Draw the side of a car in the plane x = plane, from depth to depth + length."""
    ends = sorted((canvas.column(plane, depth), canvas.column(plane, depth + length)))
    columns = np.arange(max(0, ends[0]), min(2 * WIDTH, ends[1] + 1))
    columns = columns[columns != canvas.vanish_x]
    rows = np.arange(max(0, canvas.row(height, depth)), min(2 * HEIGHT, canvas.row(0, depth) + 1))
    if not (rows.size and columns.size):
        return
    last = sprites.SIDE - 1
    z = plane * FOCAL // (columns - canvas.vanish_x)
    u = np.clip((z - depth) * sprites.SIDE // length, 0, last)
    up = EYE - (((rows[:, None] - canvas.horizon) * z) >> 8)
    v = (height - up) * sprites.SIDE // height
    part = sprites.CAR_SIDE[np.clip(v, 0, last), last - u if oncoming else u]
    canvas.paint(np.where((v >= 0) & (v <= last), part, 0), parts, rows, columns, z)
