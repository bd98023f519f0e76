"""The page in a real browser: drop a photo, see masks, switch, download, be told what is wrong."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from milseg.data.overlay import mask_colours
from milseg.inference.segmenter import Segmenter

from .conftest import Live, Start, photo, png_of
from .test_api import decoded

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
pytestmark = pytest.mark.timeout(600)
PATIENCE = 120_000  # milliseconds; a busy machine is no failure

PIXELS = photo(1, (60, 90))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium as the system has it, else as Playwright installed it; no browser, no test."""
    system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(
                executable_path=system, args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE
            )
        except sync_api.Error as error:
            pytest.skip(f"no browser: {error}")
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, live: Live) -> Iterator[Any]:
    yield from opened(browser, live)


def opened(browser: Any, live: Live, **context: Any) -> Iterator[Any]:
    """The server's page; whatever it complains of, or asks of anyone else, fails the test."""
    tab = browser.new_context(accept_downloads=True, **context)
    tab.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page = tab.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda message: (
            complaints.append(message.text)
            if message.type == "error" and not message.text.startswith("Failed to load resource")
            else None
        ),
    )
    home = f"http://127.0.0.1:{live.port}/"
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((home, "data:", f"blob:{home}"))
            else complaints.append(f"asked for {request.url}")
        ),
    )
    page.goto(home)
    expect(page.locator("#about")).to_contain_text("3 classes: cat, dog, sheep")
    yield page
    tab.close()
    assert complaints == []


def drop(page: Any, data: bytes, name: str, kind: str = "image/png") -> None:
    page.evaluate(
        """([data, name, type]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), moved = new DataTransfer();
            moved.items.add(new File([bytes], name, { type }));
            document.getElementById("stage").dispatchEvent(
                new DragEvent("drop", { dataTransfer: moved, bubbles: true, cancelable: true }));
        }""",
        [base64.b64encode(data).decode(), name, kind],
    )


def pixels(page: Any) -> np.ndarray:
    """What the canvas shows, uint8 [H, W, 3]."""
    address = page.evaluate("document.getElementById('canvas').toDataURL()")
    data = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def names(page: Any) -> list[str]:
    return sorted(page.locator("#marks .name").all_inner_texts())


def test_a_dropped_photo_is_masked(page: Any, segmenter: Segmenter) -> None:
    found = segmenter.segment(PIXELS)
    expect(page.locator("#panel")).to_be_hidden()
    drop(page, png_of(PIXELS), "scene.png")
    expect(page.locator("#panel")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("scene.png, 90 × 60")
    assert names(page) == sorted(name for name, _ in found.tags)
    rows = page.locator("#classes .row label").all_inner_texts()
    assert [row.strip() for row in rows] == [name for name, _ in found.tags]
    shown = pixels(page)
    page.locator("#opacity").fill("0")
    bare = pixels(page)
    # Ten canvas pixels a photo pixel: the middles of masked ones are tinted, and no others.
    changed = (shown != bare).any(axis=2)[5::10, 5::10]
    masked = found.mask != 0
    assert changed.shape == masked.shape
    assert changed[masked].mean() > 0.98  # a tint may equal the photo's own colour
    assert not changed[~masked].any()


def test_classes_and_opacity_switch(page: Any, segmenter: Segmenter) -> None:
    found = segmenter.segment(PIXELS)
    first = found.tags[0][0]
    drop(page, png_of(PIXELS), "scene.png")
    expect(page.locator("#panel")).to_be_visible()
    before = pixels(page)
    page.get_by_role("checkbox", name=first, exact=True).first.uncheck()
    assert names(page) == sorted(name for name, _ in found.tags if name != first)
    without = pixels(page)
    changed = (before != without).any(axis=2)[5::10, 5::10]
    region = found.mask == found.classes.index(first)
    assert changed[region].mean() > 0.98
    page.get_by_role("checkbox", name=first, exact=True).first.check()
    np.testing.assert_array_equal(pixels(page), before)


def test_a_heat_map_is_shown(page: Any) -> None:
    drop(page, png_of(PIXELS), "scene.png")
    expect(page.locator("#panel")).to_be_visible()
    before = pixels(page)
    button = page.get_by_role("button", name="Heat map of background")
    page.locator("#others summary").click()
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#legend")).to_contain_text("probability of background")
    assert (pixels(page) != before).mean() > 0.5
    button.click()
    expect(page.locator("#legend")).to_be_hidden()
    np.testing.assert_array_equal(pixels(page), before)


def test_known_tags_are_sent_and_said(page: Any, segmenter: Segmenter) -> None:
    drop(page, png_of(PIXELS), "scene.png")
    expect(page.locator("#panel")).to_be_visible()
    page.locator("#known summary").click()
    page.locator("#known").get_by_label("dog").check()
    expect(page.locator("#status")).to_contain_text("tags given by you: dog")
    assert names(page) == [name for name, _ in segmenter.segment(PIXELS, tags=["dog"]).tags]


def test_the_places_of_a_rule_are_ringed(page: Any) -> None:
    drop(page, png_of(PIXELS), "scene.png")
    expect(page.locator("#panel")).to_be_visible()
    page.locator("#places summary").click()
    expect(page.locator("#places-said")).to_contain_text("places, for background, ")
    assert page.locator("#marks .place").count() == page.locator("#marks .name").count() + 1
    page.locator("#rule").select_option("average")
    expect(page.locator("#places-said")).to_contain_text("tags the model saw")
    expect(page.locator("#marks .place").nth(10)).to_be_attached()


def test_downloads_hold_the_mask(page: Any, segmenter: Segmenter) -> None:
    expected = segmenter.segment(PIXELS).mask
    drop(page, png_of(PIXELS), "scene.png")
    expect(page.locator("#panel")).to_be_visible()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Mask, PNG").click()
    assert waiting.value.suggested_filename == "scene-mask.png"
    np.testing.assert_array_equal(np.asarray(Image.open(waiting.value.path())), expected)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Masks, COCO JSON").click()
    data = json.loads(waiting.value.path().read_text())
    assert sorted(data) == ["annotations", "categories", "images", "info", "licenses"]
    for row in data["annotations"]:
        region = decoded(row["segmentation"]["counts"], row["segmentation"]["size"])
        np.testing.assert_array_equal(region, expected == row["category_id"])


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (png_of(PIXELS)[:300], "broken.png", "broken.png: damaged or cut short"),
        (b"x" * (2 * 2**20), "large.png", "large.png: This file has 2.0 MiB; the server takes 1"),
        (b"hello", "no <b>photo</b>.txt", "no <b>photo</b>.txt: a text file"),
    ],
)
def test_a_broken_file_takes_the_old_result_away(page: Any, data: bytes, name: str, words: str) -> None:
    drop(page, png_of(PIXELS), "scene.png")
    expect(page.locator("#panel")).to_be_visible()
    drop(page, data, name)
    expect(page.get_by_role("alert")).to_contain_text(words)
    for part in ("#panel", "#figure"):
        expect(page.locator(part)).to_be_hidden()
    assert (names(page), page.locator("#status").inner_text()) == ([], "")
    page.locator("#opacity").evaluate("slider => slider.dispatchEvent(new Event('input'))")
    drop(page, png_of(PIXELS), "scene.png")
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#panel")).to_be_visible()


def test_an_error_beside_its_own_photo_leaves_it(page: Any) -> None:
    """A busy server while tags are ticked: the photo and its mask stay."""
    drop(page, png_of(PIXELS), "scene.png")
    expect(page.locator("#panel")).to_be_visible()
    page.route("**/v1/segment*", lambda route: route.fulfill(status=503, body="{}"))
    page.locator("#known summary").click()
    page.locator("#known").get_by_label("dog").check()
    expect(page.get_by_role("alert")).to_contain_text("scene.png: The server is busy")
    expect(page.locator("#panel")).to_be_visible()


def test_scores_are_told_as_what_they_are(page: Any, segmenter: Segmenter) -> None:
    """No "100 % sure" beside a mask that is wrong."""
    drop(page, png_of(PIXELS), "scene.png")
    expect(page.locator("#panel")).to_be_visible()
    row = page.locator("#classes .row").first.inner_text()
    assert re.search(r"of the photo; highest score (above )?0\.\d", row)
    assert "wrong masks score high too" in page.locator("#sure").inner_text()
    assert "sure" not in page.locator("#status").inner_text()
    assert page.locator("body").inner_text().count("100 %") == 0


def shown_colours(page: Any) -> list[tuple[int, ...]]:
    found = page.locator("#classes .swatch").evaluate_all(
        "all => all.map(one => getComputedStyle(one).backgroundColor.match(/[0-9]+/g).map(Number))"
    )
    return [tuple(colour) for colour in found]


def test_colours_that_every_eye_can_tell_apart(page: Any, segmenter: Segmenter) -> None:
    drop(page, png_of(PIXELS), "scene.png")
    expect(page.locator("#panel")).to_be_visible()
    colours = mask_colours(segmenter.classes)
    expected = [colours[segmenter.classes.index(name)] for name, _ in segmenter.segment(PIXELS).tags]
    assert shown_colours(page) == [tuple(colour.tolist()) for colour in expected]


LONG = ("background", "a very long name of a class, as botanists write them", "dog", "x" * 60)


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_names_of_classes_are_whole(browser: Any, start: Start, segmenter: Segmenter, width: int) -> None:
    spec = replace(segmenter.spec, classes=LONG)
    live = start(model=Segmenter(segmenter.model, spec))
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(f"http://127.0.0.1:{live.port}/")
    expect(page.locator("#about")).to_contain_text("3 classes")
    drop(page, png_of(PIXELS), "scene.png")
    expect(page.locator("#panel")).to_be_visible()
    found = [name for name, _ in segmenter.segment(PIXELS).tags]
    assert len(found) == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = """all => all.filter(one => getComputedStyle(one).display != "inline"
        && one.scrollWidth > one.clientWidth + 1)
        .map(one => one.textContent)"""
    assert page.locator("#classes b, #classes label, #classes small, #marks .name").evaluate_all(cut) == []
    # On the photo too: within its edges.
    outside = """all => all.filter(one => { const a = one.getBoundingClientRect(),
        b = document.getElementById("canvas").getBoundingClientRect();
        return a.left < b.left - 1 || a.right > b.right + 1; }).map(one => one.textContent)"""
    assert page.locator("#marks .name").evaluate_all(outside) == []
    page.close()


def test_a_server_that_is_gone_is_said(page: Any) -> None:
    page.route("**/v1/segment*", lambda route: route.abort())
    drop(page, png_of(PIXELS), "scene.png")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")


def test_by_keyboard_alone(page: Any) -> None:
    """Example, class switch and heat map with Tab, Space and Enter."""

    def tab_to(described: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches({described!r})"):
                return
        pytest.fail(f"{described} cannot be reached")

    expect(page.locator("#examples button")).to_be_visible()
    tab_to("#file")
    tab_to("#examples button")
    page.keyboard.press("Enter")
    expect(page.locator("#panel")).to_be_visible()
    tab_to("#classes input")
    count = page.locator("#marks .name").count()
    page.keyboard.press("Space")
    assert page.locator("#marks .name").count() == count - 1
    tab_to("#classes button")
    page.keyboard.press("Enter")
    expect(page.locator("#legend")).to_be_visible()


def test_at_phone_width(browser: Any, live: Live) -> None:
    for page in opened(browser, live, viewport={"width": 360, "height": 740}, has_touch=True):
        drop(page, png_of(PIXELS), "scene.png")
        expect(page.locator("#panel")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("#save-mask").bounding_box()["width"] >= 100


def test_on_a_phone_the_controls_come_before_the_examples(browser: Any, live: Live) -> None:
    for page in opened(browser, live, viewport={"width": 390, "height": 844}, has_touch=True):
        drop(page, png_of(PIXELS), "scene.png")
        expect(page.locator("#panel")).to_be_visible()
        photo, panel, examples = (
            page.locator(part).bounding_box() for part in ("#stage", "#panel", "#examples")
        )
        assert photo["y"] + photo["height"] <= panel["y"]
        assert panel["y"] + panel["height"] <= examples["y"]


def test_on_a_desk_the_examples_are_below_the_photo(browser: Any, live: Live) -> None:
    for page in opened(browser, live, viewport={"width": 1200, "height": 900}):
        drop(page, png_of(PIXELS), "scene.png")
        expect(page.locator("#panel")).to_be_visible()
        photo, panel, examples = (
            page.locator(part).bounding_box() for part in ("#stage", "#panel", "#examples")
        )
        assert photo["x"] == examples["x"] < panel["x"]
        assert abs(photo["y"] - panel["y"]) < 2


def test_a_token_is_asked_for(browser: Any, start: Start) -> None:
    live = start(token="sesame")
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{live.port}/")
    expect(page.get_by_role("alert")).to_contain_text("No valid token")
    page.get_by_label("This server asks for a token").fill("ö")
    page.get_by_role("button", name="Use it").click()
    expect(page.get_by_role("alert")).to_contain_text("ASCII")
    page.get_by_label("This server asks for a token").fill("sesame")
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#about")).to_contain_text("3 classes")
    expect(page.locator("#token")).to_be_hidden()
    page.close()
