"""Small pictures of street objects, as maps of part numbers, made of integer discs and polygons.

Every sprite is uint8 [64,64], stretched to its object's size when it is drawn. Part 0 is empty;
`things` gives each other part a class and a colour.
"""

import numpy as np

SIDE = 64
Y, X = np.mgrid[:SIDE, :SIDE]


def disc(x: int, y: int, rx: int, ry: int) -> np.ndarray:
    """Return the mask of an ellipse with the given centre and radii."""
    return ((X - x) * ry) ** 2 + ((Y - y) * rx) ** 2 <= (rx * ry) ** 2


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """Return the mask of a rectangle, ends excluded."""
    return (x0 <= X) & (x1 > X) & (y0 <= Y) & (y1 > Y)


def polygon(*points: tuple[int, int]) -> np.ndarray:
    """Return the mask of a convex polygon given clockwise on the screen."""
    mask = np.ones((SIDE, SIDE), bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        mask &= (x1 - x0) * (Y - y0) - (y1 - y0) * (X - x0) >= 0
    return mask


def stack(*layers: tuple[int, np.ndarray]) -> np.ndarray:
    """Return the sprite of (part, mask) layers, later ones in front."""
    sprite = np.zeros((SIDE, SIDE), np.uint8)
    for part, mask in layers:
        sprite[mask] = part
    return sprite


# Parts of both car views: 1 body, 2 glass, 3 tyre, 4 lamp, 5 plate or hub, 6 trim.
CAR_END = stack(
    (3, box(6, 50, 18, 64) | box(46, 50, 58, 64)),
    (1, polygon((14, 0), (49, 0), (58, 26), (5, 26))),
    (1, box(2, 24, 62, 54) | disc(8, 26, 7, 6) | disc(55, 26, 7, 6)),
    (2, polygon((17, 4), (46, 4), (53, 22), (10, 22))),
    (4, box(3, 29, 13, 37) | box(51, 29, 61, 37)),
    (5, box(24, 38, 40, 46)),
    (6, box(2, 48, 62, 54)),
)
# From its rear (left) to its bonnet (right).
CAR_SIDE = stack(
    (1, polygon((2, 26), (10, 22), (62, 28), (63, 52), (1, 52))),
    (1, polygon((12, 1), (34, 1), (46, 28), (4, 28))),
    (2, polygon((13, 5), (22, 5), (22, 24), (9, 24))),
    (2, polygon((25, 5), (33, 5), (42, 24), (25, 24))),
    (6, box(2, 46, 62, 53) | box(23, 26, 24, 46)),
    (4, box(59, 30, 63, 36) | box(1, 30, 3, 37)),
    (3, disc(13, 52, 7, 11) | disc(50, 52, 7, 11)),
    (5, disc(13, 52, 3, 5) | disc(50, 52, 3, 5)),
)
# Parts: 1 trunk, 2 dark, 3 middle and 4 light leaves.
TREES = (
    stack(
        (1, box(29, 36, 35, 64)),
        (2, disc(32, 24, 26, 20) | disc(16, 30, 14, 12) | disc(49, 30, 13, 12)),
        (3, disc(28, 20, 20, 15) | disc(14, 28, 10, 8) | disc(46, 26, 10, 8)),
        (4, disc(23, 14, 11, 8) | disc(12, 25, 6, 4) | disc(42, 20, 6, 5)),
    ),
    stack(
        (1, box(29, 48, 35, 64)),
        (2, polygon((31, 0), (33, 0), (56, 54), (8, 54))),
        (3, polygon((30, 4), (32, 4), (40, 50), (12, 50))),
        (4, polygon((29, 12), (30, 12), (30, 44), (17, 44))),
    ),
    stack(
        (1, box(30, 44, 34, 64) | polygon((33, 44), (44, 30), (46, 32), (34, 50))),
        (2, disc(32, 26, 20, 26)),
        (3, disc(28, 23, 15, 21)),
        (4, disc(25, 16, 8, 11) | disc(33, 34, 5, 5)),
    ),
)
# Parts: 1 skin, 2 hair, 3 top, 4 trousers, 5 shoes, 6 bag.
PEOPLE = (
    stack(
        (4, polygon((20, 36), (34, 36), (25, 60), (13, 60))),
        (4, polygon((30, 36), (44, 36), (52, 60), (40, 60))),
        (5, box(10, 59, 25, 64) | box(40, 59, 55, 64)),
        (3, polygon((19, 14), (45, 14), (46, 38), (18, 38))),
        (3, polygon((10, 32), (20, 14), (28, 16), (18, 36))),
        (3, polygon((44, 14), (56, 30), (50, 36), (38, 18))),
        (1, disc(14, 35, 5, 3) | disc(53, 34, 5, 3)),
        (1, disc(32, 7, 10, 6)),
        (2, disc(31, 4, 10, 4)),
    ),
    stack(
        (4, box(20, 36, 31, 61) | box(33, 36, 44, 61)),
        (5, box(16, 59, 31, 64) | box(33, 59, 48, 64)),
        (3, box(14, 14, 50, 38) | box(8, 15, 15, 36) | box(49, 15, 56, 36)),
        (1, disc(11, 37, 4, 2) | disc(53, 37, 4, 2)),
        (6, box(48, 34, 62, 46)),
        (1, disc(32, 7, 11, 6)),
        (2, disc(32, 4, 12, 4) | box(20, 3, 25, 11)),
    ),
)
# Parts: 1 rim, 2 face, 3 symbol, 4 red, 5 amber, 6 green.
SIGNS = (
    stack((1, disc(32, 32, 31, 31)), (2, disc(32, 32, 23, 23)), (3, box(18, 27, 46, 37))),
    stack(
        (1, polygon((31, 1), (33, 1), (63, 61), (1, 61))),
        (2, polygon((31, 18), (33, 18), (51, 53), (13, 53))),
        (3, box(29, 28, 35, 46)),
    ),
    stack(
        (2, box(1, 1, 63, 63)),
        (3, box(6, 6, 58, 58)),
        (2, polygon((31, 12), (33, 12), (52, 40), (12, 40)) | box(26, 38, 38, 54)),
    ),
)
TRAFFIC_LIGHT = stack(
    (3, box(14, 0, 50, 64)),
    (4, disc(32, 11, 10, 8)),
    (5, disc(32, 32, 10, 8)),
    (6, disc(32, 53, 10, 8)),
)
