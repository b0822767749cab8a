"""The code of a notebook, run in order in this process as a kernel does it: `python notebook_cells.py FILE`."""

import json
import sys
from pathlib import Path


def code_cells(notebook: Path) -> list[str]:
    """The source of each code cell."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


if __name__ == "__main__":
    names: dict[str, object] = {"__name__": "__main__"}
    for number, source in enumerate(code_cells(Path(sys.argv[1]))):
        exec(compile(source, f"cell {number}", "exec"), names)
