"""Official checkpoint files: read without running code, fetched with resume."""

import http.client
import os
import pickle
import re
import time
import urllib.error
import urllib.request
import warnings
from email.message import Message
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from scripts.models.parameter_names import ConversionError


PICKLE_SUFFIXES = (".pth", ".pt", ".pkl", ".bin")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in `path` (`.safetensors`; `.pth`, `.pt`, `.pkl` or `.bin` with weights only), on the CPU.

    A file may hold the state dict itself, `{"model": state dict, ...}` or `{"state_dict": state dict, ...}`.

    Raises:
        ConversionError: naming the file and what is wrong with it.
    """
    if not path.exists():
        raise ConversionError(f"no such checkpoint file: {path}")
    if not path.is_file():
        raise ConversionError(f"not a file: {path}: give the checkpoint file itself")
    if path.suffix == ".safetensors":
        try:
            return _finite(load_file(path), path)
        except SafetensorError as error:
            raise ConversionError(f"{path} is truncated or no safetensors file: {_one_line(error)}") from error
    if path.suffix not in PICKLE_SUFFIXES:
        raise ConversionError(
            f"{path}: unknown kind {path.suffix!r}; known: .safetensors, {', '.join(PICKLE_SUFFIXES)}"
        )
    content = _read_pickle(path)
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return _finite(_as_state_dict(content, path), path)


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol, ahead of the error that says more
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message covers many lines and offers to run the code; the name of what it found is enough.
        if found := re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error)):
            reason = f"it calls {found.group(1)}"
        else:
            reason = "a plain pickle, such as the official .pkl layout, or no checkpoint at all"
        raise ConversionError(
            f"{path} holds more than tensors ({reason}) and reading it could run code: refused; save its tensors as "
            ".safetensors where you trust it"
        ) from error
    except (EOFError, RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path} is truncated or no PyTorch file: {_one_line(error)}") from error


def _as_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a {type(content).__name__}, not a state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ConversionError(
                f"{path} is no state dict: entry {name!r} is a {type(value).__name__}, not a tensor (expected a plain "
                'state dict or {"model": state dict})'
            )
    return dict(content)


def _finite(state_dict: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for name, value in state_dict.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ConversionError(f"{path}: {name} has values that are not finite numbers: damaged, or a diverged run")
    return state_dict


def download(url: str, folder: Path, attempts: int = 5, wait_seconds: float = 1.0, timeout: float = 30.0) -> Path:
    """Fetch `url` into `folder`, with a progress bar; go on where an earlier try, or an earlier run, stopped.

    What has arrived lies in `<name>.part` until it is complete. The server's version of the file (`ETag` or
    `Last-Modified`) is kept beside it, so that two versions are not joined. A complete file is not fetched again.

    Raises:
        ConversionError: when the file cannot be had after `attempts` tries; what has arrived stays for the next run.
    """
    if not url.startswith(("http://", "https://")):
        raise ConversionError(f"url {url!r} does not start with http:// or https://")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / url.rsplit("/", 1)[-1]
    if target.exists():
        return target
    part = target.with_name(target.name + ".part")
    for attempt in range(1, attempts + 1):
        try:
            _fetch_rest(url, part, timeout)
            os.replace(part, target)
            part.with_name(part.name + ".version").unlink(missing_ok=True)
            return target
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise ConversionError(f"{url}: the server answers {error.code} {error.reason}") from error
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = _one_line(getattr(error, "reason", None) or error)
        if attempt < attempts:
            time.sleep(wait_seconds * attempt)
    arrived = part.stat().st_size if part.exists() else 0
    kept = f"; {arrived} bytes are kept in {part} and the next run goes on from there" if arrived else ""
    raise ConversionError(
        f"cannot fetch {url} ({reason}){kept}; without a network give the file itself: --checkpoint FILE"
    )


def _fetch_rest(url: str, part: Path, timeout: float) -> None:
    """One request for what `part` still lacks.

    Raises:
        OSError or http.client.HTTPException: when the connection fails or ends early.
    """
    version_file = part.with_name(part.name + ".version")
    present = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if present:
        request.add_header("Range", f"bytes={present}-")
        if version_file.exists():
            request.add_header("If-Range", version_file.read_text())
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{present}"):
            return  # Nothing was lacking.
        part.unlink()
        raise ConnectionError("the file on the server is shorter than what had arrived") from error
    with response:
        if response.status != 206:
            present = 0  # The whole file comes: another version, or a server that cannot continue.
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {present}-"):
            part.unlink()
            raise ConnectionError("the server continued at another place than asked for")
        _remember_version(response.headers, version_file)
        length = response.headers.get("Content-Length")
        total = present + int(length) if length else None
        bar = tqdm(total=total, initial=present, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1])
        with bar, part.open("ab" if present else "wb") as file:
            while chunk := response.read1(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
            arrived = file.tell()
    if total is not None and arrived != total:
        raise ConnectionError(f"the connection ended after {arrived} of {total} bytes")


def _remember_version(headers: Message, version_file: Path) -> None:
    etag = headers.get("ETag", "")
    version = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    if version:
        version_file.write_text(version)
    else:
        version_file.unlink(missing_ok=True)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
