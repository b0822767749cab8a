"""What a figure was measured on and with: the dataset's revision and the project's commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets

from scripts.data.arguments import DatasetArguments
from scripts.data.folders import matched_pairs
from scripts.data.sources import split_folders
from scripts.storage.digests import files_sha256


HUB_COMMIT = re.compile(r"^hf://datasets/[^@]+@([0-9a-f]{40})/")


def split_files(arguments: DatasetArguments, split: str) -> list[str]:
    """Paths or URLs of the files that a split is read from, by name; empty where `datasets` does not tell."""
    if folders := split_folders(arguments, split):
        return [file for _, *pair in matched_pairs(*folders) for file in pair]
    name = arguments.dataset_name or ""
    if Path(name).is_file():
        return [name]
    saved = Path(name) / split if (Path(name) / split).is_dir() else Path(name)
    if (saved / "state.json").is_file():
        return sorted(str(file) for file in saved.glob("*.arrow"))
    try:
        builder = datasets.load_dataset_builder(
            name, arguments.dataset_config_name, revision=arguments.dataset_revision
        )
    except (OSError, ValueError):
        return []
    return sorted(str(file) for file in (builder.config.data_files or {}).get(split, []))


def dataset_revision(arguments: DatasetArguments, split: str) -> dict[str, Any]:
    """What pins the data of a split down.

    Returns:
        `{"hub_commit": ...}` of a Hub dataset, `{"sha256": ..., "files": n}` over the split's local files by name, or
        `{}` where neither can be had.
    """
    files = split_files(arguments, split)
    commits = {match.group(1) for file in files if (match := HUB_COMMIT.match(file))}
    if len(commits) == 1:
        return {"hub_commit": commits.pop()}
    local = [Path(file) for file in files]
    if not local or not all(file.is_file() for file in local):
        return {}
    return {"sha256": files_sha256(local), "files": len(local)}
