"""Polygons and run lengths, beside what pycocotools 2.0.11 makes of them."""

import hashlib

import numpy as np
import pytest

from datasets import outlines
from datasets.outlines import Region


def full(region: Region | None, height: int, width: int) -> np.ndarray:
    """Return bool [H,W]; the region must be tight."""
    image = np.zeros((height, width), bool)
    if region is not None:
        mask = region.mask
        assert all(edge.any() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
        region.paint(image, True)
    return image


def drawn(rows: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows.split()])


def random_polygons(count: int):
    """Yield polygons of five kinds, each with the height and width of its image."""
    rng = np.random.RandomState(3)  # whose numbers NumPy has frozen
    for i in range(count):
        height, width = rng.randint(1, 60, 2).tolist()
        points = rng.rand(rng.randint(3, 12), 2) * [width, height]
        if i % 5 == 1:  # partly outside
            points = 2 * points - [width / 2, height / 2]
        elif i % 5 == 2:  # on the pixels' corners
            points = np.round(points)
        elif i % 5 == 3:  # where rounding decides
            points = np.round(points * 5) / 5 + rng.choice([0, 0.1, 0.05, 0.3], points.shape)
        elif i % 5 == 4:  # far away, a corner twice
            points = rng.randn(*points.shape) * rng.choice([1, 10, 1000])
            points[rng.randint(len(points))] = points[0]
        yield points, height, width


def test_polygons_cover_what_coco_says():
    """The digest is of pycocotools' masks."""
    digest, pixels = hashlib.sha256(), 0
    for points, height, width in random_polygons(1500):
        mask = full(outlines.polygon(points, height, width), height, width)
        digest.update(np.packbits(mask).tobytes())
        pixels += int(mask.sum())
    assert (pixels, digest.hexdigest()[:16]) == (247941, "fad0f30d53155258")


def test_polygons_equal_pycocotools_where_it_is_installed():
    peer = pytest.importorskip("pycocotools.mask", reason="needs pycocotools")
    for points, height, width in random_polygons(300):
        expected = peer.decode(peer.frPyObjects([points.ravel().tolist()], height, width))[..., 0]
        mask = full(outlines.polygon(points, height, width), height, width)
        np.testing.assert_array_equal(mask, expected)
        assert (
            outlines.compressed(outlines.counts_of(mask)).encode()
            == (peer.encode(np.asfortranarray(expected))["counts"])
        )


@pytest.mark.parametrize(
    ("points", "rows"),
    [
        ([(1, 1), (4, 1), (4, 3), (1, 3)], "..... .###. .###. ....."),
        # the line passes x = 0.5 at y = 3.6, x = 4.5 at 0.4
        ([(0, 0), (5, 0), (0, 4)], "####. ###.. ##... #...."),
        ([(1, 1), (4, 3), (4, 1), (1, 3)], "..... .#.#. .#.#. ....."),  # crosses itself
        ([(-9, -9), (2, -9), (2, 99), (-9, 99)], "##... ##... ##... ##..."),
        ([(1, 1), (4, 1)], "..... ..... ..... ....."),
        ([(1, 1), (4, 1), (1, 1)], "..... ..... ..... ....."),
        ([(2.5, 2.5)] * 3, "..... ..... ..... ....."),
    ],
)
def test_polygons_by_hand(points, rows):
    mask = full(outlines.polygon(np.array(points, float), 4, 5), 4, 5)
    assert mask.tolist() == drawn(rows).tolist()


def test_run_lengths_there_and_back():
    rng = np.random.RandomState(0)
    for share in (0, 0.02, 0.3, 0.9, 1):
        for height, width in ((1, 1), (1, 9), (9, 1), (7, 11), (90, 40)):
            mask = rng.rand(height, width) < share
            counts = outlines.counts_of(mask)
            assert counts[1:].all()
            assert np.array_equal(
                full(outlines.run_lengths(counts, height, width), height, width), mask
            )
            assert outlines.expanded(outlines.compressed(counts)).tolist() == counts.tolist()


def test_compressed_run_lengths_by_hand():
    """3 is one letter (3 + 48); 40 is 8 with more to come, then 1; 39 is one less: 31."""
    assert outlines.compressed(np.array([3, 40, 3, 39])) == "3X13O"
    assert outlines.expanded("3X13O").tolist() == [3, 40, 3, 39]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3X", "cut short"),
        ("3 3", "' ' in compressed"),
        ("é", "in compressed"),
        ("X" * 8 + "3", "larger"),
    ],
)
def test_compressed_run_lengths_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        outlines.expanded(text)


@pytest.mark.parametrize("counts", [[3, 4], [13], [14, -2], [-1, 13], []])
def test_run_lengths_of_another_size(counts):
    with pytest.raises(ValueError, match="the image has 12"):
        outlines.run_lengths(np.array(counts, np.int64), 3, 4)
