"""The Space: a page on which visitors segment images, written as a folder or started on this machine.

`python scripts/space.py --model_name_or_path outputs/demo/model` starts it on http://127.0.0.1:7860; `export_hub.py
--space` writes it as a folder that can be pushed to the Hub. Its files are those of `hub_cards/space/`, the drawing of
overlays, and example images.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import importlib.util
import json
import os
import runpy
import shutil
import signal
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT, ReadPath, flag, parse_arguments, run_command, start_of


SPACE = PROJECT_ROOT / "hub_cards" / "space"
# The last two are needed on the Hub, where the project is not installed.
SPACE_FILES = (
    SPACE / "app.py",
    SPACE / "segment.py",
    SPACE / "requirements.txt",
    PROJECT_ROOT / "scripts" / "drawing" / "visualization.py",
    PROJECT_ROOT / "scripts" / "inference" / "tiles.py",
)
CONVERT_FIRST = f"make it a folder of this project: {start_of('convert_checkpoint')} --mask2former"
SAMPLES = "samples/*_input.jpg"  # of a repository that `export_hub.py --sample_images` wrote
MOST_SAMPLES = 6
GRADIO_VERSION = "6.31.0"  # the one that the browser test runs


@dataclass
class SpaceArguments:
    """Start the page on which visitors segment images, on this machine."""

    model_name_or_path: list[str] = flag(
        [],
        "Folder of an exported model, or its name on the Hub (user/name); of several, visitors choose one. The code "
        "in them is run.",
        action=ReadPath,
    )
    port: int = flag(7860, "Port on which the page is served, at 127.0.0.1.")


def write_space(output_dir: Path, *model_ids: str, samples: Sequence[Path] = ()) -> None:
    """Writes the Space as a folder that can be pushed as it is, or started by `python app.py` in it. What the folder
    held before is gone.

    Args:
        model_ids: names on the Hub, or folders, of the models that the page offers; it starts with the first.
        samples: JPEG files that it shows as examples; without any, drawn roads.
    Raises:
        UserError: `output_dir` cannot be written.
    """
    import numpy as np

    from scripts.data.synthetic_scenes import draw_sample
    from scripts.storage.atomic import atomic_folder

    readme = (SPACE / "README.md").read_text(encoding="utf-8")
    # A JSON string is a YAML string, whatever the name holds.
    models = "\n  - ".join(map(json.dumps, model_ids))
    drawn = "The example images are drawn by a script and free to use."
    of_models = "The example images are sample images of the models' repositories."
    values = {
        "examples": of_models if samples else drawn,
        "title": json.dumps(f"FASeg {Path(model_ids[0]).name}"),
        "models": models,
    }
    for name, value in {**values, "sdk_version": GRADIO_VERSION}.items():
        readme = readme.replace(f"{{{{{name}}}}}", value)
    try:
        with atomic_folder(output_dir, manifest=False) as partial:
            (partial / "examples").mkdir()
            (partial / "README.md").write_text(readme, encoding="utf-8")
            for source in SPACE_FILES:
                shutil.copyfile(source, partial / source.name)
            for number, sample in enumerate(samples, 1):
                shutil.copyfile(sample, partial / "examples" / f"sample-{number}.jpg")
            for index in () if samples else (1, 2, 3):
                image, _ = draw_sample(np.random.default_rng(index), (480, 640))
                image.save(partial / "examples" / f"road-{index}.jpg", quality=90)
    except OSError as error:
        raise UserError(f"the Space could not be written to {output_dir}: {error.strerror or error}") from error


def sample_images(model_ids: Sequence[str]) -> list[Path]:
    """Sample images of the models' folders or repositories, the first model's first; none where the Hub has none, or
    cannot be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    found: list[Path] = []
    for model_id in model_ids:
        folder = Path(model_id)
        if not folder.is_dir():
            try:
                folder = Path(snapshot_download(model_id, allow_patterns=[SAMPLES]))
            except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
                continue  # the page says what is wrong with the model, if something is
        found += sorted(folder.glob(SAMPLES))
    return found[:MOST_SAMPLES]


def checked_model(name: str | None) -> str:
    """`name` as the page can use it: an absolute folder, or a name on the Hub.

    Raises:
        UserError: it is neither.
    """
    if not name:
        raise UserError("no model: give --model_name_or_path, a folder or a name on the Hub")
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"--model_name_or_path {name}: no config.json there: name an exported model's folder")
        if '"mask2former"' in (path / "config.json").read_text(encoding="utf-8", errors="replace"):
            raise UserError(f"--model_name_or_path {name} is a Mask2Former: {CONVERT_FIRST}")
        return str(path.resolve())
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--model_name_or_path {name}: neither a folder nor a name on the Hub") from error
    if path.is_absolute() or name.count("/") != 1:
        raise UserError(f"--model_name_or_path {name}: no such folder, and names on the Hub are user/model")
    return name


def check_port(port: int) -> None:
    """Raises `UserError` if nothing can listen there."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port}: give 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}: give another") from error


def main() -> int:
    arguments = parse_arguments(SpaceArguments)
    names: list[str | None] = [*arguments.model_name_or_path] or [None]
    model_ids = [checked_model(name) for name in names]
    check_port(arguments.port)
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "gradio is not installed: pip install 'faseg-transformers[demo]', or '.[demo]' in the checkout"
        )
    # The page runs in this process, so that whatever stops this stops it, and in a folder that is gone afterwards.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "space"
        write_space(folder, *model_ids, samples=sample_images(model_ids))
        os.environ.update(GRADIO_SERVER_NAME="127.0.0.1", GRADIO_SERVER_PORT=str(arguments.port))
        os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(temporary) / "uploads"))
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        runpy.run_path("app.py", run_name="__main__")
        os.chdir(PROJECT_ROOT)
    return 0


if __name__ == "__main__":
    run_command(main)
