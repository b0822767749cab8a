"""What processes of a command agree on."""

import pytest

from scripts.cli.errors import UserError
from scripts.cli.processes import build_accelerator
from scripts.storage import retries


def test_processes_wait_for_each_other_longer_than_one_may_wait_for_the_network(monkeypatch):
    """Each reads its own shards: one may be at its last retry while the others wait in a sum."""
    waited = []
    monkeypatch.setattr(retries.time, "sleep", waited.append)

    def silent():
        waited.append(retries.READ_TIMEOUT)
        raise ConnectionError("no byte")

    with pytest.raises(UserError, match="gave up after 20 retries"):
        retries.with_retries(silent, "a shard")
    timeout = build_accelerator(None).init_handler.to_kwargs()["timeout"].total_seconds()
    assert 600 < sum(waited) < timeout
