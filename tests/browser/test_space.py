"""The Space as a visitor meets it: in a browser, at a laptop's width, in light and dark."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

import image_processing  # noqa: F401 - registers the processors
import modeling_faseg  # noqa: F401 - and the models
from scripts.data.synthetic_scenes import draw_sample
from scripts.drawing.visualization import overlay
from scripts.inference.predictors import SingleScale
from scripts.inference.sliding_window import Tiles
from scripts.space import write_space


WIDTH, HEIGHT = 1366, 768
SPACE_COMMAND = Path(__file__).parents[2] / "scripts" / "space.py"
SECONDS = 60_000  # a first answer loads the model


class Visitor:
    """A browser's page on the Space, and all that went wrong in it."""

    def __init__(self, page, address: str) -> None:
        self.page, self.address, self.complaints = page, address, []
        page.on("console", lambda message: message.type == "error" and self.complain(message.text))
        page.on("pageerror", lambda error: self.complain(str(error)))
        page.on("request", lambda request: request.url.startswith(("http", "ws")) and self.check(request.url))
        page.set_default_timeout(SECONDS)
        page.goto(address)
        page.locator("#run").wait_for()

    def complain(self, text: str) -> None:
        self.complaints.append(text)

    def check(self, url: str) -> None:
        """The page asks nobody but its own server."""
        if url.split("//")[1].split("/")[0] != self.address.split("//")[1]:
            self.complaints.append(f"asked {url}")

    def upload(self, *files: Path) -> None:
        """Chooses files in the dialogue that a click opens, and waits until the page lists them."""
        with self.page.expect_file_chooser() as chooser:
            self.page.locator("#upload button").first.click()
        chooser.value.set_files([str(file) for file in files])
        self.page.locator("#upload .file-preview tr").nth(len(files) - 1).wait_for()

    def segment(self) -> None:
        """Presses the button and waits for the answer, whatever it is."""
        self.page.evaluate("document.querySelectorAll('.finding, .problems').forEach((old) => old.remove())")
        self.page.locator("#run").click()
        self.page.locator(".finding, .problems").first.wait_for()

    def download(self, name: str) -> bytes:
        """The contents of a file of the list of downloads."""
        row = self.page.locator("#downloads tr", has_text=name.rpartition(".")[0])
        with self.page.expect_download() as download:
            row.locator("a").first.click()
        assert download.value.suggested_filename == name
        return Path(download.value.path()).read_bytes()

    def problems(self) -> list[str]:
        return self.page.locator(".problems p").all_inner_texts()

    def scrolls_sideways(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")

    def screenshot(self, name: str) -> None:
        """Into the folder `FASEG_SCREENSHOTS`, where it is set."""
        if folder := os.environ.get("FASEG_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.wait_for_timeout(700)  # transitions
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


in_light_and_dark = pytest.mark.parametrize("theme", ["light", "dark"], indirect=True)


@pytest.fixture
def theme(request) -> str:
    """What the visitor's system prefers."""
    return getattr(request, "param", "light")


@pytest.fixture
def visitor(browser, space, theme):
    """On the page, with no complaint at the end."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=theme)
    visitor = Visitor(context.new_page(), space)
    yield visitor
    complaints, sideways = visitor.complaints, visitor.scrolls_sideways()
    context.close()
    assert not complaints
    assert not sideways


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> list[Path]:
    """Two drawn images of different sizes; losslessly stored, but for the second's EXIF orientation."""
    folder = tmp_path_factory.mktemp("images")
    files = [folder / "first shapes.png", folder / "second.png"]
    draw_sample(np.random.default_rng(1))[0].save(files[0])
    turned = Image.Exif()
    turned[0x0112] = 6
    draw_sample(np.random.default_rng(2))[0].crop((0, 0, 150, 100)).save(files[1], exif=turned)
    return files


@pytest.fixture(scope="session")
def expected(semantic_model):
    """Label map of an image, by the project's own model and processor."""
    model = AutoModelForUniversalSegmentation.from_pretrained(semantic_model).eval()
    return SingleScale(model, AutoImageProcessor.from_pretrained(semantic_model), "cpu")


def label_map(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@in_light_and_dark
def test_start(visitor, theme):
    shown = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(channel) for channel in shown.strip("rgba()").split(",")[:3])
    assert (brightness > 600) == (theme == "light")
    assert visitor.page.locator("#task input").count() == 1
    assert visitor.page.locator("#examples img").count() == 3
    visitor.screenshot(f"start-{theme}")


@in_light_and_dark
def test_a_image_and_its_label_map(visitor, theme, images, expected):
    visitor.upload(images[0])
    visitor.segment()
    assert visitor.problems() == []
    labels = expected(Image.open(images[0]).convert("RGB"))
    assert len(np.unique(labels)) == 3
    downloaded = label_map(visitor.download("first shapes_labels.png"))
    np.testing.assert_array_equal(downloaded, labels)

    rows = [row.split("\t") for row in visitor.page.locator(".finding tbody tr").all_inner_texts()]
    names = {"sky": 0, "road & <kerb>": 1, "car": 2}
    assert {names[name.strip()]: int(pixels.replace(",", "")) for name, _, pixels in rows} == {
        index: int((labels == index).sum()) for index in range(3)
    }
    visitor.screenshot(f"result-{theme}")


def shown_image(visitor, size: tuple[int, int]) -> np.ndarray:
    """What the screen shows of the image under its overlay, reduced from the screen's pixels to the image's."""
    stack = visitor.page.locator(".finding .stack")
    stack.scroll_into_view_if_needed()
    screen = Image.open(io.BytesIO(stack.screenshot())).convert("RGB")
    return np.asarray(screen.resize(size, Image.Resampling.BOX), dtype=float)


def test_the_overlay_on_the_screen_follows_its_opacity(visitor, images, expected):
    visitor.upload(images[0])
    visitor.segment()
    image = Image.open(images[0]).convert("RGB")
    labels = expected(image)
    opacities = (0.0, 0.55, 1.0)
    wanted = {opacity: np.asarray(overlay(image, labels, opacity), dtype=float) for opacity in opacities}
    for opacity in (0.55, 0.0, 1.0):
        visitor.page.locator("#opacity input[type=range]").fill(str(opacity))
        visitor.page.wait_for_timeout(300)
        screen = shown_image(visitor, image.size)
        # The page's image is WebP, and its corners are round.
        differences = {other: np.abs(screen - wanted[other]).mean() for other in opacities}
        assert differences[opacity] < 8 < 20 < min(differences[other] for other in opacities if other != opacity)


def test_several_images(visitor, images, expected):
    visitor.upload(*images)
    visitor.segment()
    thumbnails = visitor.page.locator("#thumbnails .thumbnail-item")
    thumbnails.nth(1).wait_for()
    assert thumbnails.count() == 2
    first = visitor.page.locator(".finding .stack img").first.get_attribute("alt")
    thumbnails.nth(1).click()
    visitor.page.locator(".finding .stack img[alt='second']").wait_for()
    assert first == "first shapes"
    archive = zipfile.ZipFile(io.BytesIO(visitor.download("everything.zip")))
    assert sorted(archive.namelist()) == [
        "first shapes_labels.png",
        "first shapes_overlay.png",
        "second_labels.png",
        "second_overlay.png",
    ]
    upright = Image.open(images[1]).convert("RGB").transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(label_map(archive.read("second_labels.png")), expected(upright))
    visitor.screenshot("several")


@in_light_and_dark
def test_bad_files_are_named_and_the_good_ones_shown(visitor, theme, images, tmp_path):
    broken, large = tmp_path / "holiday.jpg", tmp_path / "poster.png"
    broken.write_bytes(b"\xff\xd8\xff" + b"not an image" * 20)
    Image.new("L", (1200, 1000)).save(large)
    visitor.upload(broken, large, images[0])
    visitor.segment()
    unreadable, too_large = visitor.problems()
    assert unreadable == "holiday.jpg cannot be read: is it an image (PNG, JPEG, WebP, ...), and whole?"
    assert too_large.startswith("poster.png is too large: 1200 x 1000 are 1.2 megapixels, at most 1.0 are taken")
    assert visitor.page.locator(".finding .stack img[alt='first shapes']").count() == 1
    visitor.screenshot(f"error-{theme}")


def test_a_file_that_is_no_image(visitor, theme, tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    visitor.upload(tmp_path / "notes.png")
    visitor.segment()
    assert visitor.problems() == ["notes.png cannot be read: is it an image (PNG, JPEG, WebP, ...), and whole?"]
    assert visitor.page.locator(".finding").count() == 0


def test_nothing_uploaded(visitor):
    visitor.segment()
    assert visitor.problems() == ["No image: upload one or choose an example."]


def test_an_example(visitor):
    visitor.page.locator("#examples .thumbnail-item").nth(2).click()
    visitor.page.locator(".finding .stack img[alt='road-3']").wait_for()
    assert visitor.problems() == []


def choose_model(visitor, name: str) -> None:
    field = visitor.page.locator("#model input")
    field.fill(name)
    field.press("Enter")


def test_another_model_with_segments(visitor, images, panoptic_model):
    choose_model(visitor, panoptic_model.name)
    visitor.page.locator("#task input[value=instance]").check()
    visitor.page.get_by_label("Threshold").and_(visitor.page.locator("input[type=range]")).fill("0.05")
    visitor.upload(images[0])
    visitor.segment()
    assert "Score" in visitor.page.locator(".finding thead").inner_text()
    archive = zipfile.ZipFile(io.BytesIO(visitor.download("everything.zip")))
    assert "first shapes_segments.json" in archive.namelist()
    visitor.screenshot("instances")


def test_tiles_and_the_shrink_are_said(visitor, tmp_path, semantic_model):
    """The model reads 64 x 102 pixels of the image; in tiles it reads them all."""
    file = tmp_path / "wide.png"
    draw_sample(np.random.default_rng(3), (200, 320))[0].save(file)
    visitor.upload(file)
    visitor.segment()
    note = visitor.page.locator(".note")
    assert note.inner_text().startswith("Read at 102 x 64 pixels, 3.1 times smaller than it is")
    visitor.page.locator("#tile input").fill("96")
    visitor.segment()
    assert note.count() == 0 and visitor.problems() == []
    model = AutoModelForUniversalSegmentation.from_pretrained(semantic_model).eval()
    processor = AutoImageProcessor.from_pretrained(semantic_model, do_resize=False)
    in_tiles = SingleScale(model, processor, "cpu", Tiles(96, 96, (24, 24)))(Image.open(file).convert("RGB"))
    downloaded = label_map(visitor.download("wide_labels.png"))
    assert (downloaded == in_tiles).mean() > 0.999
    visitor.page.locator("#tile input").fill("7")
    visitor.segment()
    assert visitor.problems() == ["The tile is 7: give 0, or at least 32 pixels."]


def test_no_path_of_this_machine_is_shown(visitor, semantic_model):
    visitor.page.locator("#model input").click()
    assert visitor.page.locator("#model input").input_value() == semantic_model.name
    assert str(semantic_model.parent) not in visitor.page.content()
    with urllib.request.urlopen(f"{visitor.address}/config", timeout=60) as answer:
        assert str(semantic_model.parent) not in answer.read().decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_stopping_the_command_stops_the_page_and_leaves_nothing(browser, semantic_model, tmp_path, number):
    """One process is started and stopped; it leaves no file where it was started, nor in the temporary folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "HF_HUB_OFFLINE": "1"}
    flags = ["--model_name_or_path", semantic_model, "--port", port]
    process = subprocess.Popen(
        [sys.executable, *map(str, [SPACE_COMMAND, *flags])], cwd=tmp_path / "here", env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in the foreground
    )  # fmt: skip
    try:
        for _ in range(480):
            assert process.poll() is None
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        process.send_signal(number)
        process.wait(60)
    finally:
        process.kill()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert [*(tmp_path / "here").iterdir(), *(tmp_path / "temporary").iterdir()] == []


def asked(address: str, values: object, **headers: str) -> tuple[int, str]:
    """Status and answer of the Space's API, as a program or another site asks it."""
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"{address}/gradio_api/call/show", json.dumps({"data": values}).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{address}/gradio_api/call/show/{event}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_models_that_were_not_given_at_the_start_are_not_loaded(space, tmp_path):
    """A model brings its own code."""
    assert "is not in the list of choices" in asked(space, [[], str(tmp_path), "semantic", 0.5, 0, 0])[1]


def test_other_sites_are_not_answered(space, semantic_model):
    """Neither under a name that leads here, nor through the browser of whoever started the Space."""
    values, port = [[], semantic_model.name, "semantic", 0.5, 0, 0], space.rpartition(":")[2]
    for headers in (
        {"Host": f"example.org:{port}"},
        {"Host": f"localhost.example.org:{port}"},
        {"Origin": "http://example.org"},
        {"Origin": "http://localhost:1"},
        {"Origin": "null"},
    ):
        status, answer = asked(space, values, **headers)
        assert status == 403 and "answers 127.0.0.1 and localhost only" in answer, headers
    for headers in ({}, {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}):
        status, answer = asked(space, values, **headers)
        assert status == 200 and "No image: upload one" in answer, headers


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, "street.png", "validation error"),
        (0, [{"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}], "was not uploaded by a user"),
        (1, ["a", 5], "is not in the list of choices"),
        (2, 5, "is not in the list of choices"),
        (3, "high", "slider"),
        (3, None, "slider"),
        (4, "large", "number"),
    ],
)
def test_values_of_a_wrong_type_are_said_to_be_wrong(space, semantic_model, place, value, message):
    values = [[], semantic_model.name, "semantic", 0.5, 0, 0]
    values[place] = value
    status, answer = asked(space, values)
    assert status == 200 and answer.startswith("event: error") and message in answer


CHOOSE_A_MODEL = """
import app
for app.ANY_MODEL in (app.ANY_MODEL, True):
    try:
        app.checked_model("other/model")
    except app.Problem as problem:
        print(problem)
"""


def test_on_the_hub_visitors_choose_among_the_named_models(browser, tmp_path):
    """A model brings its own code: a visitor must not choose whose code the Space runs."""
    write_space(tmp_path, "user/a-model")
    environment = {**os.environ, "SPACE_ID": "user/space", "HF_HUB_OFFLINE": "1"}
    environment.pop("ALLOW_ANY_MODEL", None)
    answer = subprocess.run(
        [sys.executable, "-c", CHOOSE_A_MODEL], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    on_the_hub, allowed = answer.stdout.splitlines()
    assert on_the_hub == "This Space offers user/a-model. Copy it to your account to use other/model."
    assert allowed.startswith("The model other/model cannot be loaded: it is not on this machine")
