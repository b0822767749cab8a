"""Faults of the network while a dataset is read: told from other errors, waited out, shown on standard error.

`huggingface_hub` and `datasets` try a request again a few times themselves; what is here goes on from there.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import fsspec.config
from tqdm import tqdm

from scripts.cli.errors import UserError, causes


MAX_RETRIES = 20  # in a row: a quarter of an hour
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds
READ_TIMEOUT = 30.0  # seconds without a byte, on plain HTTP; the Hub's own is HF_HUB_DOWNLOAD_TIMEOUT
PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
# Faults of the HTTP clients below `huggingface_hub` (httpx, httpx2) and `fsspec` (aiohttp), whichever are installed.
CLIENT_FAULTS = (("httpx", "TransportError"), ("httpx2", "TransportError"), ("aiohttp", "ClientError"))

Result = TypeVar("Result")


class Busy(ConnectionError):
    """A server that is there but failed a request; what it answered is not known."""

    status = 503


def http_status(error: BaseException) -> int | None:
    """Status of an answer that was an error, None for other faults."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) else None


def network_fault(error: BaseException) -> BaseException | None:
    """The fault of the network that `error` came from and that may pass, None if there is none."""
    chain = list(causes(error))
    from huggingface_hub.errors import OfflineModeIsEnabled

    if any(isinstance(cause, OfflineModeIsEnabled) for cause in chain):  # a setting, which stays
        return None
    for cause in chain:
        if (status := http_status(cause)) is not None:
            return cause if status in PASSING_STATUS else None
    for cause in chain:
        kinds = [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(cause).__mro__]
        if isinstance(cause, (ConnectionError, TimeoutError)) or any(kind in kinds for kind in CLIENT_FAULTS):
            return cause
    return None


def asked_wait(error: BaseException) -> float:
    """Seconds that the server asked to wait (`Retry-After`), 0 if it did not."""
    headers = getattr(getattr(error, "response", None), "headers", None) or getattr(error, "headers", None) or {}
    try:
        return max(0.0, float(headers.get("Retry-After", 0)))
    except (TypeError, ValueError):  # a date
        return 0.0


def with_retries(call: Callable[[], Result], what: str, if_answered: bool = False) -> Result:
    """The result of `call`, tried again after faults of the network, with twice the wait each time.

    Args:
        if_answered: try again only where a server answered, for what may be a wrong name or a machine without network.
    Raises:
        UserError: `MAX_RETRIES` in a row have failed.
        Exception: that of `call`, if it is no fault of the network.
    """
    failures = 0
    while True:
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            fault = network_fault(error)
            if fault is None or (if_answered and http_status(fault) is None):
                raise
            reason = f"{what}: {type(fault).__name__}: {(str(fault).splitlines() or [''])[0]}"
            if failures >= MAX_RETRIES:
                raise UserError(f"{reason}: gave up after {MAX_RETRIES} retries") from error
            seconds = max(asked_wait(fault), min(LONGEST_WAIT, FIRST_WAIT * 2**failures))
            failures += 1
            tqdm.write(f"{reason}: retry {failures} of {MAX_RETRIES} in {seconds:g} s", file=sys.stderr)
            time.sleep(seconds)


def bound_stalls() -> None:
    """Gives plain HTTP a read timeout, without which a silent server would stop a run for five minutes a time.

    Also lets the retries of `datasets` be seen, which commands silence with its other messages.
    """
    for protocol in ("http", "https"):
        settings = fsspec.config.conf.setdefault(protocol, {})
        if "client_kwargs" not in settings:
            from aiohttp import ClientTimeout

            settings["client_kwargs"] = {"timeout": ClientTimeout(total=None, sock_read=READ_TIMEOUT)}
    logging.getLogger("datasets.utils.file_utils").setLevel(logging.WARNING)
