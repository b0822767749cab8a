"""Programs run where the project cannot be imported, as on a machine that never installed it."""

import os
import subprocess
import sys
from pathlib import Path


# `python -I` leaves out the working directory; an editable installation is found by a finder that is taken out.
PRELUDE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
for name in ("configuration", "image_processing", "modeling_faseg", "scripts"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} can be imported here")
"""


def run_clean(program: str, arguments: list[str], folder: Path) -> str:
    """Standard output of `program` in a process of its own, with its caches in `folder`.

    Raises:
        AssertionError: it failed; with its standard error.
    """
    result = subprocess.run(
        [sys.executable, "-I", "-c", PRELUDE + program, *arguments],
        cwd=folder,
        env={**os.environ, "HF_HOME": str(folder / "cache"), "HF_MODULES_CACHE": str(folder / "modules")}
        | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "is not supported" not in result.stderr
    return result.stdout
