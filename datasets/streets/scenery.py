"""What a street is made of before anything stands in it: sky, ground, house fronts."""

import numpy as np

from datasets.streets.canvas import COLUMNS, EYE, FOCAL, ROWS, WIDTH, Canvas
from datasets.streets.palettes import dimmed, mix

BLOCKS = 12  # a side; the last one closes the end of the street
BANDS = 24  # of the sky's gradient


def paint_sky(canvas: Canvas) -> None:
    """Fill the canvas with the sky's gradient and put a far skyline on the horizon."""
    dice, variant = canvas.dice, canvas.dice.roll(0, 2)
    top, low = canvas.palette["sky_top"][variant], canvas.palette["sky_low"][variant]
    bands = [canvas.add_colour("sky_top", mix(top, low, i * 128 // BANDS)) for i in range(BANDS)]
    canvas.material[:] = bands[0] + np.minimum(ROWS * BANDS // canvas.horizon, BANDS - 1)
    x = -dice.roll(0, 30)
    while x < 2 * WIDTH:
        width, height = dice.roll(14, 50), dice.roll(4, 26)
        material = canvas.add("leaf_dark" if dice.chance(35) else "skyline")
        canvas.box((x, canvas.horizon - height, x + width, canvas.horizon + 4), material, 9000)
        x += width


def paint_ground(canvas: Canvas, road: tuple[int, int], fronts: tuple[int, int]) -> None:
    """Paint road, markings, kerbs and pavements; the shaded side's houses throw their shadow.

    Args:
        canvas: with the sky on it.
        road: x of its left and right edge, cm from the camera.
        fronts: x of the house fronts on both sides, cm.
    """
    dice = canvas.dice
    (left, right), near = road, 4000
    asphalt, marking, slab, joint, kerb = (
        lit_and_shaded(canvas, name) for name in ("road", "marking", "sidewalk", "joint", "curb")
    )
    y0 = canvas.horizon + 1
    depth = FOCAL * EYE // (ROWS[y0:] - canvas.horizon)
    x = ((COLUMNS - canvas.vanish_x) * depth) >> 8
    ground = np.full(x.shape, asphalt, np.int32)

    middle, phase = (left + right) // 2 - dice.roll(0, 60), dice.roll(0, 600)
    line = (np.abs(x - middle) < 9) & ((depth + phase) % 600 < 330)
    if dice.chance(60):
        line |= (np.abs(x - left - 36) < 6) | (np.abs(x - right + 36) < 6)
    line &= depth < near
    if dice.chance(35):
        zebra = dice.roll(700, 1500)
        line |= (depth >= zebra) & (depth < zebra + 350) & ((x - left) % 100 < 52)
    ground[line] = marking

    walk = (x < left) | (x >= right)
    ground[walk] = slab
    ground[walk & (depth < near // 2) & ((x % 120 < 6) | (depth % 160 < 12))] = joint
    ground[(x - left + 18) // 18 == 0] = kerb
    ground[(x - right) // 18 == 0] = kerb

    reach = dice.roll(40, 420)
    sunny_right = canvas.light[0] < canvas.light[1]
    ground += (x < fronts[0] + reach) if sunny_right else (x > fronts[1] - reach)
    canvas.material[y0:] = ground
    canvas.depth[y0:] = depth


def lit_and_shaded(canvas: Canvas, name: str) -> int:
    """Return a new material; the number after it is the same in the shade."""
    lit = canvas.add(name)
    canvas.add_colour(name, dimmed(canvas.colours[lit], 75))
    return lit


def paint_fronts(canvas: Canvas, fronts: tuple[int, int]) -> None:
    """Paint the houses and hedges along both sides and at the end of the street, by ray casting.

    The fronts stand in two planes parallel to the road, so every column of the picture sees
    exactly one depth; what lies along the street at that depth is the column's block.

    Args:
        canvas: with the ground on it.
        fronts: x of the house fronts on both sides, cm from the camera.
    """
    dice = canvas.dice
    end = dice.roll(3500, 8000)
    dx = COLUMNS - canvas.vanish_x
    depth = FOCAL * np.where(dx < 0, *fronts).astype(np.int32) // np.where(dx == 0, 1, dx)
    depth = np.where((depth > end) | (dx == 0), end, depth).astype(np.int32)
    along = np.where(depth == end, (dx * end >> 8) + 20_000, depth)
    sides = [row_of_blocks(canvas, end, light) for light in canvas.light]
    index = np.where(dx < 0, *(np.searchsorted(side[:, 0], depth, "right") - 1 for side in sides))
    block = np.where((dx < 0)[:, None], sides[0][index], sides[1][index]).astype(np.int32)
    _, height, is_house, pitch, wall, trim, glass, lit, door = block.T

    bottom = canvas.horizon + EYE * FOCAL // depth
    top = canvas.horizon - (height - EYE) * FOCAL // depth
    rows = slice(max(0, int(top.min())), int(bottom.max()))
    y = ROWS[rows]
    up = EYE - (((y - canvas.horizon) * depth) >> 8)  # height above the road, cm
    floor, bay = up // 300, along // pitch
    v, u = up - floor * 300, along - bay * pitch  # inside one bay of one floor
    table = dice.octets(256)

    material = np.where((v < 16) | (up > height - 36), trim, wall)
    window = (u > 40) & (u < pitch - 40)
    pane = window & (v > 90) & (v < 230) & (up < height - 60)
    np.copyto(material, np.where(scattered(table, bay, floor) < 64, lit, glass), where=pane)
    np.copyto(material, door, where=(floor == 0) & window & (bay % 3 == 0) & (v < 220))
    # A hedge's wall, trim and glass are three greens, in clumps of leaves.
    hedge = np.flatnonzero(is_house == 0)
    clump = scattered(table, along[hedge] // 22, up[:, hedge] // 18)
    greens = np.where(clump < 90, wall[hedge], np.where(clump < 190, trim[hedge], glass[hedge]))
    material[:, hedge] = greens

    seen = (y >= top) & (y < bottom)
    np.copyto(canvas.material[rows], material, where=seen)
    np.copyto(canvas.depth[rows], depth, where=seen)


def scattered(table: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return a number in 0..255 that looks random for each cell (x, y)."""
    return table[(table[x & 255] + y) & 255]


def row_of_blocks(canvas: Canvas, end: int, light: int) -> np.ndarray:
    """Return int [BLOCKS,9]: start, height, is_house, window pitch (cm), then five materials."""
    dice, blocks, start = canvas.dice, [], 0
    panes = [canvas.add(name, light) for name in ("glass", "lit", "door")]
    greens = [canvas.add(name, light) for name in ("leaf_dark", "leaf", "leaf_light")]
    for i in range(BLOCKS):
        start = end if i == BLOCKS - 1 else start
        pitch = dice.roll(170, 300)
        if dice.chance(78):
            height = 300 * dice.roll(2, 6) + 40
            materials = [canvas.add("wall", light), canvas.add("trim", light), *panes]
            blocks.append([start, height, 1, pitch, *materials])
        else:
            blocks.append([start, dice.roll(170, 420), 0, pitch, *greens, 0, 0])
        start = min(start + dice.roll(500, 1500), end)
    return np.array(blocks)
