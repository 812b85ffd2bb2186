"""Draw one street: a textured canyon of house fronts in perspective, with things standing in it.

Everything is integer arithmetic on bits of PCG64, whose stream NumPy keeps for ever, so a key gives
the same bytes on every machine and with every version of every library. Lengths are centimetres,
picture coordinates pixels of a canvas twice the size of the result, factors are out of 256.
"""

import functools

import numpy as np

from datasets import sprites
from datasets.palettes import COLOURS, blended

WIDTH, HEIGHT = 160, 96
FOCAL, EYE = 256, 150  # focal length on the doubled canvas, and the camera's height above the road
SKY_DEPTH = 30_000
ROWS, COLUMNS = np.ogrid[: 2 * HEIGHT, : 2 * WIDTH]
CLASS_OF = {name: i for i, group in enumerate(COLOURS.values()) for name in group}
# Strength per class of the fine grain and of the large blotches on its surfaces, in grey levels.
GRAIN = np.array([7, 6, 5, 20, 1, 3, 4, 4, 2])
BLOTCH = np.array([12, 10, 8, 14, 0, 0, 0, 0, 0])


class Dice:
    """Integers from the raw bits of PCG64."""

    def __init__(self, *key: int) -> None:
        self.bits = np.random.PCG64(np.random.SeedSequence(key))

    def roll(self, low: int, high: int) -> int:
        """Return an integer in [low, high)."""
        return low + (self.bits.random_raw() >> 11) % (high - low)

    def chance(self, percent: int) -> bool:
        """Return True in so many of 100 cases."""
        return self.roll(0, 100) < percent

    def octets(self, *shape: int) -> np.ndarray:
        """Return int32 values in 0..255."""
        count = int(np.prod(shape))
        words = self.bits.random_raw(-(-count // 8)).astype("<u8")
        return words.view(np.uint8)[:count].reshape(shape).astype(np.int32)


class Canvas:
    """The doubled picture while it is drawn: a material and a depth for each pixel."""

    def __init__(self, dice: Dice, gap: int) -> None:
        self.dice, self.palette = dice, blended(gap)
        self.vanish_x, self.horizon = dice.roll(120, 201), dice.roll(76, 97)
        self.material = np.zeros((2 * HEIGHT, 2 * WIDTH), np.uint16)
        self.depth = np.full((2 * HEIGHT, 2 * WIDTH), SKY_DEPTH, np.int32)
        self.colours: list[np.ndarray] = []
        self.classes: list[int] = []
        self.sun = (180, 256) if dice.chance(50) else (256, 180)  # light on the left, right side

    def add(self, name: str, light: int = 256) -> int:
        """Return a new material of a random variant of the named one."""
        variants = self.palette[name]
        colour = variants[self.dice.roll(0, len(variants))]
        return self.add_colour(name, colour * light >> 8)

    def add_colour(self, name: str, colour: np.ndarray) -> int:
        """Return a new material of the named one's class, in the given colour."""
        self.colours.append(colour)
        self.classes.append(CLASS_OF[name])
        return len(self.colours) - 1

    def add_all(self, *names: str) -> np.ndarray:
        """Return the materials of a sprite's parts; part 0 is empty."""
        return np.array([0] + [self.add(name) for name in names], np.uint16)

    def column(self, x: int, depth: int) -> int:
        """Return where a point so far to the right of the camera is seen."""
        return self.vanish_x + x * FOCAL // depth

    def row(self, height: int, depth: int) -> int:
        """Return where a point of this height above the road is seen."""
        return self.horizon + (EYE - height) * FOCAL // depth

    def box(self, x0: int, y0: int, x1: int, y1: int, material: int, depth: int) -> None:
        """Fill a rectangle that is at least two pixels (one of the result) wide and high."""
        rows = slice(max(0, y0), max(0, y1, y0 + 2))
        columns = slice(max(0, x0), max(0, x1, x0 + 2))
        self.material[rows, columns] = material
        self.depth[rows, columns] = depth

    def stamp(
        self,
        sprite: np.ndarray,
        parts: np.ndarray,
        corners: tuple[int, int, int, int],
        depth: int,
        mirrored: bool = False,
    ) -> None:
        """Stretch a sprite over the corners x0, y0, x1, y1."""
        x0, y0, x1, y1 = corners
        x1, y1 = max(x1, x0 + 2), max(y1, y0 + 2)
        rows = np.arange(max(0, y0), min(2 * HEIGHT, y1))
        columns = np.arange(max(0, x0), min(2 * WIDTH, x1))
        u = (columns - x0) * sprites.SIDE // (x1 - x0)
        v = (rows - y0) * sprites.SIDE // (y1 - y0)
        if rows.size and columns.size:
            self.paint(
                sprite[v[:, None], sprites.SIDE - 1 - u if mirrored else u],
                parts,
                rows,
                columns,
                depth,
            )

    def paint(
        self,
        part: np.ndarray,
        parts: np.ndarray,
        rows: np.ndarray,
        columns: np.ndarray,
        depth: int | np.ndarray,
    ) -> None:
        """Put the non-empty parts on the canvas."""
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.copyto(self.material[window], parts[part], where=part > 0)
        np.copyto(self.depth[window], depth, where=part > 0)


def draw(key: tuple[int, ...], gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the street of a key.

    Args:
        key: non-negative integers, the seed of everything in the picture.
        gap: 0 (clear day) to 256 (foggy dusk); moves colours, fog, light, blur and noise together.
    Returns:
        image uint8 [96,160,3] RGB and label uint8 [96,160] of class ids, in the order of COLOURS.
    """
    canvas = Canvas(Dice(*key), gap)
    dice = canvas.dice
    # From the camera: both edges of the road, then both house fronts.
    road = (-dice.roll(430, 680), dice.roll(260, 420))
    fronts = (road[0] - dice.roll(180, 380), road[1] + dice.roll(180, 380))
    paint_sky(canvas)
    paint_ground(canvas, road, fronts)
    paint_fronts(canvas, fronts)
    for depth, place in sorted(things(canvas, road, fronts), key=lambda t: t[0], reverse=True):
        place(depth)
    return develop(canvas, gap)


def paint_sky(canvas: Canvas) -> None:
    """Fill the canvas with the sky's gradient and put a far skyline on the horizon."""
    dice, variant = canvas.dice, canvas.dice.roll(0, 2)
    top, low = canvas.palette["sky_top"][variant], canvas.palette["sky_low"][variant]
    bands = 24
    first = len(canvas.colours)
    for i in range(bands):
        canvas.add_colour("sky_top", (top * (bands - 1 - i) + low * i) // (bands - 1))
    canvas.material[:] = first + np.minimum(ROWS * bands // canvas.horizon, bands - 1)
    x = -dice.roll(0, 30)
    while x < 2 * WIDTH:
        width, height = dice.roll(14, 50), dice.roll(4, 26)
        name = "leaf_dark" if dice.chance(35) else "skyline"
        canvas.box(
            x, canvas.horizon - height, x + width, canvas.horizon + 4, canvas.add(name), 9000
        )
        x += width


def paint_ground(canvas: Canvas, road: tuple[int, int], fronts: tuple[int, int]) -> None:
    """Paint road, markings, kerbs and pavements; the shaded side's houses throw their shadow."""
    dice = canvas.dice
    # Materials in pairs, lit then shaded: asphalt, marking, slab, joint, kerb.
    shade = 150
    pairs = []
    for name in ("road", "marking", "sidewalk", "joint", "curb"):
        lit = canvas.add(name)
        pairs.append(lit)
        canvas.add_colour(name, canvas.colours[lit] * shade >> 8)
    asphalt, marking, slab, joint, kerb = pairs
    y0 = canvas.horizon + 1
    depth = FOCAL * EYE // (ROWS[y0:] - canvas.horizon)
    x = ((COLUMNS - canvas.vanish_x) * depth) >> 8
    left, right = road
    ground = np.full(x.shape, asphalt, np.uint16)
    near = depth < 4000
    middle, phase = (left + right) // 2 - dice.roll(0, 60), dice.roll(0, 600)
    line = (np.abs(x - middle) < 9) & ((depth + phase) % 600 < 330) & near
    if dice.chance(60):
        line |= ((x - left - 30) // 12 == 0) | ((x - right + 42) // 12 == 0) & near
    if dice.chance(35):
        zebra = dice.roll(700, 1500)
        line |= (depth >= zebra) & (depth < zebra + 350) & ((x - left) % 100 < 52)
    ground[line] = marking
    walk = (x < left) | (x >= right)
    ground[walk] = slab
    ground[walk & (depth < 2200) & ((x % 120 < 6) | (depth % 160 < 12))] = joint
    ground[((x - left + 18) // 18 == 0) | ((x - right) // 18 == 0)] = kerb
    reach = dice.roll(40, 420)
    if canvas.sun[0] < canvas.sun[1]:
        ground[x < fronts[0] + reach] += 1
    else:
        ground[x > fronts[1] - reach] += 1
    canvas.material[y0:] = ground
    canvas.depth[y0:] = depth


def paint_fronts(canvas: Canvas, fronts: tuple[int, int]) -> None:
    """Paint the houses and hedges along both sides and at the end of the street, by ray casting.

    The fronts stand in two planes parallel to the road, so every column of the picture sees
    exactly one depth; what lies along the street at that depth is the column's block.
    """
    dice = canvas.dice
    end = dice.roll(3500, 8000)
    dx = COLUMNS[0] - canvas.vanish_x
    depth = np.where(dx < 0, FOCAL * fronts[0], FOCAL * fronts[1]) // np.where(dx == 0, 1, dx)
    depth = np.where((depth > end) | (dx == 0), end, depth)
    along = np.where(depth == end, (dx * end >> 8) + 20_000, depth)
    blocks = [block for side in (0, 1) for block in row_of_blocks(canvas, end, canvas.sun[side])]
    half = len(blocks) // 2
    starts = (
        np.array([block[0] for block in blocks[:half]]),
        np.array([b[0] for b in blocks[half:]]),
    )
    index = np.where(
        dx < 0,
        np.searchsorted(starts[0], depth, "right") - 1,
        np.searchsorted(starts[1], depth, "right") - 1 + half,
    )
    _, height, is_house, wall, trim, glass, lit, door, pitch = np.array(blocks)[index].T
    bottom = canvas.horizon + EYE * FOCAL // depth
    top = canvas.horizon - (height - EYE) * FOCAL // depth
    rows = slice(max(0, int(top.min())), int(bottom.max()))
    y = ROWS[rows]
    up = EYE - (((y - canvas.horizon) * depth) >> 8)  # height above the road, cm
    floor = up // 300
    v = up - floor * 300
    bay = along // pitch
    u = along - bay * pitch

    material = np.broadcast_to(wall, up.shape).copy()
    banded = (v < 16) | (up > height - 36)
    np.copyto(material, trim, where=banded)
    inside = (u > 40) & (u < pitch - 40)
    pane = inside & (v > 90) & (v < 230) & (up < height - 60)
    mixed = (bay * 40_503 + floor * 30_011 + index * 7919) >> 3  # a hash of the window's place
    np.copyto(material, np.where(mixed % 4 == 0, lit, glass), where=pane)
    np.copyto(material, door, where=(floor == 0) & inside & (bay % 3 == 0) & (v < 220))
    # Leaves, in clumps of three tones: a hedge's wall, trim and glass are its shades of green.
    clump = (along // 22 * 7919 + up // 18 * 30_011) >> 2
    tone = np.where(clump % 3 == 0, wall, np.where(clump % 3 == 1, trim, glass))
    np.copyto(material, tone, where=is_house == 0)

    seen = (y >= top) & (y < bottom)
    np.copyto(canvas.material[rows], material.astype(np.uint16), where=seen)
    np.copyto(canvas.depth[rows], depth.astype(np.int32), where=seen)


def row_of_blocks(canvas: Canvas, end: int, light: int) -> list[tuple[int, ...]]:
    """Return 12 blocks: start, height, is_house, wall, trim, glass, lit, door, pitch of windows."""
    dice, blocks, start = canvas.dice, [], 0
    for i in range(12):
        if i == 11:
            start = end
        is_house = dice.chance(78)
        names = ("wall", "trim", "glass", "lit", "door")
        if not is_house:
            names = ("leaf_dark", "leaf", "leaf_light", "leaf", "leaf")
        height = 300 * dice.roll(2, 6) + 40 if is_house else dice.roll(170, 420)
        materials = [canvas.add(name, light) for name in names]
        blocks.append((start, height, int(is_house), *materials, dice.roll(170, 300)))
        start = min(start + dice.roll(500, 1500), end)
    return blocks


def things(canvas: Canvas, road: tuple[int, int], fronts: tuple[int, int]) -> list[tuple]:
    """Return (depth, function that draws at a depth) of what stands in the street."""
    dice, found = canvas.dice, []
    leaves = canvas.add_all("trunk", "leaf_dark", "leaf", "leaf_light")
    tree_kind = dice.roll(0, len(sprites.TREES))
    for side in (0, 1):
        outward = -1 if side == 0 else 1
        kerb = road[side]
        step = dice.roll(700, 1600)
        trees = dice.chance(70)
        for depth in range(dice.roll(1000, 2200), 5200, step):
            if trees and dice.chance(75):
                x = kerb + outward * dice.roll(70, 130)
                found.append(
                    (
                        depth + dice.roll(0, 300),
                        functools.partial(tree, canvas, tree_kind, leaves, x, dice.roll(380, 700)),
                    )
                )
        for depth in range(dice.roll(600, 1500), 4500, dice.roll(900, 1700)):
            x = kerb + outward * dice.roll(30, 60)
            found.append((depth, functools.partial(post, canvas, x, outward, dice.roll(0, 10))))
        for _ in range(dice.roll(1, 4)):
            x = dice.roll(*sorted((kerb + outward * 40, fronts[side] - outward * 30)))
            found.append((dice.roll(650, 2600), functools.partial(person, canvas, x)))
        depth = dice.roll(600, 1400)
        while depth < 4200:  # parked cars
            if dice.chance(45):
                place = functools.partial(car, canvas, kerb - outward * 105, side == 0)
                found.append((depth, place))
            depth += dice.roll(560, 900)
    if dice.chance(55):
        found.append(
            (dice.roll(900, 3500), functools.partial(car, canvas, dice.roll(-60, 40), False))
        )
    if dice.chance(50):
        x = road[0] * 5 // 8
        found.append((dice.roll(1000, 3500), functools.partial(car, canvas, x, True)))
    if dice.chance(35):
        x = dice.roll(road[0] + 60, road[1] - 60)
        found.append((dice.roll(900, 2200), functools.partial(person, canvas, x)))
    return found


def tree(canvas: Canvas, kind: int, parts: np.ndarray, x: int, height: int, depth: int) -> None:
    """Draw a tree on the pavement."""
    half = height * 3 // 8
    corners = (
        canvas.column(x - half, depth),
        canvas.row(height, depth),
        canvas.column(x + half, depth),
        canvas.row(0, depth),
    )
    canvas.stamp(sprites.TREES[kind], parts, corners, depth)


def person(canvas: Canvas, x: int, depth: int) -> None:
    """Draw somebody."""
    dice, height = canvas.dice, canvas.dice.roll(150, 192)
    parts = canvas.add_all("skin", "hair", "top", "trousers", "shoe", "bag")
    corners = (
        canvas.column(x - 34, depth),
        canvas.row(height, depth),
        canvas.column(x + 34, depth),
        canvas.row(0, depth),
    )
    sprite = sprites.PEOPLE[dice.roll(0, len(sprites.PEOPLE))]
    canvas.stamp(sprite, parts, corners, depth, mirrored=dice.chance(50))


def post(canvas: Canvas, x: int, outward: int, kind: int, depth: int) -> None:
    """Draw a street lamp (kinds 0 to 3), a traffic light (4, 5) or a traffic sign on its pole."""
    pole = canvas.add("pole")
    height, half = (620, 9) if kind < 4 else (330, 8) if kind < 6 else (270, 7)
    foot = canvas.row(0, depth)
    canvas.box(
        canvas.column(x - half, depth),
        canvas.row(height, depth),
        canvas.column(x + half, depth),
        foot,
        pole,
        depth,
    )
    if kind < 4:
        arm, tip = sorted((x, x - outward * 150))
        canvas.box(
            canvas.column(arm, depth),
            canvas.row(height, depth),
            canvas.column(tip, depth),
            canvas.row(height - 14, depth),
            pole,
            depth,
        )
        head = x - outward * 150
        canvas.box(
            canvas.column(head - 30, depth),
            canvas.row(height + 4, depth),
            canvas.column(head + 30, depth),
            canvas.row(height - 24, depth),
            canvas.add("lamp_head"),
            depth,
        )
        return
    if kind < 6:
        width, length, sprite = 28, 130, sprites.SIGNS[3]
    else:
        width, length, sprite = 48, 96, sprites.SIGNS[kind % 3]
    face = ("sign_blue", "sign_face") if kind % 3 == 2 else ("sign_face", "sign_dark")
    parts = canvas.add_all("sign_rim", *face, "red", "amber", "green")
    corners = (
        canvas.column(x - width, depth),
        canvas.row(height + 10, depth),
        canvas.column(x + width, depth),
        canvas.row(height + 10 - length, depth),
    )
    canvas.stamp(sprite, parts, corners, depth)


def car(canvas: Canvas, x: int, oncoming: bool, depth: int) -> None:
    """Draw a car: the side turned to the camera in perspective, then its end."""
    dice = canvas.dice
    length, height, half = dice.roll(380, 470), dice.roll(138, 175), 90
    names = ["car", "car_glass", "tyre", "headlight" if oncoming else "lamp", "plate", "car_trim"]
    parts = canvas.add_all(*names)
    shadow = canvas.add_colour("road", canvas.palette["road"][0] * 110 >> 8)
    left, right = canvas.column(x - half, depth), canvas.column(x + half, depth)
    foot = canvas.row(0, depth)
    canvas.box(left - 2, canvas.row(0, depth + length), right + 2, foot + 2, shadow, depth)
    plane = x - half if x > half else x + half if x < -half else 0
    if plane:
        side = parts.copy()
        side[1] = canvas.add_colour("car", canvas.colours[parts[1]] * 200 >> 8)
        car_side(canvas, side, plane, depth, length, height, oncoming)
    corners = (left, canvas.row(height, depth), right, foot)
    canvas.stamp(sprites.CAR_REAR, parts, corners, depth)


def car_side(
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
    z = plane * FOCAL // (columns - canvas.vanish_x)
    u = np.clip((z - depth) * sprites.SIDE // length, 0, sprites.SIDE - 1)
    up = EYE - (((rows[:, None] - canvas.horizon) * z) >> 8)
    v = (height - up) * sprites.SIDE // height
    part = sprites.CAR_SIDE[
        np.clip(v, 0, sprites.SIDE - 1), sprites.SIDE - 1 - u if oncoming else u
    ]
    canvas.paint(np.where(v == np.clip(v, 0, sprites.SIDE - 1), part, 0), parts, rows, columns, z)


def develop(canvas: Canvas, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn materials into colours, halve the size, add texture, weather, light and noise."""
    dice = canvas.dice
    colours = np.array(canvas.colours, np.uint16)[canvas.material]
    image = colours[::2] + colours[1::2]
    image = ((image[:, ::2] + image[:, 1::2] + 2) >> 2).astype(np.int32)
    label = np.array(canvas.classes, np.uint8)[canvas.material[1::2, ::2]]
    depth = canvas.depth[1::2, ::2]

    blotches = clouds(dice)
    grain = (dice.octets(HEIGHT, WIDTH) - 128) * GRAIN[label] + blotches * BLOTCH[label]
    image += (grain >> 7)[..., None]
    white = np.clip(blotches * 2, 0, 170) * (label == CLASS_OF["sky_top"])
    image += ((250 - gap // 4 - image) * white[..., None]) >> 8

    fog = gap * depth // (depth + 3000)
    image += ((np.array([186, 178, 184]) - image) * fog[..., None]) >> 8
    image = image * (256 - gap * np.array([118, 122, 84]) // 256) >> 8
    blurred = image.copy()
    blurred[1:-1] = (image[:-2] + 2 * image[1:-1] + image[2:]) >> 2
    blurred[:, 1:-1] = (blurred[:, :-2] + 2 * blurred[:, 1:-1] + blurred[:, 2:]) >> 2
    image += (blurred - image) * gap >> 8
    noise = dice.octets(2, HEIGHT, WIDTH, 3).sum(0) - 255
    image += noise * (6 + gap * 18 // 256) >> 8
    return np.clip(image, 0, 255).astype(np.uint8), label


def clouds(dice: Dice) -> np.ndarray:
    """Return smooth noise, int [H,W] in -128..127: a coarse random grid, stretched linearly."""
    cell = 16
    grid = dice.octets(HEIGHT // cell + 1, WIDTH // cell + 1) - 128
    weight = np.arange(cell)

    def stretch(values: np.ndarray) -> np.ndarray:
        steps = values[:-1, None] * (cell - weight)[:, None] + values[1:, None] * weight[:, None]
        return steps.reshape(-1, values.shape[1])

    return stretch(stretch(grid).T.copy()).T // cell**2
