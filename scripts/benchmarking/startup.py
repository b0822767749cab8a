"""What it costs to ask a command for its help, and to misspell a flag: seconds of CPU time (user and system)."""

from __future__ import annotations

import statistics
import subprocess
import sys

from scripts.cli.parser import PROJECT_ROOT


REPETITIONS = 3
CALLS = {"--help": ["--help"], "wrong flag": ["--no_such_flag", "1"]}


def command_files() -> list[str]:
    """Names of the commands in `scripts/`, sorted."""
    files = (PROJECT_ROOT / "scripts").glob("*.py")
    return sorted(file.name for file in files if "run_command(main)" in file.read_text(encoding="utf-8"))


def cpu_seconds(name: str, flags: list[str]) -> float:
    """CPU time of one call of a command, its children included."""
    import resource  # not on Windows

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, str(PROJECT_ROOT / "scripts" / name), *flags], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def startup_table() -> str:
    """A row per command: the medians of `REPETITIONS` calls of each kind."""
    names = command_files()
    width = max(map(len, names))
    lines = [f"{'CPU seconds':<{width}}" + "".join(f"  {call:>10}" for call in CALLS)]
    for name in names:
        medians = (statistics.median(cpu_seconds(name, flags) for _ in range(REPETITIONS)) for flags in CALLS.values())
        lines.append(f"{name:<{width}}" + "".join(f"  {seconds:>10.2f}" for seconds in medians))
    return "\n".join(lines)
