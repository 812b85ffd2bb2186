"""COCO's annotations become label maps: what is painted, and what is refused by name."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fakedata
from datasets import build_dataset, coco, outlines
from datasets.coco import CocoFile
from engine.errors import UserError
from tools import coco_to_masks

SIZE = (6, 5)  # width, height


def box(left: int, top: int, right: int, bottom: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(number: int, segmentation, category: int = 7, **more) -> dict:
    return {
        "id": number, "image_id": 1, "category_id": category, "segmentation": segmentation, **more
    }  # fmt: skip


def document(*annotations: dict, **changes) -> dict:
    images = [{"id": 1, "file_name": "a.jpg", "width": SIZE[0], "height": SIZE[1]}]
    categories = [
        {"id": 9, "name": "tin", "supercategory": "metal"},
        {"id": 7, "name": "bag", "supercategory": "plastic"},
        {"id": 8, "name": "Background", "supercategory": "none"},
    ]
    return {
        "info": {"year": 2020, "text": "é"},
        "images": images,
        "categories": categories,
        "annotations": list(annotations),
        **changes,
    }


def convert(folder: Path, value: dict | str | bytes, *words: str) -> np.ndarray:
    """Write a file, convert it to folder/out, and return the label of a.jpg."""
    path = folder / "coco.json"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    arguments = [str(path), "--save", str(folder / "out"), *words]
    coco_to_masks.main(coco_to_masks.parse_args(arguments))
    return np.array(Image.open(next((folder / "out/labels").rglob("a.png"))))


def rows(label: np.ndarray) -> list[str]:
    return ["".join("." if value == 255 else str(value) for value in row) for row in label]


def run_lengths(*places: tuple[int, int], text: bool = False) -> dict:
    """Return the segmentation of some pixels, (row, column)."""
    mask = np.zeros(SIZE[::-1], bool)
    mask[tuple(zip(*places, strict=True))] = True
    counts = outlines.counts_of(mask)
    return {
        "size": list(mask.shape),
        "counts": outlines.compressed(counts) if text else counts.tolist(),
    }


LARGE, SMALL = annotation(1, [box(0, 0, 5, 3)], 9), annotation(2, [box(1, 1, 3, 2)], 7)


@pytest.mark.parametrize(
    ("annotations", "words", "expected"),
    [
        ([LARGE, SMALL], "", "222220 211220 222220 000000 000000"),
        ([SMALL, LARGE], "", "222220 222220 222220 000000 000000"),
        ([SMALL, LARGE], "--order area", "222220 211220 222220 000000 000000"),
        # a hole is painted later, as the background
        ([LARGE, annotation(3, [box(1, 1, 3, 2)], 8)], "", "222220 200220 222220 000000 000000"),
        # the parts of one are joined
        ([annotation(1, [box(0, 0, 3, 2), box(2, 1, 4, 3)])], "",
         "111000 111100 001100 000000 000000"),
        ([annotation(1, box(0, 0, 3, 1))], "", "111000 000000 000000 000000 000000"),
        ([annotation(1, run_lengths((4, 0), (0, 1)))], "", "010000 000000 000000 000000 100000"),
        ([annotation(1, run_lengths((2, 3), text=True))], "", "000000 000000 000100 000000 000000"),
        ([annotation(1, [box(4, 3, 99, 99)])], "", "000000 000000 000000 000011 000011"),
        ([SMALL], "--background ignore", "...... .00... ...... ...... ......"),
        ([LARGE, SMALL | {"iscrowd": 1}], "--crowds paint", "222220 211220 222220 000000 000000"),
        ([LARGE, SMALL | {"iscrowd": 1}], "--crowds ignore", "222220 2..220 222220 000000 000000"),
        ([LARGE, SMALL | {"iscrowd": 1}], "--crowds skip", "222220 222220 222220 000000 000000"),
        ([LARGE, SMALL], "--by supercategory", "333330 311330 333330 000000 000000"),
        ([], "", "000000 000000 000000 000000 000000"),
    ],
)  # fmt: skip
def test_what_is_painted(annotations, words, expected, tmp_path: Path):
    assert rows(convert(tmp_path, document(*annotations), *words.split())) == expected.split()


def test_the_folder_is_a_data_set(tmp_path: Path, capsys):
    """With its images beside it, of two splits; the class table is the same for both."""
    for name in ("a.jpg", "sub dir/ü.jpg"):
        fakedata.save(tmp_path / "photographs" / name, np.zeros((*SIZE[::-1], 3), np.uint8))
    images = document()["images"]
    more = {"id": "two", "file_name": "./sub dir\\ü.jpg", "width": SIZE[0], "height": SIZE[1]}
    value = document(SMALL, images=[*images, more])
    words = ["--images", str(tmp_path / "photographs"), "--split"]
    convert(tmp_path, value, *words, "train")
    coco_to_masks.main(coco_to_masks.parse_args(
        [str(tmp_path / "coco.json"), "--save", str(tmp_path / "out"), *words, "val"]
    ))  # fmt: skip
    said = capsys.readouterr().out
    assert "warning: 1 images have no annotation" in said
    assert "2 labels of 3 classes" in said
    assert "bag    3.333 %  1" in said
    for split in ("train", "val"):
        dataset = build_dataset("folder", tmp_path / "out", split=split)
        assert dataset.class_names == ["background", "bag", "tin"]
        assert [pair[1] for pair in dataset.pairs] == [
            f"labels/{split}/a.png", f"labels/{split}/sub dir/ü.png"
        ]  # fmt: skip
        assert dataset[0]["label"].tolist()[1] == [0, 1, 1, 0, 0, 0]
    assert not list((tmp_path / "out").glob(".segshift*"))


@pytest.mark.parametrize(
    ("segmentation", "counted"),
    [
        ([box(9, 0, 12, 3)], "1 annotations lie outside their image (left out)"),
        ([box(1, 1, 1, 1)], "1 annotations have no area (left out)"),
        ([[1, 1, 4, 1]], "1 annotations have no area (left out)"),
        ([[]], "1 annotations have no area (left out)"),
        ([], "1 annotations have no segmentation (left out)"),
        (None, "1 annotations have no segmentation (left out)"),
        ({"size": [5, 6], "counts": [30]}, "1 annotations have run lengths without a pixel"),
    ],
)
def test_what_is_legal_and_useless_is_counted(segmentation, counted, tmp_path: Path, capsys):
    label = convert(tmp_path, document(annotation(1, segmentation)))
    assert not label.any()
    assert f"warning: {counted}" in capsys.readouterr().out


def test_doubtful_ids_are_counted(tmp_path: Path, capsys):
    value = document(SMALL, SMALL, SMALL | {"image_id": 5, "id": 4})
    assert convert(tmp_path, value).any()
    said = capsys.readouterr().out
    assert "warning: 1 annotations have the id of one before (all are painted)" in said
    assert "warning: 1 annotations are of images that the file lacks (left out)" in said


def image(**changes) -> list[dict]:
    return [document()["images"][0] | changes]


BAD = {
    "unknown category": (document(annotation(4, [], 5)),
        r"annotations\[0\] \(id 4\): there is no category 5"),
    "no category": (document({"id": 4, "image_id": 1}), r"annotations\[0\] lacks 'category_id'"),
    "image twice": (document(images=image() * 2), r"images\[1\]: the image id 1 stands twice"),
    "category twice": (
        document(categories=document()["categories"] + [{"id": 7, "name": "x"}]),
        r"categories\[3\]: the category id 7 stands twice",
    ),
    "one label": (
        document(images=image() + image(id=2, file_name="a.png")),
        "'a.jpg' and 'a.png' would have the same label",
    ),
    "two names": (
        document(categories=[{"id": 1, "name": "x"}, {"id": 2, "name": "x"}]),
        "two categories have the name 'x'",
    ),
    "many categories": (
        document(categories=[{"id": i, "name": str(i)} for i in range(254)]),
        "255 classes; 2 to 254"
    ),
    "up": (document(images=image(file_name="../a.jpg")),
        r"images\[0\]: the name '../a.jpg' leaves"),
    "inner up": (document(images=image(file_name="b/../../a.jpg")), "leaves the folder"),
    "windows up": (document(images=image(file_name="b\\..\\a.jpg")), "leaves the folder"),
    "root": (document(images=image(file_name="/etc/a.jpg")), "leaves the folder"),
    "drive": (document(images=image(file_name="C:\\a.jpg")), "leaves the folder"),
    "dots": (document(images=image(file_name="./")), "is no name of an image"),
    "hidden": (document(images=image(file_name=".a.jpg")), "is no name of an image"),
    "feed": (document(images=image(file_name="a\n.jpg")), "is no name of an image"),
    "surrogate": (json.dumps(document(images=image(file_name="\ud800.jpg"))), "no file can have"),
    "long": (document(images=image(file_name="a" * 251)), "no file can have the name"),
    "megapixels": (
        document(images=image(width=10000, height=10000)),
        r"images\[0\] \(a.jpg\): 10000x10000 pixels; 1 to 89.5 megapixels",
    ),
    "no height": (document(images=image(height=0)),
        r"images\[0\].height is 0; a whole number from 1"),
    "half": (document(images=image(height=2.5)), "height is 2.5"),
    "size": (
        document(annotation(4, {"size": [6, 5], "counts": [30]})),
        r"annotations\[0\] \(id 4\): run lengths of 5x6 pixels, its image has 6x5",
    ),
    "sum": (document(annotation(4, {"size": [5, 6], "counts": [31]})), "run lengths of 31 pixels"),
    "below 0": (document(annotation(4, {"size": [5, 6], "counts": [-1, 31]})),
        "segmentation.counts"),
    "letters": (document(annotation(4, {"size": [5, 6], "counts": "~~"})), "'~' in compressed"),
    "odd": (document(annotation(4, [[1, 2, 3]])), r"\(id 4\): a polygon of 3 numbers"),
    "text": (document(annotation(4, [["1", 2, 3, 4]])), "a polygon of "),
    "deep": (document(annotation(4, [[[1, 2], [3, 4]]])), "a polygon of "),
    "far": (document(annotation(4, [[1, 2, 1e9, 4, 5, 6]])), "beyond 1e[+]08 pixels"),
    "infinite": (json.dumps(document(annotation(4, [[1, 2, 1, 4, 5, 7]]))).replace("7]", "1e999]"),
        "beyond"),
    "number": (document(annotation(4, 5)), "a segmentation of 5"),
    "crowd": (document(annotation(4, [], iscrowd=3)), "iscrowd is 3"),
    "no images": (document(images=[]), "no images"),
    "no lists": ({"a": 1}, r"no images \(its lists: none\)"),
    "a list": ("[1, 2]", "'\\[' where '{' is expected"),
    "nothing": ("", "no JSON at byte 0: it ends early"),
    "cut": (json.dumps(document(SMALL))[:-30], "no JSON at byte"),
    "two": (json.dumps(document()) + "{}", "more than one object"),
    "comma": ('{"info": [1,]}', "a comma before ']'"),
    "key twice": ('{"a": [], "a": []}', "\"a\" is no key, or stands twice"),
    "inner key twice": ('{"images": [{"id": 1, "id": 2}]}', "'id' stands twice"),
    "NaN": ('{"images": [{"id": NaN}]}', "NaN is no number"),
    "nested": ('{"images": [' + "[" * 10**5, "no JSON at byte|nested too deeply"),
    "latin-1": (json.dumps(document(), ensure_ascii=False).encode("latin-1"),
        "byte 0xe9 at 33 is not UTF-8"),
    "utf-16": (json.dumps(document()).encode("utf-16"), "no JSON at byte 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name, tmp_path: Path):
    value, message = BAD[name]
    with pytest.raises(UserError, match=message) as caught:
        convert(tmp_path, value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*"))


def test_images_are_looked_at(tmp_path: Path):
    words = ["--images", str(tmp_path / "photographs")]
    with pytest.raises(UserError, match="photographs: no such folder"):
        convert(tmp_path, document(), *words)
    fakedata.save(tmp_path / "photographs/b.jpg", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(UserError, match=r"a.jpg: no such image.*--skip-missing leaves it out"):
        convert(tmp_path, document(), *words)
    with pytest.raises(UserError, match="none of the images"):
        convert(tmp_path, document(), *words, "--skip-missing")
    value = document(images=image(file_name="b.jpg") + image(id=2))
    with pytest.raises(UserError, match=r"b.jpg: 5x6 pixels, .*json says 6x5 \(turned"):
        convert(tmp_path, value, *words)
    assert not (tmp_path / "out").exists()


def test_images_that_are_in_place_stay(tmp_path: Path):
    path = tmp_path / "out/images/a.jpg"
    fakedata.save(path, np.zeros((*SIZE[::-1], 3), np.uint8))
    number = path.stat().st_ino
    convert(tmp_path, document(SMALL), "--images", str(tmp_path / "out/images"))
    assert path.stat().st_ino == number
    assert len(build_dataset("folder", tmp_path / "out", split="train")) == 1
    (tmp_path / "out/labels").rename(tmp_path / "before")
    (tmp_path / "out/images").rename(tmp_path / "elsewhere")
    path.parent.mkdir()
    with pytest.raises(UserError, match="images exists already: give another folder"):
        convert(tmp_path, document(SMALL), "--images", str(tmp_path / "elsewhere"))


def test_another_conversion_is_not_replaced(tmp_path: Path):
    convert(tmp_path, document(SMALL))
    with pytest.raises(UserError, match="labels exists already, of another conversion"):
        convert(tmp_path, document())
    with pytest.raises(UserError, match="holds labels without splits"):
        convert(tmp_path, document(), "--split", "val")
    (tmp_path / "out/labels").rename(tmp_path / "out/before")
    with pytest.raises(UserError, match=r"classes.json has other classes"):
        convert(tmp_path, document(), "--by", "supercategory")
    (tmp_path / "out/images/train").mkdir(parents=True)
    with pytest.raises(UserError, match="train exists: give --split"):
        convert(tmp_path, document())


def test_any_block_size_reads_the_same(tmp_path: Path, monkeypatch):
    """A value that ends where a block does may go on in the next one."""
    value = json.dumps(document(SMALL, year=12345), ensure_ascii=False, indent=1)
    (tmp_path / "coco.json").write_text("\ufeff" + value)
    expected = list(coco.Pieces(tmp_path / "coco.json"))
    assert [piece.list for piece in expected] == ["images"] + ["categories"] * 3 + ["annotations"]
    for size in (1, 2, 7, 64):
        monkeypatch.setattr(coco, "BLOCK_BYTES", size)
        assert list(coco.Pieces(tmp_path / "coco.json")) == expected


def test_memory_does_not_grow_with_the_polygons(tmp_path: Path):
    path, corners = tmp_path / "coco.json", box(1, 1, 4, 4) * 151
    value = document(*(annotation(i, [corners]) for i in range(2500)))
    path.write_text(json.dumps(value))
    del value
    tracemalloc.start()
    file = CocoFile(path)
    for entry in file.entries:
        entry = entry._replace(annotations=entry.annotations[:20])
        assert len(list(file.objects(entry))) == 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 7e6
    assert peak < 4.5e6
