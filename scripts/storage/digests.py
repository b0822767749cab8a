"""Digests of files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256(*files: Path) -> str:
    """Hexadecimal SHA-256 over the contents of files in the order given."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()
