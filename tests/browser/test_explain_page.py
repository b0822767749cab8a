"""The page of `scripts/explain.py` as a reader opens it: from a file, at a laptop's width, in light and dark."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts.data.synthetic_scenes import draw_sample


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page_file(browser, semantic_model: Path, tmp_path_factory) -> Path:
    """Written by the command that users run, over two images of different shapes, compared with itself."""
    folder = tmp_path_factory.mktemp("explain")
    image = draw_sample(np.random.default_rng(1))[0]
    image.save(folder / "a very long name of an image without any place to break it, but for these.png")
    image.crop((0, 0, 60, image.height)).save(folder / "narrow.png")
    command = [sys.executable, str(ROOT / "scripts" / "explain.py"), *map(str, sorted(folder.iterdir()))]
    command += ["--model_name_or_path", str(semantic_model), "--compare", str(semantic_model)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--output_dir", str(folder / "out")], check=True, env=environment)
    return folder / "out" / "explain.html"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1366, 500, 390])
def test_the_page_fits_and_complains_of_nothing(browser, page_file, theme, width):
    context = browser.new_context(viewport={"width": width, "height": 768}, color_scheme=theme)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("http", "ws")) and complaints.append(request.url))
    page.goto(page_file.as_uri())
    sideways = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    broken = page.evaluate("[...document.images].filter((image) => !image.naturalWidth).length")
    unnamed = page.evaluate("[...document.images].filter((image) => !image.alt).length")
    if folder := os.environ.get("FASEG_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"explain-{width}-{theme}.png", full_page=True)
    headings = page.locator("h2").all_inner_texts()
    context.close()
    assert (complaints, sideways, broken, unnamed) == ([], False, 0, 0)
    assert headings[:2] == ["How to read it", "Do the queries look where their segments are?"] and len(headings) == 4


def test_overlays_are_read_without_their_tints(browser, page_file):
    """One class untinted, then contours alone: what is left on the page, and nothing runs a script for it."""
    context = browser.new_context(viewport={"width": 1366, "height": 768})
    page = context.new_page()
    page.goto(page_file.as_uri())
    shown = "[...document.querySelectorAll('.tint')].filter((node) => getComputedStyle(node).display != 'none')"
    kinds = f"{shown}.map((node) => node.className.replace('tint ', ''))"
    whole = page.evaluate(kinds)
    first = whole[0].removeprefix("class-")
    page.select_option("#untinted", first)
    assert page.evaluate(kinds) == [kind for kind in whole if kind != f"class-{first}"] != whole
    page.check("#contours-only")
    assert page.evaluate(kinds) == [] and page.locator(".contour:visible").count() > 0
    assert page.locator("script").count() == 0
    context.close()
