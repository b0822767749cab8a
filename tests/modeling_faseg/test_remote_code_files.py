"""The files that travel with a model: each entry file names all that it reaches, or a broken download stays broken.

transformers fetches remote code file by file. After a download that was cut, it asks again only for those missing
files that the entry file itself imports, not for what the files that did arrive import in turn.
"""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
ENTRIES = [
    "configuration/configuration_faseg.py",
    "configuration/configuration_semask.py",
    "configuration/configuration_qlseg.py",
    "image_processing/image_processing_faseg.py",
    "image_processing/image_processing_pil_faseg.py",
    "modeling_faseg/modeling_faseg.py",
    "modeling_faseg/backbone_semask.py",
    "modeling_faseg/modeling_semask.py",
    "modeling_faseg/modeling_qlseg.py",
]


def imported(file: Path) -> set[str]:
    """Siblings that a file imports, as transformers finds them: by a pattern, wherever the line stands."""
    return set(re.findall(r"^\s*from\s+\.(\S+)\s+import", file.read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_file_names_every_file_it_reaches(entry):
    file = ROOT / entry
    # The bridge in `modeling_faseg/` is replaced by the configuration itself when a model is exported.
    homes = [ROOT / "configuration", file.parent]
    reached, waiting = set(), [file]
    while waiting:
        for name in imported(waiting.pop()) - reached:
            reached.add(name)
            waiting.append(next(home / f"{name}.py" for home in homes if (home / f"{name}.py").is_file()))
    assert sorted(reached - {file.stem} - imported(file)) == []
