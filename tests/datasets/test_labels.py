"""Label files: ids that are certain, or an error that says why they are not."""

import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fakedata
from datasets import build_dataset, files, write_label_png
from datasets.labels import LabelTable
from datasets.reading import LabelReading
from engine.errors import UserError
from fakeimages import bmp_of, chunk, encoded, exif, png_of, tiff_of

RANDOM = np.random.default_rng(0)
IDS = RANDOM.choice(np.array([0, 7, 11, 33, 255], np.uint8), (11, 14))
COLOURS = {0: (0, 0, 0), 7: (128, 64, 128), 11: (70, 70, 70), 33: (119, 11, 32), 255: (1, 2, 3)}
TABLE = LabelTable(tuple((colour, number) for number, colour in COLOURS.items()))
PAINTED = np.array([COLOURS.get(i, (9, 9, 9)) for i in range(256)], np.uint8)[IDS]
OPAQUE = np.full((11, 14, 1), 255, np.uint8)


def indexed(ids: np.ndarray, palette: list[tuple[int, ...]], kind: str = "PNG") -> bytes:
    """Return a file of ids with a palette."""
    image = Image.fromarray(ids)
    image.putpalette([value for colour in palette for value in colour])
    return encoded(image, kind)


def renumbered(kind: str = "PNG") -> bytes:
    """Return what a program makes of IDS to save space: a palette of just its greys."""
    greys, index = np.unique(IDS, return_inverse=True)
    return indexed(
        index.reshape(IDS.shape).astype(np.uint8), [(g,) * 3 for g in greys.tolist()], kind
    )


RIGHT = {
    "PNG grey": encoded(Image.fromarray(IDS), "PNG"),
    "PNG palette": indexed(IDS, [(i, 255 - i, 7) for i in range(256)]),
    "PNG palette of the table": indexed(IDS, [COLOURS.get(i, (9, 9, 9)) for i in range(256)]),
    "PNG colours": encoded(Image.fromarray(PAINTED), "PNG"),
    "PNG opaque colours": png_of(np.concatenate([PAINTED, OPAQUE], 2), 8, 6),
    "PNG opaque grey": png_of(np.concatenate([IDS[..., None], OPAQUE], 2), 8, 4),
    "PNG clear palette": png_of(IDS[..., None], 8, 3, (b"PLTE", bytes(768)), (b"tRNS", b"\0")),
    "PNG turned by nothing": encoded(Image.fromarray(IDS), "PNG", exif=exif(1)),
    "TIFF grey": tiff_of(IDS[..., None], 1),
    "TIFF packed": tiff_of(IDS[..., None], 1, compression=8, predictor=2, tile=(16, 16)),
    "TIFF palette": tiff_of(IDS[..., None], 3, t320=tuple(range(768))),
    "TIFF colours": tiff_of(PAINTED),
    "BMP grey": encoded(Image.fromarray(IDS), "BMP"),
    "BMP palette": indexed(IDS, [(i, 255 - i, 7) for i in range(256)], "BMP"),
    "PGM": b"P5 14 11 255\n" + IDS.tobytes(),
    "PPM colours": b"P6 14 11 255\n" + PAINTED.tobytes(),
    "WebP lossless colours": encoded(Image.fromarray(PAINTED), "WEBP", lossless=True),
}
REFUSED = {
    "JPEG": (encoded(Image.fromarray(IDS), "JPEG"), "blurred class ids"),
    "WebP": (encoded(Image.fromarray(PAINTED), "WEBP"), "blurred class ids"),
    "JPEG2000": (encoded(Image.fromarray(IDS), "JPEG2000"), "blurred class ids"),
    "AVIF": (encoded(Image.fromarray(PAINTED), "AVIF"), "blurred class ids"),
    "TIFF of JPEG": (encoded(Image.fromarray(IDS), "TIFF", compression="jpeg"), "blurred"),
    "greys": (renumbered(), r"are greys.*label_values"),
    "greys in GIF": (renumbered("GIF"), "numbered anew"),
    "GIF palette": (indexed(IDS, [(i, 255 - i, 7) for i in range(256)], "GIF"), "numbered anew"),
    "GIF of greys": (encoded(Image.fromarray(IDS), "GIF"), "numbered anew"),
    "greys in BMP": (renumbered("BMP"), "are greys"),
    "two bits of grey": (png_of(IDS[..., None] >> 6, 2, 0), "stand for other greys"),
    "four bits of grey": (png_of(IDS[..., None] >> 4, 4, 0), "stand for other greys"),
    "white is zero": (tiff_of(IDS[..., None], 0), "stand for other greys"),
    "PGM of 100": (b"P5 14 11 100\n" + (IDS // 3).tobytes(), "stand for other greys"),
    "PBM": (b"P4 14 11\n" + np.packbits(IDS > 0, axis=1).tobytes(), "stand for other greys"),
    "turned": (encoded(Image.fromarray(IDS), "PNG", exif=exif(3)), "orientation 3"),
    "turned TIFF": (tiff_of(IDS[..., None], 1, t274=6), "orientation 6"),
    "pages": (tiff_of(IDS[..., None], 1, pages=[{}]), "several pages"),
    "16 bits": (png_of(IDS[..., None].astype(np.uint16), 16, 0), "label_bits=16"),
    "16 bits of colour": (png_of(PAINTED.astype(np.uint16), 16, 2), "no class ids"),
    "float": (tiff_of(IDS[..., None].astype(np.float32), 1), "no class ids"),
    "signed": (tiff_of(IDS[..., None].view(np.int8), 1), "no class ids"),
    "CMYK": (tiff_of(np.concatenate([PAINTED, OPAQUE], 2), 5), "no class ids"),
    "clear colours": (png_of(np.concatenate([PAINTED, OPAQUE - 1], 2), 8, 6), "transparency"),
    "two bands": (tiff_of(PAINTED[..., :2], 1, t338=0), "no class ids"),
    "another colour": (
        encoded(Image.fromarray(PAINTED + (PAINTED == 70)), "PNG"),
        r"\(71, 71, 71\)",
    ),
    "grey ids as colours": (
        encoded(Image.fromarray(np.repeat(IDS[..., None], 3, 2)), "PNG"),
        r"\(7, 7, 7\).*three channels are equal",
    ),
    "short grey palette": (
        bmp_of(bytes(16 * 11), (14, 11), 8, b"\0\0\0\0\xff\xff\xff\0", colours=2),
        "grey palette",
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_ids_that_are_certain(name: str, tmp_path: Path):
    path = tmp_path / "label"
    path.write_bytes(RIGHT[name])
    ids = files.read_label(path, TABLE)
    assert ids.dtype == np.uint8
    assert np.array_equal(ids, IDS)


@pytest.mark.parametrize("name", REFUSED)
def test_ids_that_are_not(name: str, tmp_path: Path):
    content, message = REFUSED[name]
    path = tmp_path / "label"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: .*{message}") as caught:
        files.read_label(path, TABLE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "palette"])
def test_one_bit_holds_0_and_1(kind: str, tmp_path: Path):
    bit = (IDS[..., None] > 7).astype(np.uint8)
    contents = {
        "TIFF": tiff_of(bit, 1, bits=1),
        # the indices count, whatever is painted
        "palette": png_of(bit, 1, 3, (b"PLTE", b"\xff\0\0\0\0\xff")),
    }
    image = Image.fromarray(bit[..., 0] > 0)
    (tmp_path / "label").write_bytes(contents.get(kind) or encoded(image, kind))
    assert np.array_equal(files.read_label(tmp_path / "label", TABLE), bit[..., 0])


def test_sixteen_bits_where_the_dataset_says_so(tmp_path: Path):
    root = fakedata.make_folder(tmp_path)
    path = root / "labels/train/0.png"
    ids = np.asarray(Image.open(path)).astype(np.uint16)
    expected = build_dataset("folder", root, split="train")[0]["label"]
    for content in (png_of(ids[..., None], 16, 0), tiff_of(ids[..., None], 1, order=">")):
        path.write_bytes(content)
        with pytest.raises(UserError, match="label_bits=16"):
            build_dataset("folder", root, split="train")[0]
        found = build_dataset("folder", root, split="train", label_bits=16)[0]["label"]
        assert np.array_equal(found, expected)
    ids[5, 5] = 256 + 10
    path.write_bytes(png_of(ids[..., None], 16, 0))
    with pytest.raises(UserError, match=r"0.png: label values outside the class table: 266"):
        build_dataset("folder", root, split="train", label_bits=16)[0]


def test_greys_by_either_cure(tmp_path: Path):
    path = tmp_path / "label.png"
    path.write_bytes(renumbered())
    indices = np.asarray(Image.open(path))
    assert np.array_equal(files.read_label(path, TABLE, LabelReading(values="ids")), indices)
    greys = LabelTable(tuple(((i, i, i), i) for i in COLOURS))
    assert np.array_equal(files.read_label(path, greys, LabelReading(values="colours")), IDS)
    grey = Image.fromarray(IDS)
    grey.save(path)
    assert np.array_equal(files.read_label(path, greys, LabelReading(values="colours")), IDS)


def test_a_grey_palette_to_be_looked_at_is_no_renumbering(tmp_path: Path):
    """Ours, of a table of black and white; and anybody's that agrees with the table."""
    path, ids = tmp_path / "label.png", (IDS > 7).astype(np.uint8)
    write_label_png(path, ids, [(0, 0, 0), (255, 255, 255)])
    assert np.array_equal(files.read_label(path), ids)
    path.write_bytes(indexed(ids, [(0, 0, 0), (255, 255, 255)]))
    with pytest.raises(UserError, match="are greys"):
        files.read_label(path)
    table = LabelTable((((0, 0, 0), 0), ((255, 255, 255), 1)))
    assert np.array_equal(files.read_label(path, table), ids)
    path.write_bytes(encoded(Image.fromarray(IDS).convert("P"), "PNG"))  # every grey at its index
    assert np.array_equal(files.read_label(path), IDS)


def test_the_tables_colours_at_other_ids_are_a_renumbering(tmp_path: Path):
    path = tmp_path / "label.png"
    used, index = np.unique(IDS, return_inverse=True)
    palette = [COLOURS[number] for number in used.tolist()]
    path.write_bytes(indexed(index.reshape(IDS.shape).astype(np.uint8), palette))
    with pytest.raises(UserError, match="class table's colours of other ids"):
        files.read_label(path, TABLE)
    assert np.array_equal(files.read_label(path, TABLE, LabelReading(values="colours")), IDS)
    # a void colour that the table lacks makes it no better
    palette[-1] = (224, 224, 192)
    path.write_bytes(indexed(index.reshape(IDS.shape).astype(np.uint8), palette))
    with pytest.raises(UserError, match="class table's colours of other ids"):
        files.read_label(path, TABLE)
    # black and white alone are met by chance, in a palette that is another
    other = [(0, 0, 1), (0, 0, 0), (9, 8, 7), (6, 5, 4), (3, 2, 1)]
    path.write_bytes(indexed(index.reshape(IDS.shape).astype(np.uint8), other))
    assert np.array_equal(files.read_label(path, TABLE), index.reshape(IDS.shape))


def test_colours_of_several_classes_are_no_ids(tmp_path: Path):
    path = tmp_path / "label.png"
    path.write_bytes(encoded(Image.fromarray(PAINTED), "PNG"))
    shared = LabelTable((*TABLE.colours, ((70, 70, 70), 12)))
    with pytest.raises(UserError, match=r"several classes of colour \(70, 70, 70\)"):
        files.read_label(path, shared)
    ignored = list(range(256))
    ignored[11] = ignored[12] = 255  # nothing is lost between two that are ignored
    files.read_label(path, LabelTable(shared.colours, tuple(ignored)))
    with pytest.raises(UserError, match="no class ids"):
        files.read_label(path)


@pytest.mark.parametrize("where", ["IDAT", "PLTE", "IHDR"])
def test_a_labels_checksums_are_verified(where: str, tmp_path: Path):
    """A bit of the pixels' checksum, or of the pixels, which a decoder may not notice."""
    path = tmp_path / "label.png"
    content = bytearray(RIGHT["PNG palette"])
    place = content.index(where.encode()) + 4 + (3 if where == "IHDR" else 7)
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=rf"label.png: a damaged PNG: wrong checksum of .*{where}"):
        files.read_label(path)


def test_stored_pixels_with_a_flipped_bit_are_noticed(tmp_path: Path):
    packer = zlib.compressobj(0)
    rows = packer.compress(b"".join(b"\0" + line.tobytes() for line in IDS)) + packer.flush()
    whole = fakedata.png((14, 11, 8, 0, 0, 0, 0), rows)
    damaged = bytearray(whole)
    damaged[60] ^= 4
    for content, fine in ((whole, True), (bytes(damaged), False)):
        (tmp_path / "label.png").write_bytes(content)
        if fine:
            assert np.array_equal(files.read_label(tmp_path / "label.png"), IDS)
        else:
            with pytest.raises(UserError, match="wrong checksum"):
                files.read_label(tmp_path / "label.png")


# ---- own tables


def own(tmp_path: Path, table: object, mark: bytes = b"") -> Path:
    """Return a folder with this class table."""
    root = fakedata.make_folder(tmp_path)
    (root / "classes.json").write_bytes(mark + json.dumps(table).encode())
    return root


def classes(*ids: int) -> list[dict]:
    return [{"id": i, "name": f"class {i}", "color": [i, 0, 0]} for i in ids]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_own_table_with_a_byte_order_mark(mark: bytes, tmp_path: Path):
    root = own(tmp_path, {"classes": classes(10, 20, 30), "ignore": [40]}, mark)
    assert build_dataset("folder", root, split="train").num_classes == 3


def test_own_table_in_utf16(tmp_path: Path):
    root = own(tmp_path, [])
    text = json.dumps(classes(10, 20, 30, 40))
    (root / "classes.json").write_bytes(b"\xff\xfe" + text.encode("utf-16-le"))
    assert build_dataset("folder", root, split="train").num_classes == 4
    (root / "classes.json").write_bytes(text.encode("utf-16-le"))
    with pytest.raises(
        UserError, match=r"classes.json: cannot read this class table: .*zero bytes"
    ):
        build_dataset("folder", root, split="train")
    (root / "classes.json").write_bytes(text.replace("class 10", "Stra\xdfe").encode("latin-1"))
    with pytest.raises(UserError, match=r"classes.json: cannot read this class table: byte 0xdf"):
        build_dataset("folder", root, split="train")


def test_id_255_is_a_class_where_the_table_says_what_is_ignored(tmp_path: Path):
    root = own(tmp_path, {"classes": classes(0, 255), "ignore": []})
    fakedata.save(root / "labels/train/0.png", np.where(np.eye(48, 64), 255, 0).astype(np.uint8))
    label = build_dataset("folder", root, split="train")[0]["label"].numpy()
    assert np.array_equal(label, np.eye(48, 64))
    own(tmp_path, classes(0, 255))
    with pytest.raises(UserError, match=r'class 1 is .*id 255 only where "ignore"'):
        build_dataset("folder", root, split="train")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (classes(3), "2 to 254 classes allowed, got 1: list the background"),
        ({"classes": 5}, r"a list of classes expected, got \{\"classes\": 5\}"),
        ({"classes": {"a": 1}}, "a list of classes expected"),
        (7, "a list of classes expected, got 7"),
        ({"classes": classes(1, 2), "ignore": 5}, "ignore must list ids in 0..255, got 5"),
        ({"classes": classes(1, 2), "ignore": [None]}, "ignore must list ids in 0..255, got null"),
        ({"classes": classes(1, 2), "ignore": [{"id": 1.5}]}, "ignore must list ids"),
        ({"classes": classes(1, 2), "ignore": [2]}, "id 2 occurs twice"),
        ([1, 2], "class 0 is 1; expected"),
    ],
)
def test_bad_tables_are_one_line(table: object, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=f"classes.json: {message}"):
        build_dataset("folder", own(tmp_path, table), split="train")


def test_at_most_254_classes(tmp_path: Path):
    root = own(tmp_path, classes(*range(254)))
    fakedata.save(root / "labels/train/0.png", np.full((48, 64), 253, np.uint8))
    dataset = build_dataset("folder", root, split="train")
    assert dataset.num_classes == 254
    assert (dataset[0]["label"] == 253).all()
    table = {"classes": classes(*range(255)), "ignore": []}
    with pytest.raises(UserError, match="2 to 254 classes allowed, got 255"):
        build_dataset("folder", own(tmp_path, table), split="train")


def test_raw_id_254_is_an_id_like_others(tmp_path: Path):
    root = own(tmp_path, classes(0, 254))
    fakedata.save(root / "labels/train/0.png", np.full((48, 64), 254, np.uint8))
    assert (build_dataset("folder", root, split="train")[0]["label"] == 1).all()


def test_colour_coded_masks_of_an_own_table(tmp_path: Path):
    root = fakedata.make_folder(tmp_path)
    table = json.loads((root / "classes.json").read_text())
    expected = build_dataset("folder", root, split="train")[0]["label"]
    paint = np.zeros((256, 3), np.uint8)
    for entry in table["classes"]:
        paint[entry["id"]] = entry["color"]
    paint[40] = (250, 250, 250)
    ids = np.asarray(Image.open(root / "labels/train/0.png"))
    fakedata.save(root / "labels/train/0.png", paint[ids])
    with pytest.raises(UserError, match=r"0.png: label colours outside .*: \(250, 250, 250\)"):
        build_dataset("folder", root, split="train")[0]
    table["ignore"] = [{"id": 40, "color": [250, 250, 250]}]
    (root / "classes.json").write_text(json.dumps(table))
    assert np.array_equal(build_dataset("folder", root, split="train")[0]["label"], expected)


def test_a_hundred_thousand_brackets_are_one_line(tmp_path: Path):
    root = own(tmp_path, [])
    (root / "classes.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"classes.json: cannot read this class table: "):
        build_dataset("folder", root, split="train")
    (root / "classes.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(UserError, match=r"class table: nested too deeply"):
        build_dataset("folder", root, split="train")


def test_written_labels_say_whose_they_are(tmp_path: Path):
    write_label_png(tmp_path / "a.png", IDS)
    assert Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())).text == {
        "Software": "segshift"
    }
    assert chunk(b"tEXt", b"Software\0segshift") in (tmp_path / "a.png").read_bytes()
