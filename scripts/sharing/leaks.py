"""What must not leave with a repository: tokens, places on this machine, optimiser state, files nobody asked for."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import get_token

from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT, project_path


CODE_PACKAGES = ("configuration", "image_processing", "modeling_faseg")
# All that an export writes; a file of any other name is refused.
ALLOWED = (
    "config.json", "preprocessor_config.json", "README.md", "LICENSE", "LICENSE-CODE", "recipe.yaml",
    "train_log.jsonl", "model.safetensors", "model-?????-of-?????.safetensors",
    "model.safetensors.index.json", "samples/*.jpg", "samples/*.npy", "onnx/*.onnx",
    *sorted(file.name for package in CODE_PACKAGES for file in (PROJECT_ROOT / package).glob("[!_]*.py")),
)  # fmt: skip
# Exports of earlier versions held further files of code; they may be replaced, not uploaded.
EARLIER = (*ALLOWED, "*_faseg.py", "*_semask.py", "*_qlseg.py")
SPACE_ALLOWED = ("app.py", "README.md", "requirements.txt", "examples/*", "*.py", "*.css", "LICENSE")
TEXT_ENDINGS = (".json", ".jsonl", ".yaml", ".md", ".py", ".txt", ".css")
SECRETS = {
    "a Hugging Face token": re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}"),
    "an access key": re.compile(r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{30,})"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "an address with a password": re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/?#'\"]+@"),
    "a place on this machine": re.compile(
        r"(?<![\w:/.\-])(?:file://)?/(?:home|Users|root|tmp|mnt|media|data|srv|opt|var|scratch|work|workspace|private|"
        r"Volumes|gpfs|lustre|nfs|content|kaggle)/[^\s'\"`)\],]+"
        r"|\b[A-Za-z]:\\+(?:Users|home|data)\\+[^\s'\"]+"
    ),
}  # fmt: skip
# Values of a recipe that are places, and ones that the Hub has no use for.
PLACES = (
    "dataset_name", "train_images", "train_masks", "train_annotations", "train_class_masks", "eval_images",
    "eval_masks", "eval_annotations", "eval_class_masks", "id2label", "class_map", "mask_colors", "class_counts",
    "albumentations", "backbone_weights", "config_name", "model_name_or_path", "recipe", "warm_start",
)  # fmt: skip
PRIVATE = ("output_dir", "resume_from_checkpoint", "hub_token", "report_to", "tracker_project")
HEADER_BYTES = 8


def is_place(value: str) -> bool:
    """Whether a recipe's value is a path on this machine rather than a Hub id or a URL."""
    if re.match(r"[/~.\\]|[A-Za-z]:[\\/]", value):
        return True
    return project_path(value) != value or Path(value).exists()


def scrubbed_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without what belongs to this machine: paths keep their last part, places to write to go."""
    found = {key: value for key, value in recipe.items() if key not in PRIVATE}
    for key in PLACES:
        value = found.get(key)
        if isinstance(value, str) and is_place(value):
            found[key] = Path(value.replace("\\", "/")).name
    return found


def write_scrubbed_recipe(source: Path, target: Path) -> dict[str, Any]:
    """Copies a `recipe.yaml` without what belongs to this machine, and returns it.

    Raises:
        UserError: it is no mapping.
    """
    try:
        recipe = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{source}: {error}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{source} holds {type(recipe).__name__}: write `key: value` lines")
    recipe = scrubbed_recipe(recipe)
    target.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return recipe


def repository_files(folder: Path, allowed: tuple[str, ...] = ALLOWED) -> list[str]:
    """Names of the files of an export, sorted.

    Raises:
        UserError: a file that no export writes.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    for name in names:
        if not any(fnmatch(name, pattern) for pattern in allowed) or (folder / name).is_symlink():
            raise UserError(f"{folder / name} is no part of a model repository: remove it, or name another folder")
    return names


def readable_text(file: Path) -> str:
    """The text of a file that a reader of the repository can see: all of it, or a safetensors file's header."""
    if file.suffix in TEXT_ENDINGS or not file.suffix:
        return file.read_text(encoding="utf-8")
    if file.suffix == ".safetensors":
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(HEADER_BYTES), "little")
            return json.dumps(json.loads(stream.read(size)).get("__metadata__", {}))
    return file.read_bytes().decode("latin-1")


def find_leak(text: str) -> tuple[int, str, str] | None:
    """`(line, what, the text itself)` of the first secret in a text."""
    own = {
        value: "a place on this machine"
        for value in (str(Path.home()), str(PROJECT_ROOT))
        if len(value) > len("/root")
    }
    if token := get_token():
        own[token] = "your token"
    for number, line in enumerate(text.splitlines(), 1):
        for value, what in own.items():
            if value in line:
                return number, what, value
        for what, pattern in SECRETS.items():
            if match := pattern.search(line):
                return number, what, match[0]
    return None


def check_leaks(folder: Path, allowed: tuple[str, ...] = ALLOWED) -> list[str]:
    """Names of the files to upload, after a look into each.

    Raises:
        UserError: names the file, the line and what is secret in it, without printing a token.
    """
    names = repository_files(folder, allowed)
    for name in names:
        try:
            found = find_leak(readable_text(folder / name))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / name} cannot be read: {error}") from error
        if found:
            number, what, value = found
            shown = value if what == "a place on this machine" else f"{value[:6]}..."
            raise UserError(f"{folder / name}, line {number}: holds {what} ({shown}): nothing was uploaded; remove it")
    return names
