"""The commands on the pages of the documentation."""

import re
import shlex

from scripts.__main__ import VERBS


MODULE = re.compile(r"(?:scripts/(\w+)\.py|scripts\.(\w+))$")


def shell_lines(page):
    """Commands of a page's shell blocks, continued lines joined, without comments."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```(?:bash|shell|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # a part of `bash -c '...'` that goes over several lines
                words = shlex.split(line.replace("'", " "), comments=True)
            # A variable that stands alone may hold flags or nothing; one after a flag is its value.
            pairs = zip(["", *words], words)
            if words := [word for last, word in pairs if not word.startswith("$") or last.startswith("--")]:
                yield words


def script_commands(page):
    """`(module, flags)` of the lines that start a command: by `faseg`, python, -m or accelerate launch."""
    for words in shell_lines(page):
        if words[0] == "faseg":
            yield VERBS[words[1]], words[2:]
            continue
        for index, word in enumerate(words):
            if match := MODULE.match(word):
                yield match[1] or match[2], words[index + 1 :]
                break
