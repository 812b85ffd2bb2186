"""The page of predictions in a real browser, opened from disk."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from browser import Browser
from inference.calibration import Calibration
from inference.metrics import ConfusionMatrix
from inference.page import assemble
from inference.page.gathering import Gathering, unpacked
from inference.page.report import SCRIPTS, STYLES, Part, join

EVIL = "</script><img src=x onerror='window.hurt=1'>"
CLASSES = ["road", "a \"quoted\" 'class' & more", "<script>window.hurt=1</script>", EVIL]
PALETTE = [(128, 64, 128), (0, 0, 200), (200, 0, 0), (0, 160, 0)]
IMAGES = 12
H, W = 48, 64
pytestmark = pytest.mark.xdist_group("browser")


PAINT = "return performance.getEntriesByName('first-contentful-paint')[0].startTime"


def drawn(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and prediction: columns of classes; `number` rows of each are wrong."""
    truth = np.repeat(np.arange(4, dtype=np.uint8), W // 4)[None].repeat(H, 0)
    pred = truth.copy()
    pred[:number, :16] = 1 if number % 2 else 2  # road taken for class 1 or 2
    truth[-8:] = 255
    return truth, pred


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of two networks, the second of which errs twice as much, and an unlabelled image."""
    root = tmp_path_factory.mktemp("report")
    for k in (0, 1):
        sure_right = Calibration(len(CLASSES))
        with Gathering(root / str(k), CLASSES, PALETTE) as part:
            for number in range(IMAGES):
                truth, pred = map(torch.from_numpy, drawn(number * (k + 1)))
                name = f"{EVIL}.jpg" if number == 5 else f'a folder/it\'s "{number:02d}".jpg'
                label = None if number == IMAGES - 1 else truth
                sure = torch.full((H, W), 0.9 - number / 20)
                photograph = Image.new("RGB", (W, H), (120, 130, 140))
                part.add((number, name), lambda one=photograph: one, pred, label, sure)
                sure_right.update(pred[None], sure[None], truth[None])
        sure_right.add_up_processes()
        more = sure_right.summary(CLASSES)
        part.finish(f"net <b>{k}</b>", {"checkpoint": EVIL}, more=more)
    join([Part.read(root / str(k)) for k in (0, 1)], root / "page")
    return root / "page"


@pytest.fixture(scope="module")
def one_browser():
    browser = Browser()
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(one_browser, report):
    """The page in a wide window; nothing may be complained of or asked of the network."""
    one_browser.complaints(), one_browser.requests()
    one_browser.open(report / "index.html")
    yield one_browser
    assert one_browser.complaints() == []
    assert one_browser.requests() <= {"file", "data", "about", "blob"}
    assert one_browser.run("return window.hurt") is None


def names(browser) -> list[int]:
    """Return the numbers of the images in the list, in its order."""
    return browser.run("return state.order.map((image) => image.number)")


def opened(browser, number: int = 0) -> None:
    browser.run(f"openViewer({number})")
    browser.until("document.querySelector('.panes canvas')")


def pixel(browser, pane: str, x: int, y: int) -> list[int]:
    """Return the colour that a pane's canvas has there."""
    return browser.run(
        "const c = document.querySelector(`.${arguments[0]} canvas`).getContext('2d');"
        "return [...c.getImageData(arguments[1], arguments[2], 1, 1).data]",
        pane, x, y,
    )  # fmt: skip


def test_it_opens_from_disk_and_names_are_text(browser):
    browser.until("performance.getEntriesByName('first-contentful-paint').length")
    paint = browser.run(PAINT)
    print(f"first paint {paint:.0f} ms")
    browser.until("[...document.images].every((i) => i.complete && i.naturalWidth)")
    assert browser.texts("#scores [data-pick]") == CLASSES
    assert browser.texts("#scores thead th")[1:3] == ["net <b>0</b>", "net <b>1</b>"]
    assert any(EVIL in text for text in browser.texts(".card"))
    for card in browser.run("return [...document.querySelectorAll('.card')]"):
        assert browser.run("return arguments[0].querySelectorAll('img').length", card) == 3
    options = browser.texts("#sort option")
    assert f"IoU of {EVIL}" in options
    opened(browser, 5)
    assert browser.texts("#title") == [f"{EVIL}.jpg (6 of {IMAGES})"]
    assert browser.run("return document.querySelectorAll('b, img[src=x]').length") == 0


def test_sorting(browser):
    assert names(browser) == list(range(IMAGES))
    browser.choose("#sort", "wrong")
    last = IMAGES - 1
    assert names(browser) == list(range(IMAGES))  # the image without labels at the end
    browser.click("#falling")
    assert names(browser) == [*reversed(range(last)), last]
    browser.choose("#sort", "confidence")
    assert names(browser) == list(range(IMAGES))
    browser.choose("#sort", "class 1")
    browser.choose("#run", "1")
    # with twice the rows class 1 is never taken for road: all are equal, in the files' order
    assert names(browser) == list(range(IMAGES))
    browser.choose("#sort", "differs")
    differing = [2 * n if n % 2 else n for n in range(IMAGES)]  # rows: of other classes if n is odd
    assert names(browser) == sorted(range(IMAGES), key=lambda n: -differing[n])
    took = browser.milliseconds("setSort('class 2'); arrange()")
    print(f"sort {took:.0f} ms")


def test_filters_by_class_confusion_and_name(browser):
    browser.run("document.getElementById('matrix').open = true")
    browser.click("#confusion [data-cell='0,1']")
    assert names(browser) == [9, 7, 5, 3, 1]
    assert browser.texts("#clear") == [f"\u00d7 road taken for {CLASSES[1]}"]
    opened(browser, 0)
    assert pixel(browser, "mistakes", 2, 2) == [230, 0, 180, 255]  # the chosen confusion
    assert pixel(browser, "mistakes", 2, 12) == [0, 0, 0, 120]  # right
    browser.press("ESCAPE")
    browser.click("#clear")
    assert names(browser) == list(range(IMAGES))
    browser.click(f"[data-pick='{len(CLASSES) - 1}']")
    assert len(names(browser)) == IMAGES
    browser.click(f"[data-pick='{len(CLASSES) - 1}']")
    browser.click("#find")
    browser.press(*'"03"')
    assert names(browser) == [3]
    assert browser.texts("#count") == [f"1 of {IMAGES} images"]


def test_the_matrix_is_walked_by_arrows(browser):
    browser.run("document.getElementById('matrix').open = true")
    browser.run("document.querySelector('#confusion [tabindex=\"0\"]').focus()")
    browser.press("ARROW_RIGHT", "ARROW_RIGHT", "ARROW_DOWN")
    assert browser.run("return document.activeElement.dataset.cell") == "1,2"
    browser.press("ARROW_UP", "ENTER")
    assert names(browser) == [10, 8, 6, 4, 2, 11][:5]


def test_the_page_scores_as_evaluate_does(browser, report):
    data = json.loads((report / "report.json").read_text())
    for run in data["runs"]:
        matrix = ConfusionMatrix(len(CLASSES), CLASSES)
        matrix.counts = sum(unpacked(counts, len(CLASSES) + 1) for _, counts in run["rows"])
        matrix.counts[-1] = 0  # of the image without labels
        wanted = matrix.compute()["iou"]
        found = browser.run(f"return RUNS.find((r) => r.name === {json.dumps(run['name'])}).iou")
        assert found == pytest.approx(wanted, abs=1e-9)


def test_networks_are_compared(browser):
    cells = browser.run(
        "return [...document.querySelectorAll('#scores tbody tr')]"
        ".map((row) => row.innerText.split('\\t'))"
    )
    for _, one, other, gain in cells:
        assert float(other) - float(one) == pytest.approx(float(gain), abs=0.11)
    assert float(cells[0][2]) < float(cells[0][1])
    opened(browser, 3)
    shown = browser.texts("figcaption")
    assert sum(text.startswith("overlay") for text in shown) == 2
    assert [text for text in shown if text.startswith("difference")] == ["difference, net <b>1</b>"]
    assert pixel(browser, "difference", 2, 5) == [255, 150, 0, 255]  # the first alone is right
    assert pixel(browser, "difference", 2, 20) == [0, 0, 0, 120]  # no difference


def test_reliability_is_drawn_of_all_and_of_each_class(browser):
    browser.run("document.getElementById('reliability').open = true")
    shown = browser.texts("#reliability figcaption")
    assert [text.partition(":")[0] for text in shown] == [
        f"net <b>{k}</b>, all classes" for k in (0, 1)
    ]
    bars = browser.run("return document.querySelectorAll('#reliability rect[fill-opacity]').length")
    browser.choose("#calibrated", "3")
    assert browser.texts("#reliability figcaption")[0].startswith(f"net <b>0</b>, {EVIL}: ECE ")
    assert 2 <= bars <= 2 * 15


def test_panes_opacity_and_palette(browser):
    opened(browser, 3)
    assert pixel(browser, "truth", 20, 5) == [*PALETTE[1], 255]
    assert pixel(browser, "overlay", 2, 2) == [*PALETTE[1], 255]  # road taken for class 1
    assert pixel(browser, "mistakes", 2, 2) == [255, 150, 0, 255]
    hatched = {tuple(pixel(browser, "truth", x, H - 2)) for x in range(8)}
    assert hatched == {(110, 110, 110, 255), (222, 222, 222, 255)}  # ignored, never black
    browser.click("#safe-here")
    assert pixel(browser, "truth", 20, 5) == [230, 159, 0, 255]
    opacity = "getComputedStyle(document.querySelector('.overlay canvas')).opacity"
    assert float(browser.run(f"return {opacity}")) == pytest.approx(0.6)
    browser.run("document.getElementById('opacity').focus()")
    browser.press("END")
    assert float(browser.run(f"return {opacity}")) == 1
    browser.click("#pane-truth")
    assert browser.run("return document.querySelector('figure.truth')") is None


def test_keys_move_through_images_and_zoom_all_panes(browser):
    browser.run("document.querySelector('.card').focus()")
    browser.press("ARROW_RIGHT", "ENTER")
    browser.until("document.querySelector('.panes canvas')")
    assert browser.texts("#title")[0].endswith(f"(2 of {IMAGES})")
    browser.press("ARROW_RIGHT")
    browser.until(f"document.getElementById('title').textContent.includes('(3 of {IMAGES})')")
    browser.press("+", "+")
    browser.press("ARROW_LEFT", shift=True)
    moved = browser.run(
        "return [...document.querySelectorAll('.moved')].map((e) => getComputedStyle(e).transform)"
    )
    assert len(set(moved)) == 1
    assert moved[0].startswith("matrix(1.96, 0, 0, 1.96, ")
    browser.press("0")
    assert browser.run("return [view.zoom, view.x, view.y]") == [1, 0, 0]
    browser.press("ESCAPE")
    assert not browser.run("return viewer.open")
    assert browser.run("return document.activeElement.className") == "card"
    browser.press("/")
    assert browser.run("return document.activeElement.id") == "find"


def test_every_control_has_a_name(browser):
    opened(browser, 3)
    nameless = browser.run(
        "return [...document.querySelectorAll('button, select, input')].filter((e) =>"
        " !(e.textContent.trim() || e.ariaLabel || e.labels?.[0]?.textContent.trim()))"
        ".map((e) => e.outerHTML)"
    )
    assert nameless == []


def test_an_image_without_labels_and_a_missing_map(browser, report, tmp_path):
    opened(browser, IMAGES - 1)
    kinds = browser.run("return [...document.querySelectorAll('figure')].map((e) => e.className)")
    assert "truth" not in kinds
    assert not any("mistakes" in kind for kind in kinds)
    broken = tmp_path / "broken"
    shutil.copytree(report, broken)
    (broken / "maps" / "2_1.js").unlink()
    browser.open(broken / "index.html")
    browser.run("openViewer(2)")
    browser.until("document.querySelector('[role=alert]')")
    assert browser.texts("[role=alert]") == ["cannot be shown: maps/2_1.js is missing"]
    assert len(browser.complaints()) == 1  # the browser's own, of the missing file


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_shows_all_without_scrolling_sideways(browser, report, width):
    browser.open(report / "index.html", width, 844)
    overflow = "return document.documentElement.scrollWidth - innerWidth"
    browser.run("for (const d of document.querySelectorAll('details')) d.open = true")
    assert browser.run(overflow) <= 0
    browser.click(".card")
    browser.until("document.querySelector('.panes canvas')")
    assert browser.run("return viewer.scrollWidth - viewer.clientWidth") <= 0
    assert browser.run("return document.querySelectorAll('figure').length") >= 8


def test_two_thousand_images_stay_quick(browser, report, tmp_path):
    data = json.loads((report / "report.json").read_text())
    times = 2000 // IMAGES + 1
    data["images"] = (data["images"] * times)[:2000]
    for run in data["runs"]:
        run["rows"] = (run["rows"] * times)[:2000]
    many = tmp_path / "many"
    shutil.copytree(report, many)
    (many / "index.html").write_text(assemble("many", STYLES, SCRIPTS, data))
    browser.open(many / "index.html")
    browser.until("document.images.length && document.images[0].complete")
    browser.until("performance.getEntriesByName('first-contentful-paint').length")
    assert browser.run("return document.querySelectorAll('.card').length") < 100
    paint = browser.run(PAINT)
    sort = browser.milliseconds("setSort('class 1'); arrange()")
    found = browser.milliseconds("pickClass(2)")
    jump = browser.milliseconds("scrollTo(0, document.body.scrollHeight)")
    heap = browser.run("return performance.memory.usedJSHeapSize") / 1e6
    print(f"2 000 images: paint {paint:.0f}, sort {sort:.0f}, filter {found:.0f}, to the end "
          f"{jump:.0f} ms, heap {heap:.0f} MB")  # fmt: skip
    browser.until("[...document.querySelectorAll('.card')].length > 3")
    assert heap < 500
