"""The walk, the matching and the lists: all names that people and systems make."""

import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fakedata
from datasets import build_dataset, facts, loading
from datasets.statistics import class_counts
from datasets.text import read_json, read_list
from datasets.walk import Partners, walk_files
from engine.errors import UserError
from engine.shapes import Either, OneOf, Within
from engine.values import Loading

NFC, NFD = (unicodedata.normalize(form, "Zürich_é") for form in ("NFC", "NFD"))


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def folder(root: Path, *pairs: tuple[str, str]) -> Path:
    """Return a data folder of images/NAME and labels/NAME, all of one size."""
    root.mkdir(parents=True, exist_ok=True)
    fakedata.make_folder(root, splits=())
    for i, (image, label) in enumerate(pairs):
        for name, content in ((f"images/{image}", (8, 8, 3)), (f"labels/{label}", (8, 8))):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            array = np.full(content, 10 * (i % 3 + 1), np.uint8)
            kind = {".jpg": "JPEG", ".jfif": "JPEG"}.get(Path(name).suffix.lower(), "PNG")
            if Path(name).suffix.lower() in (".tif", ".bmp"):
                kind = {".tif": "TIFF", ".bmp": "BMP"}[Path(name).suffix.lower()]
            Image.fromarray(array).save(root / name, format=kind)
    return root


def opened(root: Path, **how):
    return build_dataset("folder", root, split="train", **how)


# ---- the walk


def test_what_is_data_and_what_is_left_out(tmp_path: Path):
    root = touch(
        tmp_path / "x", "b.PNG", "a/2.JpG", "a/10.jfif", "a-b/1.avif", ".hidden.png", "notes.txt",
        ".ipynb_checkpoints/b-checkpoint.png", "a/.thumbs/2.jpg", "README", "a/Thumbs.db", "c.txt",
    )  # fmt: skip
    os.mkfifo(root / "pipe.png")
    os.symlink("nowhere.png", root / "gone.png")
    found = walk_files(root, {".png", ".jpg", ".jfif", ".avif"})
    assert found.files == ["a/10.jfif", "a/2.JpG", "a-b/1.avif", "b.PNG"]  # as pathlib sorts
    assert found.files == [p.as_posix() for p in sorted(map(Path, found.files))]
    assert found.links == 0
    assert found.left_out == Counter(
        {"name with a dot before it": 3, "ending .txt": 2, "name without an ending": 1}
        | {"ending .db": 1, "no regular file": 1, "link to nothing": 1}
    )
    assert walk_files(root, {".png"}, deep=False).files == ["b.PNG"]
    assert walk_files(tmp_path / "missing", {".png"}).files == []


def test_links_are_followed_and_circles_end(tmp_path: Path):
    pool = touch(tmp_path / "pool", "s1/1.png", "s2/2.png", "s2/3.png", "single.png")
    root = touch(tmp_path / "images", "own/0.png")
    os.symlink(pool / "s1", root / "a")
    os.symlink(pool / "s2", root / "own" / "b")
    os.symlink(root, root / "own" / "round")
    os.symlink("..", root / "own" / "up")
    os.symlink(pool / "single.png", root / "one.png")
    found = walk_files(root, {".png"})
    assert found.files == ["a/1.png", "one.png", "own/0.png", "own/b/2.png", "own/b/3.png"]
    assert found.links == 4
    assert found.left_out == {"folder listed already (a link)": 2}


def test_a_linked_folder_of_images_is_used(tmp_path: Path):
    root = folder(tmp_path / "data", *((f"s/{i}.jpg", f"s/{i}.png") for i in range(6)))
    folder(root, ("own.jpg", "own.png"))
    (root / "images/s").rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", root / "images/s")
    dataset = opened(root)
    assert len(dataset) == 7
    assert dataset.links == 6


@pytest.mark.parametrize("name", ["a\tb.png", "a\nb.png", "a\x1bb.png", "fol\nder/b.png"])
def test_names_that_no_list_can_hold_are_refused_at_the_start(name: str, tmp_path: Path):
    root = folder(tmp_path, ("fine.jpg", "fine.png"), (name, name))
    with pytest.raises(UserError, match="no list can hold this name") as caught:
        opened(root)
    assert "\n" not in str(caught.value)


def test_bytes_of_names_are_kept(tmp_path: Path):
    root = folder(tmp_path, ("a.png", "a.png"))
    for kind in ("images", "labels"):
        latin = os.fsencode(root / kind) + b"/Stra\xdfe.png"
        os.rename(root / kind / "a.png", latin)
    dataset = opened(root, num_images=1)
    assert os.fsencode(dataset.pairs[0][0]) == b"images/Stra\xdfe.png"
    assert dataset[0]["label"].shape == (8, 8)


# ---- matching


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("A.JPG", "A.PNG"),
        ("a.jpg", "a.tif"),
        ("a.jpg", "a.bmp"),
        ("x_color.png", "x_color.png"),
        ("a.b.c.png", "a.b.c.png"),
        ("a.jfif", "a.png"),
        (f"{NFC}.jpg", f"{NFD}.png"),
        (f"{NFD}/{NFC}.jpg", f"{NFC}/{NFD}.PNG"),
        ("with blank.jpg", "with blank.png"),
        ("no\u00a0break.jpg", "no\u00a0break.png"),
        ("sub/日本.jpg", "sub/日本.png"),
    ],
)
def test_partners(image: str, label: str, tmp_path: Path):
    dataset = opened(folder(tmp_path, (image, label)))
    assert dataset.pairs == [(f"images/{image}", f"labels/{label}")]
    assert dataset[0]["label"].shape == (8, 8)


def test_what_is_no_partner(tmp_path: Path):
    for image, label in (("a.jpg", "A.png"), ("a.jpg", "a.jpg"), ("b/a.jpg", "a.png")):
        root = folder(tmp_path / f"{image}{label}".replace("/", "_"), (image, label))
        with pytest.raises(UserError, match="no such label, of image"):
            opened(root)


def test_two_labels_of_one_image_are_an_error(tmp_path: Path):
    root = folder(tmp_path, ("a.jpg", "a.png"))
    Image.new("L", (8, 8)).save(root / "labels/a.tif")
    with pytest.raises(UserError, match=r"labels: a.png and a.tif have one stem"):
        opened(root)


def test_two_images_of_one_label_are_an_error(tmp_path: Path):
    root = folder(tmp_path, (f"{NFC}.png", f"{NFC}.png"), (f"{NFD}.png", f"{NFC}.png"))
    with pytest.raises(UserError, match="has the same label as"):
        opened(root)


@pytest.mark.parametrize(
    ("name", "make", "image", "label"),
    [
        ("gta5", fakedata.make_gta5, "images/00001.png", "labels/00001.png"),
        ("synthia", fakedata.make_synthia, "RGB/0000001.png", None),
        ("camvid", fakedata.make_camvid, "train/0006R0_f00930.png", "trainannot/0006R0_f00930.png"),
        ("cyclegta", fakedata.make_cyclegta, "images_translated/00001.jpg", "labels/00001.png"),
    ],
)
def test_every_layout_takes_other_endings(name, make, image, label, tmp_path: Path):
    root = make(tmp_path)
    Image.open(root / image).save((root / image).with_suffix(".TIF"), format="TIFF")
    (root / image).unlink()
    if label:
        Image.open(root / label).save((root / label).with_suffix(".tiff"))
        (root / label).unlink()
    split = "day_train" if name == "camvid" else "train"
    dataset = build_dataset(name, root, split=split)
    index = [pair[0] for pair in dataset.pairs].index(str(Path(image).with_suffix(".TIF")))
    assert dataset[index]["label"].shape == dataset[index]["image"].shape[1:]


def test_a_hundred_thousand_images_are_listed_and_matched_soon(tmp_path: Path):
    """Two seconds of processor time each were asked for; one minute is what a test may ask."""
    import time

    count = 20_000
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for i in range(count):
            os.mknod(tmp_path / kind / f"frame_{i:06d}.png")
    start = time.process_time()
    found = walk_files(tmp_path / "images", {".png"})
    partners = Partners(tmp_path, {".png"})
    assert len(found.files) == count
    assert all(partners.find(f"labels/{path}") for path in found.files)
    assert time.process_time() - start < 60


# ---- lists


def gta5(tmp_path: Path) -> Path:
    return fakedata.make_gta5(tmp_path / "gta5", n=2, size=(8, 8))


PAIRS = [(f"images/0000{i}.png", f"labels/0000{i}.png") for i in (1, 2)]


@pytest.mark.parametrize(
    "text",
    [
        "images/00001.png labels/00001.png\nimages/00002.png labels/00002.png\n",
        "\ufeffimages/00001.png labels/00001.png\r\nimages/00002.png labels/00002.png",
        "images\\00001.png labels\\00001.png\r\nimages\\00002.png labels\\00002.png\r\n",
        "/images/00001.png /labels/00001.png\n/images/00002.png /labels/00002.png\n",
        "ROOT/images/00001.png ROOT/labels/00001.png\nROOT/images/00002.png ROOT/labels/00002.png",
        "LINK/images/00001.png LINK/labels/00001.png\nimages/00002.png labels/00002.png\n",
        "/gone/SegNet/images/00001.png /gone/SegNet/labels/00001.png\n"
        "/gone/SegNet/images/00002.png /gone/SegNet/labels/00002.png\n",
        "C:\\data\\images\\00001.png C:\\data\\labels\\00001.png\r\n"
        "C:\\data\\images\\00002.png C:\\data\\labels\\00002.png\r\n",
        "00001.png\n00002.png\n",
        "images/00001.png\nimages/00002.png\n",
        "./images//00001.png\tlabels/./00001.png\n \t \nimages/00002.png\tlabels/00002.png\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lists_of_all_kinds(text: str, encoding: str, tmp_path: Path):
    root = gta5(tmp_path)
    os.symlink(root, tmp_path / "link")
    text = text.replace("ROOT", str(root)).replace("LINK", str(tmp_path / "link"))
    (tmp_path / "list.txt").write_bytes(
        text.removeprefix("\ufeff" * (encoding != "utf-8")).encode(encoding)
    )
    dataset = build_dataset("gta5", root, split="train", list_file=tmp_path / "list.txt")
    assert dataset.pairs == PAIRS
    unlabelled = build_dataset(
        "gta5", root, split="train", list_file=tmp_path / "list.txt", labelled=False
    )
    assert unlabelled.pairs == [(image, None) for image, _ in PAIRS]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"/etc/passwd labels/00001.png\n", "line 1: '/etc/passwd' leaves the data folder"),
        (b"/gone/1.png labels/00001.png\n", "line 1: '/gone/1.png' leaves the data folder"),
        (b"images\\..\\..\\x.png labels/00001.png\n", "leaves the data folder"),
        (b"/gone/images/00001.png\n/other/images/00002.png\n", "line 2: no such file: /other/im"),
        (b"images/00001.png " + b"x" * 9000, "line 1: 9017 characters; 8192 at most"),
        ("imäges/1.png".encode("latin-1"), "cannot read this list: byte 0xe4 at 2 is not UTF-8"),
        ("images/1.png".encode("utf-16-le"), "cannot read this list: it holds zero bytes"),
        ("images/1.png".encode("utf-32"), "cannot read this list: its mark says UTF-32"),
        (b"images/00001.png labels/00001.png 7\n", "line 1: 3 fields"),
    ],
)
def test_lists_that_are_refused(content: bytes, message: str, tmp_path: Path):
    root = gta5(tmp_path)
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"list.txt.*({message})"):
        build_dataset("gta5", root, split="train", list_file=tmp_path / "list.txt")


def test_a_pipe_in_place_of_a_list_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(UserError, match="cannot read this list: not a regular file"):
        build_dataset("gta5", gta5(tmp_path), split="train", list_file=tmp_path / "list.txt")


def test_a_list_separates_at_blanks_and_line_feeds_alone(tmp_path: Path):
    """A no-break space, a line separator or a next line is a character of a name."""
    names = ["a\u00a0b.png", "a\u2028b.png", "a\u0085b.png", "a\u3000b.png"]
    (tmp_path / "list.txt").write_text("".join(f"{name} l/{name}\n" for name in names))
    assert read_list(tmp_path / "list.txt") == [
        (i, [name, f"l/{name}"]) for i, name in enumerate(names, start=1)
    ]


def test_one_column_lists_of_cityscapes(tmp_path: Path):
    """As AdaptSegNet ships them: aachen/aachen_000000_000019_leftImg8bit.png."""
    root = fakedata.make_cityscapes(tmp_path / "cityscapes")
    walked = build_dataset("cityscapes", root, split="val")
    names = [image.removeprefix("leftImg8bit/val/") for image, _ in walked.pairs]
    (tmp_path / "val.txt").write_text("\n".join(names))
    listed = build_dataset("cityscapes", root, split="val", list_file=tmp_path / "val.txt")
    assert listed.pairs == walked.pairs
    other = build_dataset("cityscapes", root, split="any", list_file=tmp_path / "val.txt")
    assert {image for image, _ in other.pairs} <= {
        f"leftImg8bit/{split}/{name}" for split in ("train", "val") for name in names
    }


def test_one_column_lists_of_an_own_folder(tmp_path: Path):
    root = folder(tmp_path / "x", ("a.JPG", "a.PNG"), (f"{NFD}.jpg", f"{NFC}.png"))
    (tmp_path / "list.txt").write_text(f"a.JPG\nimages/{NFC}.jpg\n")
    dataset = opened(root, list_file=tmp_path / "list.txt")
    assert dataset.pairs == [
        ("images/a.JPG", "labels/a.PNG"),
        (f"images/{NFD}.jpg", f"labels/{NFC}.png"),
    ]
    (root / "loose.jpg").write_bytes((root / "images/a.JPG").read_bytes())
    (tmp_path / "list.txt").write_text("loose.jpg\n")
    with pytest.raises(UserError, match=r"loose.jpg: only images in .*images"):
        opened(root, list_file=tmp_path / "list.txt")


# ---- JSON


@pytest.mark.parametrize(
    ("text", "shape", "fault"),
    [
        ('{"a": 1, "b": [2, 3.5]}', {"a": int, "b": [float]}, None),
        ('{"a": 1}', {"a": int, "b?": str}, None),
        ('{"a": 1, "z": {}}', {"a": int, ...: object}, None),
        ("[1, 2, 3]", (int, int, int), None),
        ('"x"', Either(int, str), None),
        ('{"a": true}', {"a": int}, "a is true; a whole number expected"),
        ('{"a": 1.0}', {"a": int}, "a is 1.0; a whole number expected"),
        (
            '{"b": {"c": [1, "x"]}}',
            {"b": {"c": [int]}},
            r'b.c\[1\] is "x"; a whole number expected',
        ),
        ("{}", {"a": int}, "the file lacks 'a'"),
        ('{"a": 1, "z": 2}', {"a": int}, "the file has an unknown 'z'; known: a"),
        (
            "[1, 2]",
            (int, int, int),
            r"the file is \[1, 2\]; a list of a whole number \(3 of them\)",
        ),
        (
            "null",
            Either(int, [str]),
            "the file is null; a whole number or a list of a text expected",
        ),
        ('{"a": NaN}', {"a": float}, "NaN is no number"),
        ('{"a": 1e999}', {"a": float}, "a is Infinity; a number expected"),
        ('{"a": 1, "a": 2}', {"a": int}, "'a' stands twice in one object"),
        ("5", [int], "the file is 5; a list of a whole number expected"),
        ("[3, -1]", [Within(0, 9)], r"\[1\] is -1; a whole number from 0 to 9 expected"),
        ("[true]", [Within(0)], r"\[0\] is true; a whole number from 0 expected"),
        ('"GRB"', OneOf("RGB", "BGR"), 'the file is "GRB"; one of RGB, BGR expected'),
        ("[null, 3]", [Either(None, int)], None),
        ("[" * 100_000, [int], "nested too deeply"),
        ('{"a":' * 100_000, {"a": dict}, "nested too deeply"),
        ("1" * 5000, int, "Exceeds the limit"),
    ],
)
def test_json_of_a_shape(text: str, shape: object, fault: str | None, tmp_path: Path):
    path = tmp_path / "x.json"
    path.write_text(text)
    if fault is None:
        read_json(path, shape)
    else:
        with pytest.raises(UserError, match=f"^{path}: .*{fault}"):
            read_json(path, shape)


# ---- what is said before the first step


def test_facts_are_what_the_folder_holds(tmp_path: Path):
    root = folder(tmp_path / "data", ("a.jpg", "a.png"), ("b.jpg", "b.png"), ("c.jpg", "c.png"))
    touch(root / "images", "notes.txt", "x.heic", ".DS_Store")
    os.symlink(root / "images/a.jpg", root / "images/d.jpg")
    Image.fromarray(np.array([[10, 40], [40, 20]], np.uint8)).save(root / "labels/d.png")
    Image.new("RGB", (2, 2)).save(root / "images/a.jpg")
    Image.fromarray(np.full((2, 2), 10, np.uint8)).save(root / "labels/a.png")
    (root / "labels/c.png").write_bytes((root / "labels/b.png").read_bytes())
    touch(root / "labels", "e.png", "f.png", "notes.txt")
    dataset = opened(root)
    (found,) = facts.dataset_facts(dataset, class_counts(dataset, tmp_path, Loading()))
    assert found == facts.Facts(
        name="folder train",
        images=4,
        links=1,
        left_out={
            "ending .txt": 1,
            "ending .heic": 1,
            "name with a dot before it": 1,
            "labels without an image": 2,
        },
        sizes={(2, 2): 2, (8, 8): 2},
        looked_at=4,
        num_classes=3,
        missing=["water"],
        ignored=2 / (4 + 4 + 64 + 64),
    )
    assert found.line() == (
        "folder train: 4 images (1 through links); 2x2, 8x8; left out: 2 labels without an image, "
        "1 ending .heic, 1 ending .txt, 1 name with a dot before it; "
        "labels hold 2 of 3 classes (none: water); "
        "1.5 % of the pixels ignored"
    )


def test_facts_of_several_datasets(tmp_path: Path):
    drawn = build_dataset("streets", None, split="val", num_images=2)
    joined = loading.join_datasets(
        [drawn, build_dataset("streets", None, split="train", num_images=3)]
    )
    first, second = facts.dataset_facts(joined)
    assert (first.images, second.images, first.missing) == (2, 3, None)
    assert first.line() == "streets val: 2 images; 160x96"
