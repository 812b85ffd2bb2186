"""Annotations of other programs become label maps, drawn as those programs draw them."""

import base64
import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fakedata
from datasets import build_dataset
from engine.errors import UserError
from tools.convert import __main__ as convert

WIDTH, HEIGHT = 6, 5
SQUARE = [[1, 1], [3, 1], [3, 3], [1, 3]]  # with its outline 3x3 pixels, by COCO's rule 2x2


def run(root: Path, *words) -> list[str]:
    """Convert to root/out, and return the rows of the only label."""
    arguments = [*map(str, words), "--save", str(root / "out")]
    convert.main(convert.parse_args(arguments))
    (path,) = (root / "out/labels").rglob("*.png")
    label = np.array(Image.open(path))
    return ["".join("." if one == 255 else str(one) for one in row) for row in label]


def photograph(path: Path) -> Path:
    fakedata.save(path, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return path


def png(array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.array(array, np.uint8) * 255).save(file, "png")
    return file.getvalue()


# ------------------------------------------------------------------ labelme


def labelme(root: Path, *shapes: dict, **changes) -> Path:
    photograph(root / "in/a.jpg")
    value = {
        "version": "5.0", "imagePath": "..\\x\\a.jpg", "imageData": None, "imageWidth": WIDTH,
        "imageHeight": HEIGHT, "shapes": list(shapes),
    }  # fmt: skip
    (root / "in/a.json").write_text(json.dumps(value | changes))
    return root / "in"


def shape(points, label="tin", **more) -> dict:
    return {"label": label, "points": points, "shape_type": "polygon", **more}


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([shape(SQUARE)], "000000 011100 011100 011100 000000"),
        ([shape(SQUARE), shape([[3, 3], [5, 4]], "bag", shape_type="rectangle")],
         "000000 022200 022200 022111 000111"),
        ([shape([[2, 2], [2, 3]], shape_type="circle")], "000000 001000 011100 001000 000000"),
        ([shape([[2, 1], [3, 2]], shape_type="mask",
                mask=base64.b64encode(png([[1, 0], [0, 1]])).decode())],
         "000000 001000 000100 000000 000000"),
        ([shape(SQUARE, "__ignore__"), shape([[4, 0], [5, 0]], shape_type="rectangle")],
         "000011 0...00 0...00 0...00 000000"),
        ([shape(SQUARE), shape([[-9, 3], [99, 3], [99, 99], [-9, 99]], "bag")],
         "000000 022200 022200 111111 111111"),
    ],
)  # fmt: skip
def test_labelme(shapes, expected, tmp_path: Path):
    assert run(tmp_path, "labelme", labelme(tmp_path, *shapes)) == expected.split()
    dataset = build_dataset("folder", tmp_path / "out", split="train")
    assert dataset.pairs == [("images/a.jpg", "labels/a.png")]


def test_labelme_of_old_states_no_size(tmp_path: Path):
    folder = labelme(tmp_path, shape(SQUARE))
    value = json.loads((folder / "a.json").read_text())
    del value["imageWidth"], value["imageHeight"]
    (folder / "a.json").write_text(json.dumps(value))
    assert run(tmp_path, "labelme", folder)[1] == "011100"


def test_labelme_counts_what_has_no_area(tmp_path: Path, capsys):
    line = shape([[0, 0], [3, 3]], shape_type="line")
    folder = labelme(tmp_path, shape(SQUARE), line, shape([[9, 9], [12, 9], [12, 12]]))
    run(tmp_path, "labelme", folder, "--background", "ignore", "--classes", "tin", "box")
    said = capsys.readouterr().out
    assert "warning: 1 objects are a line, without an area (left out)" in said
    assert "warning: 1 objects have no pixel in their image (left out)" in said
    assert "1 labels of 2 classes (tin, box)" in said


# ------------------------------------------------------------------ supervisely


def supervisely(root: Path, *objects: dict, **changes) -> Path:
    photograph(root / "in/first/img/a.jpg")
    (root / "in/first/ann").mkdir(exist_ok=True)
    meta = {"classes": [{"title": "tin", "color": "#0A0B0C"}, {"title": "bag", "color": "#FF0000"}]}
    (root / "in/meta.json").write_text(json.dumps(meta))
    value = {"size": {"height": HEIGHT, "width": WIDTH}, "objects": list(objects)}
    (root / "in/first/ann/a.jpg.json").write_text(json.dumps(value | changes))
    return root / "in"


def thing(form: str, exterior=(), interior=(), title="tin", **more) -> dict:
    points = {"exterior": exterior, "interior": interior}
    return {"classTitle": title, "geometryType": form, "points": points, **more}


BITMAP = base64.b64encode(zlib.compress(png([[0, 1, 1]]))).decode()
LARGE = [[0, 0], [4, 0], [4, 4], [0, 4]]


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([thing("polygon", SQUARE)], "000000 011100 011100 011100 000000"),
        ([thing("polygon", LARGE, [SQUARE])], "111110 100010 100010 100010 111110"),
        ([thing("rectangle", [[0, 0], [1, 1]]), thing("rectangle", [[1, 1], [2, 2]], title="bag")],
         "110000 122000 022000 000000 000000"),
        ([thing("bitmap", title="bag", bitmap={"data": BITMAP, "origin": [3, 4]})],
         "000000 000000 000000 000000 000022"),
        ([thing("polygon", SQUARE), thing("line", [[0, 0], [5, 0]])],
         "000000 011100 011100 011100 000000"),
    ],
)  # fmt: skip
def test_supervisely(objects, expected, tmp_path: Path):
    assert run(tmp_path, "supervisely", supervisely(tmp_path, *objects)) == expected.split()
    dataset = build_dataset("folder", tmp_path / "out", split="train")
    assert dataset.pairs == [("images/first/a.jpg", "labels/first/a.png")]
    assert dataset.class_names == ["background", "tin", "bag"]


# ------------------------------------------------------------------ cvat


def cvat(root: Path, inner: str, attributes='name="sub/a.jpg" width="6" height="5"') -> Path:
    photograph(root / "in/images/sub/a.jpg")
    labels = "".join(
        f"<label><name>{name}</name><color>#{colour}</color></label>"
        for name, colour in (("tin", "ff0000"), ("bag", "00ff00"))
    )
    (root / "in/annotations.xml").write_text(
        f"<annotations><meta><task><labels>{labels}</labels></task></meta>"
        f'<image id="0" {attributes}>{inner}</image></annotations>'
    )
    return root / "in"


POLYGON = '<polygon label="tin" points="1,1;3,1;3,3;1,3" z_order="1"/>'
BOX = '<box label="bag" xtl="2" ytl="2" xbr="5" ybr="4" z_order="0"/>'
MASK = '<mask label="bag" rle="1, 2, 1" left="4" top="3" width="2" height="2"/>'


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (POLYGON, "000000 011000 011000 000000 000000"),
        (POLYGON + BOX, "000000 011000 011220 002220 000000"),
        (MASK, "000000 000000 000000 000002 000020"),
        (POLYGON + '<points label="bag" points="1,1"/>', "000000 011000 011000 000000 000000"),
    ],
)
def test_cvat(inner, expected, tmp_path: Path):
    assert run(tmp_path, "cvat", cvat(tmp_path, inner)) == expected.split()
    dataset = build_dataset("folder", tmp_path / "out", split="train")
    assert dataset.pairs == [("images/sub/a.jpg", "labels/sub/a.png")]
    assert dataset.class_names == ["background", "tin", "bag"]


# ------------------------------------------------------------------ pictures


def test_pascal_voc(tmp_path: Path):
    """Indices with the palette of the data set, and the same as colours."""
    ids = np.array([[0, 1, 15], [20, 255, 255]], np.uint8)
    palette = np.zeros((256, 3), np.uint8)
    palette[[1, 15, 20, 255]] = [(128, 0, 0), (192, 128, 128), (0, 64, 128), (224, 224, 192)]
    image = Image.fromarray(ids)
    image.putpalette(palette.tobytes())
    (tmp_path / "in").mkdir()
    for kind in ("P", "RGB"):
        image.convert(kind).save(tmp_path / "in/a.png")
        run(tmp_path, "voc", tmp_path / "in")
        assert np.array_equal(np.array(Image.open(tmp_path / "out/labels/a.png")), ids)
        table = json.loads((tmp_path / "out/classes.json").read_text())
        assert table["classes"][15] == {"id": 15, "name": "person", "color": [192, 128, 128]}
        assert table["ignore"] == [255]
        (tmp_path / "out/labels/a.png").unlink()
        (tmp_path / "out/labels").rmdir()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "1 2 3\ta road\n0 0 255\tsky\n9 9 9 Void\n"),
        ("a.csv", "name,r,g,b\na road,1,2,3\nsky,0,0,255\nVoid,9,9,9\n"),
        ("labelmap.txt",
            "# label:color_rgb:parts:actions\na road:1,2,3::\nsky:0,0,255::\nVoid:9,9,9::\n"),
        ("a.json", json.dumps({"classes": [
            {"id": 5, "name": "a road", "color": [1, 2, 3]},
            {"id": 7, "name": "sky", "color": [0, 0, 255]}], "ignore": [{"id": 4,
                "color": [9, 9, 9]}]})),
    ],
)  # fmt: skip
def test_any_table_of_colours(name, text, tmp_path: Path):
    pixels = np.array([[(1, 2, 3), (0, 0, 255), (9, 9, 9)]], np.uint8)
    fakedata.save(tmp_path / "in/a.png", pixels)
    (tmp_path / name).write_text(text)
    words = ("colours", tmp_path / "in", "--table", tmp_path / name)
    assert run(tmp_path, *words) == ["01."]
    table = json.loads((tmp_path / "out/classes.json").read_text())
    assert [row["name"] for row in table["classes"]] == ["a road", "sky"]
    assert table["classes"][0]["color"] == [1, 2, 3]


def test_binary_masks(tmp_path: Path):
    photograph(tmp_path / "images/a.jpg")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[0, :2] = 255
    fakedata.save(tmp_path / "one/a.png", mask)
    words = ("--images", tmp_path / "images", "--name", "road")
    assert run(tmp_path, "binary", tmp_path / "one", *words)[0] == "110000"
    assert build_dataset("folder", tmp_path / "out", split="train").class_names[1] == "road"
    for name, column in (("tin", 1), ("bag", 2)):
        fakedata.save(tmp_path / f"more/{name}/a.png", np.roll(mask, column, 1) // 255)
    assert run(tmp_path / "b", "binary", tmp_path / "more")[0] == "022100"


def test_masks_that_are_blurred_need_a_threshold(tmp_path: Path):
    fakedata.save(tmp_path / "in/a.png", np.array([[0, 90, 200, 255]], np.uint8))
    with pytest.raises(UserError, match=r"a.png: a mask of 4 values \(0, 90, 200, 255"):
        run(tmp_path, "binary", tmp_path / "in")
    assert run(tmp_path, "binary", tmp_path / "in", "--threshold", "128") == ["0011"]


# ------------------------------------------------------------------ what is refused

BAD = {
    "class": (labelme, [shape(SQUARE)], ["--classes", "bag"],
        "the class 'tin' is not in --classes"),
    "no list": (labelme, [shape("x")], [], r"shapes\[0\].points is"),
    "two corners": (labelme, [shape(SQUARE, shape_type="rectangle")], [],
        "a rectangle of 4 points"),
    "mask": (labelme, [shape([[1, 1]], shape_type="mask", mask="no!")], [],
        "no picture in its mask"),
    "far": (labelme, [shape([[0, 0], [1e7, 0], [0, 1]])], [], "a point lies beyond"),
    "title": (supervisely, [thing("polygon", SQUARE, title="x")], [], "meta.json has no class 'x'"),
    "bitmap": (supervisely, [thing("bitmap")], [], "a bitmap without its data"),
    "zlib": (supervisely, [thing("bitmap", bitmap={"data": "AAAA", "origin": [0, 0]})], [],
        "no picture"),
    "run lengths": (cvat, [MASK.replace('"1, 2', '"2, 2')], [],
        "run lengths of 5 pixels, the mask has 4"),
    "letters": (cvat, [POLYGON.replace("3,3", "3,x")], [], r"object 0 \(tin\): "),
    "odd": (cvat, [POLYGON.replace("3,3", "3")], [], "a polygon of 7 numbers"),
    "side": (cvat, [BOX.replace("xbr", "x")], [], "a box without 'xbr'"),
    "turned": (cvat, [BOX.replace("xtl", 'rotation="9" xtl')], [], "a box that is rotated"),
    "label": (cvat, [BOX.replace("label", "l")], [], "a box without a label"),
    "up": (cvat, ["", 'name="../a.jpg" width="6" height="5"'], [], "leaves the folder"),
    "width": (cvat, ["", 'name="a.jpg" width="x" height="5"'], [], "width is 'x'"),
    "large": (cvat, ["", 'name="a.jpg" width="10000" height="10000"'], [],
        "megapixels are allowed"),
    "missing": (cvat, [POLYGON, 'name="b.jpg" width="6" height="5"'], [],
        "its image .* is missing"),
    "size": (cvat, [POLYGON, 'name="sub/a.jpg" width="7" height="5"'], [],
        "6x5 pixels, .* says 7x5"),
    "broken": (cvat, ["<polygon"], [], "no XML: "),
    "nothing": (cvat, ["", ""], [], "is no name of an image"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name, tmp_path: Path):
    make, given, words, message = BAD[name]
    folder = make(tmp_path, *given)
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, make.__name__, folder, *words)
    assert str(tmp_path / "in") in str(caught.value)
    assert not list(tmp_path.glob("out/*"))


def test_entities_are_not_expanded(tmp_path: Path):
    (tmp_path / "a.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>')
    with pytest.raises(UserError, match=r"a.xml: an XML that defines a document type is not read"):
        run(tmp_path, "cvat", tmp_path / "a.xml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road 1 2 3\nsky 1 2 3\n", r"'sky' or its colour \(1, 2, 3\) stands twice"),
        ("road 1 2 3\nsky 1 2 300\n", "0 to 255 are allowed"),
        ("road 1 2 3\nsky\n", "line 2: a name and three numbers expected"),
        ("road 1 2 3\n", "no table of colours"),
        ("road 1 2 3\nsky 2 2 2\n", r"a.png: label colours outside the class table: \(9, 9, 9\)"),
    ],
)
def test_tables_that_are_refused(text, message, tmp_path: Path):
    fakedata.save(tmp_path / "in/a.png", np.full((2, 2, 3), 9, np.uint8))
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        run(tmp_path, "colours", tmp_path / "in", "--table", tmp_path / "a.txt")
