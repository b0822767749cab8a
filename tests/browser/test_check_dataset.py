"""The doctor's page in a browser: nothing scrolls sideways, nothing complains, nothing is asked of anyone."""

import os
from pathlib import Path

import pytest

from command_runs import run_here
from faulty_datasets import FAULTS, generated
from scripts import check_dataset


WIDTH, HEIGHT = 1366, 768


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    """The page on a data set with several faults."""
    folder = tmp_path_factory.mktemp("doctor")
    copy = generated()
    for name in ("swapped-size", "near-duplicate", "255-as-class"):
        copy = FAULTS[name](copy)
    data, file = copy.write(folder / "streets"), folder / "check.html"
    assert run_here(check_dataset, "--dataset_name", data, "--report", file) == 1
    return file


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page(browser, page_file, theme):
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=theme)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith("http") and complaints.append(request.url))
    page.goto(page_file.as_uri())
    assert page.locator("section.finding").count() == 3
    assert {text.split()[-1] for text in page.locator("section.finding h3").all_inner_texts()} == {
        "swapped-size",
        "near-duplicate",
        "255-as-class",
    }
    assert page.locator("h2").all_inner_texts()[-3:] == ["Split train", "Split validation", "Classes"]
    drawn = page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert drawn and page.locator("img").count() > 16
    shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, shown.strip("rgb()").split(","))) > 600) == (theme == "light")
    for width in (WIDTH, 390):
        page.set_viewport_size({"width": width, "height": HEIGHT})
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    if folder := os.environ.get("FASEG_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"check-dataset-{theme}.png", full_page=True)
    context.close()
    assert not complaints
