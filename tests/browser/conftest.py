"""A headless browser, a tiny model's folder, and the Space on localhost."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from space_models import write_tiny_model


ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="session")
def browser():
    """Chromium as the system installed it, or the executable in `CHROMIUM`."""
    executable = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed, and CHROMIUM names none")
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def semantic_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model that knows semantic maps only."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny-semantic", "semantic")


@pytest.fixture(scope="session")
def panoptic_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model that offers all three tasks."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny-panoptic", "panoptic")


@pytest.fixture(scope="session")
def space(
    browser, semantic_model: Path, panoptic_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Address of the Space, started by the command that users start it by."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "space.log"
    models = [str(semantic_model), str(panoptic_model)]
    command = [sys.executable, str(ROOT / "scripts" / "space.py"), "--model_name_or_path", *models]
    environment = {**os.environ, "MAX_MEGAPIXELS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(480):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.5)
        else:
            pytest.fail(f"the Space did not start in four minutes: {log.read_text()}")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
