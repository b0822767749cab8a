"""Programs run where the project cannot be imported, as on a machine that never installed it."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
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
# Forks a process for each program it is told of. It has imported what takes longest and reads nothing from the
# environment; all of Hugging Face's libraries are the child's to import.
SERVER = """
import json, os, traceback
import torch, torchvision
for line in sys.stdin:
    program, arguments, folder, environment, printed = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for number, file in enumerate((os.devnull, printed + ".out", printed + ".err")):
                os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            sys.argv[1:] = arguments
            exec(compile(program, "<program>", "exec"), {"__name__": "__main__", "sys": sys})
            status = 0
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else int(left.code is not None)
            if isinstance(left.code, str):
                print(left.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed, flush=True)
"""


def run_clean(program: str, arguments: list[str], folder: Path, **environment: str) -> str:
    """Standard output of `program` in a process of its own, with its caches in `folder`.

    Args:
        environment: on top of this process's; `HF_HUB_OFFLINE` is 1 unless it is given.
    Raises:
        AssertionError: it failed; with its standard error.
    """
    printed, errors = run_apart(program, arguments, folder, **environment)
    assert "is not supported" not in errors
    return printed


def run_apart(program: str, arguments: list[str], folder: Path, **environment: str) -> tuple[str, str]:
    """As `run_clean`: standard output and standard error."""
    caches = {"HF_HOME": str(folder / "cache"), "HF_MODULES_CACHE": str(folder / "modules")}
    environment = {**os.environ, **caches, "HF_HUB_OFFLINE": "1", **environment}
    with tempfile.TemporaryDirectory() as place:
        files = Path(place) / "printed"
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps([program, arguments, str(folder), environment, str(files)]) + "\n")
        server.stdin.flush()
        ended = ["", ""]
        while ended[1] != str(files):  # what a test that ran out of time left behind ends later
            line = server.stdout.readline()
            assert line, "the server of clean processes ended"
            ended = line.split()
        printed, errors = (files.with_suffix(ending).read_text() for ending in (".out", ".err"))
    assert ended[0] == "0", f"exit code {ended[0]}\n{errors[-3000:]}"
    return printed, errors


@functools.cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-I", "-c", PRELUDE + SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.kill)
    return server
