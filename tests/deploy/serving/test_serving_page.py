"""The page in a real browser: choose, drop and paste a picture, by keyboard too.

Needs Chromium with its driver, and the package selenium; KEEP_SCREENSHOTS=FOLDER keeps what was
seen.
"""

import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("selenium")

from PIL import Image, ImageDraw
from running_service import running, until
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from serving_fakes import FakeEngine, picture

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver"),
]

# Hands files to the page as a person's hand would: `kind` is drop or paste.
HAND_OVER = """
const [kind, text] = arguments;
const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], "handed.png", { type: "image/png" }));
document.dispatchEvent(kind === "drop"
  ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
  : new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
"""


class Page:
    """The page as somebody sees it."""

    def __init__(self, browser):
        self.browser = browser

    def open(self, port, dark=False):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.complaints()  # those of the page before
        self.browser.get(f"http://127.0.0.1:{port}/")
        until(lambda: self.text("about").endswith("nothing at all."))

    def find(self, name):
        return self.browser.find_element(By.ID, name)

    def text(self, name):
        return self.find(name).text

    def choose(self, path):
        self.find("file").send_keys(str(path))

    def rows(self):
        items = self.browser.find_elements(By.CSS_SELECTOR, "#results li")
        return [tuple(item.text.split("\n")) for item in items]

    def pixel(self, x, y):
        """A pixel of the canvas, at fractions of its width and height."""
        return self.browser.execute_script(
            "const c = document.getElementById('canvas');"
            "const [x, y] = [arguments[0] * c.width, arguments[1] * c.height].map(Math.round);"
            "return [...c.getContext('2d').getImageData(x, y, 1, 1).data]",
            x,
            y,
        )[:3]

    def keep(self, name):
        if folder := os.environ.get("KEEP_SCREENSHOTS"):
            self.browser.save_screenshot(str(Path(folder) / f"{name}.png"))

    def complaints(self):
        """What the browser's console says, such as a violation of the content policy."""
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture(scope="module")
def page():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    # No sandbox: it refuses to work for root, whom containers run tests as.
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,820"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield Page(browser)
    browser.quit()


@pytest.fixture(scope="module")
def classifier():
    with running(FakeEngine(), max_bytes=2_000_000) as service:
        yield service


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    """Something to look at."""
    image = Image.new("RGB", (800, 560), (150, 190, 225))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 380, 800, 560), fill=(110, 150, 90))
    draw.ellipse((90, 160, 370, 480), fill=(200, 140, 80))
    draw.ellipse((470, 40, 730, 300), fill=(120, 90, 70))
    path = tmp_path_factory.mktemp("page") / "two things.jpg"
    image.save(path)
    return path


def test_a_chosen_picture(page, classifier, photograph):
    page.open(classifier.port)
    assert page.browser.title == "FakeNet" and page.text("model") == "FakeNet"
    assert "one of 5 classes" in page.text("about")
    page.choose(photograph)
    until(lambda: len(page.rows()) == 5)
    assert page.rows()[0][0] == "grey" and page.rows()[0][1].endswith("%")
    assert page.text("status").startswith("Best: grey, ")
    assert "Network" in page.text("latency") and "ms" in page.text("latency")
    assert page.find("canvas").is_displayed() and not page.find("error").is_displayed()
    fills = page.browser.find_elements(By.CSS_SELECTOR, ".fill")
    until(lambda: fills[0].size["width"] > 50)
    assert fills[0].size["width"] > fills[1].size["width"] >= fills[2].size["width"]
    page.keep("classification")
    assert page.complaints() == []


def test_in_the_dark(page, classifier, photograph):
    page.open(classifier.port, dark=True)
    page.choose(photograph)
    until(lambda: len(page.rows()) == 5)
    ground = page.browser.execute_script(
        "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert max(ground[:3]) < 60
    until(lambda: page.browser.find_element(By.CSS_SELECTOR, ".fill").size["width"] > 50)
    page.keep("dark")


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_picture_handed_over(page, classifier, kind):
    import base64

    page.open(classifier.port)
    data = base64.b64encode(picture(255)).decode()
    page.browser.execute_script(HAND_OVER, kind, data)
    until(lambda: page.rows())
    assert page.rows()[0][0] == "white"
    assert page.find("canvas").get_attribute("aria-label") == "The picture handed.png"


def test_the_keyboard_reaches_the_file_first(page, classifier):
    page.open(classifier.port)
    page.browser.switch_to.active_element.send_keys(Keys.TAB)
    assert page.browser.switch_to.active_element.get_attribute("id") == "file"
    outline = page.browser.execute_script(
        "return getComputedStyle(document.querySelector('.button')).outlineStyle"
    )
    assert outline == "solid"


def test_every_control_has_a_name(page, classifier):
    page.open(classifier.port)
    for control in page.browser.find_elements(By.CSS_SELECTOR, "input"):
        label = f"label[for='{control.get_attribute('id')}']"
        assert page.browser.find_element(By.CSS_SELECTOR, label)
    assert page.find("status").get_attribute("aria-live") == "polite"
    assert page.find("error").get_attribute("role") == "alert"


def test_an_error_is_said_in_words_and_goes_away(page, classifier, photograph, tmp_path):
    page.open(classifier.port)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photograph.read_bytes()[:3000])
    page.choose(broken)
    until(lambda: page.find("error").is_displayed())
    assert page.text("error").startswith("broken.jpg: cannot decode the image")
    assert page.text("status") == "No result." and page.rows() == []
    page.keep("error")
    page.choose(photograph)
    until(lambda: len(page.rows()) == 5)
    assert not page.find("error").is_displayed()


def test_a_file_that_is_too_large_is_not_sent(page, classifier, tmp_path):
    page.open(classifier.port)
    large = tmp_path / "large.png"
    large.write_bytes(b"x" * 2_000_001)
    page.choose(large)
    until(lambda: page.find("error").is_displayed())
    assert "2000001 bytes" in page.text("error") and "2000000" in page.text("error")


def test_boxes_of_a_detector(page, photograph):
    with running(FakeEngine("detection")) as service:
        page.open(service.port)
        assert "objects of 2 classes" in page.text("about")
        page.choose(photograph)
        until(lambda: len(page.rows()) == 2)
        assert [row[0] for row in page.rows()] == ["cat", "dog"]
        assert page.text("status") == "2 objects with a score of at least 0.30."
        assert page.complaints() == []
        color = page.pixel(0.08, 0.5)  # the cat's left edge
        assert color == [0x2E, 0x7D, 0x32]
        page.keep("detection")
        slider = page.find("threshold")
        slider.send_keys(Keys.HOME)
        until(lambda: len(page.rows()) == 3)
        slider.send_keys(Keys.END)
        until(lambda: not page.rows())
        assert page.pixel(0.08, 0.5) != color
        assert page.text("status") == "0 objects with a score of at least 1.00."


def test_a_server_that_is_gone(page, photograph):
    with running(FakeEngine()) as service:
        page.open(service.port)
    page.choose(photograph)
    until(lambda: page.find("error").is_displayed())
    assert page.text("error").startswith("The server cannot be reached")


def test_a_narrow_window(page, classifier, photograph):
    page.browser.set_window_size(500, 900)
    try:
        page.open(classifier.port)
        page.choose(photograph)
        until(lambda: len(page.rows()) == 5)
        overflow = page.browser.execute_script(
            "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )
        assert not overflow
        page.keep("narrow")
    finally:
        page.browser.set_window_size(1100, 820)
