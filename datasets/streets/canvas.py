"""The dice and the canvas that scenes are drawn with.

Lengths are centimetres, picture coordinates pixels of a canvas twice the size of the result,
factors are out of 128.
"""

import numpy as np

from datasets.streets import sprites
from datasets.streets.palettes import COLOURS, Colour, blended, dimmed

WIDTH, HEIGHT = 160, 96
FOCAL, EYE = 256, 150  # focal length on the doubled canvas, and the camera's height above the road
SKY_DEPTH = 30_000
ROWS = np.arange(2 * HEIGHT, dtype=np.int32)[:, None]
COLUMNS = np.arange(2 * WIDTH, dtype=np.int32)
CLASS_OF = {name: i for i, group in enumerate(COLOURS.values()) for name in group}


class Dice:
    """Integers from the raw bits of PCG64, a stream that NumPy keeps for ever."""

    def __init__(self, *key: int) -> None:
        self.bits = np.random.PCG64(np.random.SeedSequence(key))

    def roll(self, low: int, high: int) -> int:
        """Return an integer in [low, high)."""
        return low + (self.bits.random_raw() >> 11) % (high - low)

    def chance(self, percent: int) -> bool:
        """Return True in so many of 100 cases."""
        return self.roll(0, 100) < percent

    def octets(self, *shape: int) -> np.ndarray:
        """Return int16 values in 0..255."""
        count = int(np.prod(shape))
        # The byte order is stated, or a big-endian machine would deal the bytes differently.
        words = self.bits.random_raw(-(-count // 8)).astype("<u8")
        return words.view(np.uint8)[:count].reshape(shape).astype(np.int16)


class Canvas:
    """The doubled picture while it is drawn: a material and a depth for each pixel."""

    def __init__(self, dice: Dice, gap: int) -> None:
        self.dice, self.palette = dice, blended(gap)
        self.vanish_x, self.horizon = dice.roll(120, 201), dice.roll(76, 97)
        # How much light the left and the right side of the street get.
        self.light = (90, 128) if dice.chance(50) else (128, 90)
        self.material = np.zeros((2 * HEIGHT, 2 * WIDTH), np.int32)
        self.depth = np.full((2 * HEIGHT, 2 * WIDTH), SKY_DEPTH, np.int32)
        self.colours: list[Colour] = []
        self.classes: list[int] = []

    def add(self, name: str, light: int = 128) -> int:
        """Return a new material: a random variant of the named one."""
        variants = self.palette[name]
        return self.add_colour(name, dimmed(variants[self.dice.roll(0, len(variants))], light))

    def add_colour(self, name: str, colour: Colour) -> int:
        """Return a new material of the named one's class, in the given colour."""
        self.colours.append(colour)
        self.classes.append(CLASS_OF[name])
        return len(self.colours) - 1

    def add_all(self, *names: str) -> np.ndarray:
        """Return the materials of a sprite's parts; part 0 is empty."""
        return np.array([0] + [self.add(name) for name in names], np.int32)

    def column(self, x: int, depth: int) -> int:
        """Return where a point so far to the right of the camera is seen."""
        return self.vanish_x + x * FOCAL // depth

    def row(self, height: int, depth: int) -> int:
        """Return where a point of this height above the road is seen."""
        return self.horizon + (EYE - height) * FOCAL // depth

    def upright(self, x0: int, x1: int, low: int, high: int, depth: int) -> tuple[int, ...]:
        """Return the corners x0, y0, x1, y1 on the canvas of a rectangle facing the camera."""
        return (
            self.column(x0, depth),
            self.row(high, depth),
            self.column(x1, depth),
            self.row(low, depth),
        )

    def box(self, corners: tuple[int, ...], material: int, depth: int) -> None:
        """Fill a rectangle, at least two pixels (one of the result) wide and high."""
        x0, y0, x1, y1 = corners
        window = np.s_[max(0, y0) : max(0, y1, y0 + 2), max(0, x0) : max(0, x1, x0 + 2)]
        self.material[window] = material
        self.depth[window] = depth

    def stamp(
        self,
        sprite: np.ndarray,
        parts: np.ndarray,
        corners: tuple[int, ...],
        depth: int,
        mirrored: bool = False,
    ) -> None:
        """Stretch a sprite over a rectangle."""
        x0, y0, x1, y1 = corners
        x1, y1 = max(x1, x0 + 2), max(y1, y0 + 2)
        rows = np.arange(max(0, y0), min(2 * HEIGHT, y1))
        columns = np.arange(max(0, x0), min(2 * WIDTH, x1))
        if rows.size and columns.size:
            u = (columns - x0) * sprites.SIDE // (x1 - x0)
            v = (rows - y0) * sprites.SIDE // (y1 - y0)
            part = sprite[v[:, None], sprites.SIDE - 1 - u if mirrored else u]
            self.paint(part, parts, rows, columns, depth)

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
