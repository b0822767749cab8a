"""The error report in a browser, at a laptop's width, in light and dark."""

import os
from pathlib import Path

import numpy as np
import pytest
from report_cases import NAMES, told_image, write_page


WIDTH, HEIGHT = 1366, 768
PHONE = 390


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Number of classes -> page; of many, with names as long as data sets have them; of 5, longer still."""
    found = {}
    longest = {4: "an_unbroken_class_name_of_a_laboratory_that_names_everything_in_full_WWWWMMMM"}
    for count in (4, 5, 150):
        folder = tmp_path_factory.mktemp(f"classes{count}")
        names = {index: f"class {index} of a hundred and fifty" for index in range(count)}
        names = {4: NAMES, 5: NAMES | longest}.get(count, names)
        images = [told_image(seed, count, (120, 160)) for seed in range(12)]
        write_page(folder / "page.html", images, names)
        found[count] = folder / "page.html"
    return found


@pytest.fixture
def opened(browser, pages, request):
    """The page in a theme, as (page, what went wrong in it)."""
    theme, count, width = request.param
    context = browser.new_context(viewport={"width": width, "height": HEIGHT}, color_scheme=theme)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or complaints.append(asked.url))
    page.goto(pages[count].as_uri())
    if folder := os.environ.get("FASEG_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"report-{count}-{theme}-{width}.png", full_page=True)
    yield page, complaints
    context.close()


THEMES = [("light", 4, WIDTH), ("dark", 4, WIDTH), ("light", 150, WIDTH), ("dark", 150, WIDTH)]
THEMES += [("light", count, PHONE) for count in (4, 5, 150)]
SMALL_TEXT = """[...document.querySelectorAll('svg text, .class-bars span, td, th, p, li, figcaption')].filter(
    (node) => node.textContent.trim() && node.checkVisibility()).map((node) => node.ownerSVGElement
    ? parseFloat(getComputedStyle(node).fontSize) * node.getScreenCTM().a
    : parseFloat(getComputedStyle(node).fontSize))"""
OUTSIDE = """[...document.querySelectorAll('svg text')].filter((node) => {
    const own = node.getBoundingClientRect(), around = node.ownerSVGElement.getBoundingClientRect();
    return own.left < around.left - 1 || own.right > around.right + 1 || own.bottom > around.bottom + 1;
}).map((node) => node.textContent)"""


@pytest.mark.parametrize("opened", THEMES, indirect=True, ids=lambda value: "-".join(map(str, value)))
def test_nothing_scrolls_sideways_or_goes_wrong(opened):
    page, complaints = opened
    for fold in page.locator("summary").all():
        fold.click()
    assert page.locator("details[open] table").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert not complaints
    images = page.evaluate("[...document.images].map((image) => image.complete && image.naturalWidth)")
    assert len(images) == 40 and all(images)


CUT_OFF = """[...document.querySelectorAll('.class-bars span')].filter(
    (node) => node.scrollWidth > node.clientWidth + 1 || node.getBoundingClientRect().left < 0).map(
    (node) => node.textContent)"""


@pytest.mark.parametrize("opened", THEMES, indirect=True, ids=lambda value: "-".join(map(str, value)))
def test_words_can_be_read(opened):
    """No text smaller than 11 pixels, none cut off by its chart, and all of them apart from the ground."""
    page, _ = opened
    assert min(page.evaluate(SMALL_TEXT)) >= 11
    assert page.evaluate(OUTSIDE) == [] and page.evaluate(CUT_OFF) == []
    # The relative luminances of WCAG: text against the ground.
    colours = page.evaluate(
        """[getComputedStyle(document.body).backgroundColor, ...[...document.querySelectorAll(
            'svg text')].map((node) => getComputedStyle(node).fill)]"""
    )
    ground, *texts = [luminance(colour) for colour in dict.fromkeys(colours)]
    assert texts
    for text in texts:
        low, high = sorted((text, ground))
        assert (high + 0.05) / (low + 0.05) > 4.5


def luminance(colour: str) -> float:
    channels = np.array([int(channel) for channel in colour.strip("rgb()").split(",")]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("opened", [("dark", 4, WIDTH)], indirect=True)
def test_all_counts_can_be_taken_away(opened, tmp_path):
    page, _ = opened
    with page.expect_download() as download:
        page.get_by_text("all pixel counts as CSV").click()
    assert download.value.suggested_filename == "confusion.csv"
    lines = Path(download.value.path()).read_text().splitlines()
    assert len(lines) == 5 and lines[0].startswith("truth")
