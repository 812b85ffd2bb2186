"""Every augmentation drawn on the user's image, and the page that lists them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import UserError
from tools import augment_table, sheet
from training.augment import AUGMENTATIONS


@pytest.fixture
def street(tmp_path: Path) -> list[str]:
    """Return the words of an image of 90x60 and its label."""
    rng = np.random.default_rng(0)
    ids = np.kron(rng.integers(0, 5, (6, 9)), np.ones((10, 10))).astype(np.uint8)
    ids[:5] = 255
    Image.fromarray(ids).save(tmp_path / "label.png")
    pixels = np.stack([ids % 250 * 40, 200 - ids % 250 * 40, ids // 2], -1)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "street.png")
    return [str(tmp_path / "street.png"), "--label", str(tmp_path / "label.png")]


def run(*words: str) -> None:
    sheet.main(sheet.parse_args([*words]))


def test_every_word_is_a_tile(street: list[str], tmp_path: Path, monkeypatch, capsys):
    drawn = []
    draw = sheet.draw
    monkeypatch.setattr(sheet, "draw", lambda tiles, n: drawn.extend(tiles) or draw(tiles, n))
    run(*street, "--size", "60", "--columns", "5", "--save", str(tmp_path / "new/sheet.png"))
    titles = [title.split("=")[0] for title, _ in drawn]
    assert titles == ["as it is", *AUGMENTATIONS]
    rows = -(-len(titles) // 5)
    with Image.open(tmp_path / "new/sheet.png") as image:
        assert image.size == (5 * (60 + sheet.GAP), rows * (2 * (40 + sheet.GAP) + sheet.TITLE))
        assert len(image.getcolors(1 << 20)) > 200
    assert f"{len(AUGMENTATIONS)} words" in capsys.readouterr().out
    run(street[0], "--size", "30", "--save", str(tmp_path / "images.png"))
    assert "classmix and copy_paste are left out" in capsys.readouterr().out


def test_words_are_those_of_training(street: list[str], tmp_path: Path):
    """A tile of a vertical flip is the image upside down, its label too."""
    path = tmp_path / "two.png"
    run(*street, "--size", "90", "--augment", "vflip", "rotate=5 p=0", "--save", str(path))
    pixels = np.array(Image.open(path))
    tiles = [pixels[:, i * (90 + sheet.GAP) :][:, :90] for i in range(3)]
    image, flipped = (tile[sheet.TITLE :][:60] for tile in tiles[:2])
    label, turned = (tile[sheet.TITLE + 60 + sheet.GAP :][:60] for tile in tiles[:2])
    assert np.abs(image[::-1].astype(int) - flipped).max() <= 1
    assert (label[::-1] == turned).all()
    assert (label[:5] == 0).all()
    assert (tiles[2][sheet.TITLE :] == tiles[0][sheet.TITLE :]).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--save", "x.jpg"], "--save x.jpg: the sheet is a PNG"),
        (["--save", "x.png", "--augment", "twirl"], "no augmentation 'twirl'"),
        (["--save", "x.png", "--target", "none.png"], "none.png"),
    ],
)
def test_mistakes_are_one_line(street: list[str], words: list[str], message: str, monkeypatch):
    monkeypatch.chdir(Path(street[0]).parent)
    with pytest.raises(UserError, match=message) as error:
        run(*street, "--size", "30", *words)
    assert "\n" not in str(error.value)
    assert not Path("x.png").exists()


def test_a_label_of_another_size_and_a_sheet_over_the_image_are_refused(street: list[str]):
    folder = Path(street[0]).parent
    Image.new("L", (90, 61)).save(folder / "other.png")
    with pytest.raises(UserError, match=r"other.png: 90x61 pixels, its image has 90x60"):
        run(street[0], "--label", str(folder / "other.png"), "--save", str(folder / "x.png"))
    before = Path(street[0]).read_bytes()
    with pytest.raises(UserError):
        run(*street, "--save", street[0])
    assert Path(street[0]).read_bytes() == before


def test_the_page_lists_what_there_is():
    page = augment_table.PAGE.read_text()
    assert augment_table.page_with(page, augment_table.table()) == page
    for name in AUGMENTATIONS:
        assert f"| `{name}` | " in page
