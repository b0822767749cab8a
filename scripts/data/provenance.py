"""What a figure was measured on and with: the dataset's revision and the project's commit."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets

from scripts.cli.parser import PROJECT_ROOT, project_path
from scripts.data.folders import matched_pairs
from scripts.data.sources import DatasetArguments, split_folders


HUB_COMMIT = re.compile(r"^hf://datasets/[^@]+@([0-9a-f]{40})/")


def files_sha256(files: Iterable[Path]) -> str | None:
    """SHA-256 over the contents of files in the order given; None without any."""
    digest, any_file = hashlib.sha256(), False
    for file in files:
        any_file = True
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest() if any_file else None


def split_files(arguments: DatasetArguments, split: str) -> list[str]:
    """Paths or URLs of the files that a split is read from, by name; empty where `datasets` does not tell."""
    if folders := split_folders(arguments, split):
        return [file for _, *pair in matched_pairs(*folders) for file in pair]
    name = project_path(arguments.dataset_name or "")
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


def project_commit() -> dict[str, Any] | None:
    """`commit` of the checkout that runs, and whether it is `dirty`: a tracked file differs; None outside one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PROJECT_ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != PROJECT_ROOT:
            return None  # installed below somebody else's checkout
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None
