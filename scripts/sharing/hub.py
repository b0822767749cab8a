"""The push: `huggingface_hub`'s own calls, one commit, and what to say when one of them fails."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import get_session

from scripts.cli.errors import UserError, causes
from scripts.models.model_files import CONFIG, KINDS, read_model_file
from scripts.sharing.leaks import ALLOWED
from scripts.storage.retries import asked_wait, http_status, network_fault


READ_TIMEOUT = 120.0  # seconds without a byte; the library's own client would wait for ever
# What the Hub's client raises for answers, names, files and uploads that are wrong.
HUB_ERRORS = (HfHubHTTPError, HFValidationError, OSError, RuntimeError, ValueError)


@dataclass
class Pushed:
    """What a push came to.

    Args:
        commit: the head of the repository now.
        changed: False where it held all of it before.
    """

    url: str
    commit: str
    changed: bool


def bound_waiting() -> None:
    """Gives the Hub's client a time limit on silence."""
    client_class, hooks = type(get_session()), get_session().event_hooks
    set_client_factory(lambda: client_class(event_hooks=hooks, follow_redirects=True, timeout=READ_TIMEOUT))


def failure(error: BaseException, repo_id: str) -> str:
    """In a few words, what the Hub or the way to it refused and what would help."""
    status = next((found for cause in causes(error) if (found := http_status(cause)) is not None), None)
    endpoint = constants.ENDPOINT
    answer = next((getattr(cause, "server_message", None) for cause in causes(error)), None) or ""
    said = f" ({answer})" if answer else ""
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes(error)):
        return "HF_HUB_OFFLINE is set, so nothing may be pushed: unset it"
    if status == 401:
        return f"{endpoint} does not accept the token: make one with write access and run `hf auth login`"
    if status == 403:
        owner = repo_id.partition("/")[0]
        return f"the token may not write to {repo_id}{said}: take a name of your own in place of {owner}/"
    if status == 409:
        return f"the name is taken or the repository is being changed by somebody else{said}"
    if status in (413, 422) or "LFS batch API returned errors" in str(error):
        lines = [line for cause in causes(error) for line in str(cause).splitlines()]
        reason = next((line.partition("`")[2] for line in lines if "OID" in line), answer or lines[-1])
        return f"the Hub refuses the size of a file or of the account: {reason}"
    if status == 429:
        wait = next((seconds for cause in causes(error) if (seconds := asked_wait(cause))), 0)
        return f"{endpoint} asks to slow down (429){f', for {wait:.0f} seconds' if wait else ''}"
    if status is not None and status >= 500:
        return f"{endpoint} has a fault of its own ({status})"
    if (fault := network_fault(error)) is not None:
        return f"{endpoint} does not answer ({type(fault).__name__})"
    return (str(error).strip().splitlines() or [type(error).__name__])[0] + said


@dataclass
class Repository:
    """A repository on the Hub, before and while it is pushed to.

    Args:
        head: its last commit before the push; None while it does not exist.
    """

    api: HfApi
    repo_id: str
    repo_type: str
    head: str | None = None
    created: bool = False
    committing: bool = False

    @property
    def url(self) -> str:
        """Its page."""
        prefix = constants.REPO_TYPES_URL_PREFIXES.get(self.repo_type, "")
        return f"{constants.ENDPOINT}/{prefix}{self.repo_id}"

    def info(self) -> Any:
        """What the Hub says of it; None if there is none."""
        try:
            return self.api.repo_info(self.repo_id, repo_type=self.repo_type)
        except RepositoryNotFoundError as error:
            if http_status(error) == 401:  # a bad token, too, is answered so
                self.api.whoami()
            return None

    def state(self) -> str:
        """What a push that failed left behind, to the user."""
        again = "run the same command again"
        if self.committing:
            try:
                now = self.info()
            except Exception:  # the Hub is still away
                return f"whether the commit arrived is not known: {again}, it changes nothing twice"
            if now is not None and now.sha != self.head:
                return f"the commit {now.sha[:12]} arrived all the same: {again} to finish"
        if self.created:
            return f"{self.url} was created and is still empty: {again} to go on, or delete it in its settings"
        return f"nothing on the Hub was changed: {again}" if self.head is None else f"{self.url} is as it was: {again}"

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turns what goes wrong with the Hub into one line with what it left behind.

        Raises:
            UserError: instead of whatever the Hub's client raised.
        """
        try:
            yield
        except KeyboardInterrupt:
            print(f"push stopped: {self.state()}", file=sys.stderr)
            raise
        except UserError:
            raise
        except Exception as error:  # the HTTP client's own exceptions share no base with the rest
            if not isinstance(error, HUB_ERRORS) and network_fault(error) is None:
                raise
            print(file=sys.stderr)  # below the bar of an upload that was cut
            raise UserError(f"push to {self.repo_id}: {failure(error, self.repo_id)}; {self.state()}") from error


def foreign_content(repository: Repository, folder: Path, present: list[str]) -> str | None:
    """What an existing repository is instead of an earlier push of this model or its demo; None if it is one."""
    name = "config.json" if repository.repo_type == "model" else "README.md"
    with tempfile.TemporaryDirectory() as temporary:
        there = None
        if name in present:
            repo_id, kind = repository.repo_id, repository.repo_type
            there = Path(repository.api.hf_hub_download(repo_id, name, repo_type=kind, local_dir=temporary))
        if repository.repo_type == "space":
            models = (metadata_load(there) or {}).get("models") if there else None
            return "another app" if "app.py" in present and repository.repo_id not in (models or []) else None
        found = read_model_file(there, "its config.json", KINDS[CONFIG]).get("model_type") if there else None
    own = read_model_file(folder / name, str(folder / name), KINDS[CONFIG])["model_type"]
    weights = [file for file in present if file.endswith((".safetensors", ".bin", ".gguf"))]
    return None if found == own else f"a {found} model" if found else next(iter(weights), None)


def stale_files(repository: Repository, folder: Path, names: list[str], allowed: tuple[str, ...]) -> list[str]:
    """Files of an existing repository that exports write but this one does not have: they go. Others stay.

    Raises:
        UserError: the repository is something else.
    """
    present = repository.api.list_repo_files(repository.repo_id, repo_type=repository.repo_type)
    if foreign := foreign_content(repository, folder, present):
        raise UserError(f"--repo_id {repository.repo_id}: {repository.url} holds {foreign}: take another name")
    written = [name for name in present if any(fnmatch(name, pattern) for pattern in allowed)]
    return [name for name in written if name not in names]


def tagged_commit(repository: Repository, tag: str | None) -> str | None:
    """The commit that a tag of the repository stands for; None if there is no such tag."""
    refs = repository.api.list_repo_refs(repository.repo_id, repo_type=repository.repo_type)
    return next((ref.target_commit for ref in refs.tags if ref.name == tag), None)


def push(
    folder: Path,
    names: list[str],
    repo_id: str,
    private: bool = False,
    tag: str | None = None,
    message: str = "Upload model",
    repo_type: str = "model",
    allowed: tuple[str, ...] = ALLOWED,
) -> Pushed:
    """Makes the repository hold the files `names` of `folder`: one commit, or none if it does already.

    Large files go up first and stay on the Hub, so that a push that was cut goes on where it stopped.

    Raises:
        UserError: says in one line what failed, and what is left on the Hub.
    """
    if get_token() is None:
        raise UserError("no token to push with: run `hf auth login`, or set HF_TOKEN")
    bound_waiting()
    repository = Repository(HfApi(), repo_id, repo_type)
    with repository.reporting():
        repository.api.whoami()
        before = repository.info()
        stale: list[str] = []
        if before is not None:
            repository.head = before.sha
            if private and not before.private:
                raise UserError(
                    f"--private: {repository.url} is public: change it in its settings, or leave the flag out"
                )
            stale = stale_files(repository, folder, names, allowed)
            if (tagged := tagged_commit(repository, tag)) not in (None, before.sha):
                raise UserError(f"--revision {tag}: the tag stands for commit {tagged[:12]} already: take another")
        else:
            sdk = "gradio" if repo_type == "space" else None
            repository.api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)
            after = repository.info()
            repository.head, repository.created = (after.sha if after else None), True
        repository.committing = True
        additions = [CommitOperationAdd(name, folder / name) for name in names]
        deletions = [CommitOperationDelete(name) for name in stale]
        commit = repository.api.create_commit(
            repo_id, [*additions, *deletions], commit_message=message, repo_type=repo_type
        )
        if tag is not None:
            if (tagged := tagged_commit(repository, tag)) not in (None, commit.oid):
                raise UserError(
                    f"pushed as commit {commit.oid[:12]}, but --revision {tag} stands for {tagged[:12]} already: run "
                    "the same command again with another"
                )
            repository.api.create_tag(repo_id, tag=tag, revision=commit.oid, repo_type=repo_type, exist_ok=True)
    return Pushed(repository.url, commit.oid, changed=commit.oid != repository.head)
