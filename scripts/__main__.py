"""`faseg VERB ...`: all commands under one name, from any folder; `python -m scripts VERB ...` is the same."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from pathlib import Path


# The verb of each command, in the order in which a user comes to them.
VERBS = {
    "demo": "demo",
    "check": "check_dataset",
    "pack": "pack_dataset",
    "train": "train",
    "eval": "eval",
    "predict": "predict",
    "explain": "explain",
    "convert": "convert_checkpoint",
    "export-hub": "export_hub",
    "export-onnx": "export_onnx",
    "space": "space",
    "benchmark": "benchmark",
    "ablation": "ablation",
    "tables": "tables",
}


def purpose(script: str) -> str:
    """The first sentence of a command's docstring, read without importing the command."""
    source = (Path(__file__).parent / f"{script}.py").read_text(encoding="utf-8")
    return " ".join((ast.get_docstring(ast.parse(source)) or "").split()).partition(". ")[0].rstrip(".")


def overview() -> str:
    """What `faseg --help` prints: a line per verb."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {purpose(script)}." for verb, script in VERBS.items()]
    head = ["usage: faseg VERB [--flag value ...]", "", "`faseg VERB --help` lists the flags of a verb.", ""]
    return "\n".join([*head, *lines])


def main() -> int:
    """Hands the rest of the command line to the verb's command; returns the exit code where there is none."""
    given, *flags = sys.argv[1:] or ["--help"]
    if given in ("-h", "--help"):
        print(overview())
        return 0
    by_name = {script.replace("_", "-"): verb for verb, script in VERBS.items()} | {verb: verb for verb in VERBS}
    verb = by_name.get(given.replace("_", "-"))
    if verb is None:
        near = difflib.get_close_matches(given, by_name, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(VERBS)}"
        print(f"faseg: error: no verb {given!r}: {hint}", file=sys.stderr)
        return 2
    sys.argv = [f"faseg {verb}", *flags]
    from scripts.cli.parser import run_command

    run_command(lambda: importlib.import_module(f"scripts.{VERBS[verb]}").main())


if __name__ == "__main__":
    sys.exit(main())
