"""A loopback stand-in for the Hub that takes pushes: repositories, LFS uploads, commits, tags and pulls, in memory."""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote

import yaml
from hub_server import LoopbackServer


TOKEN, OTHER_TOKEN = "hf_" + "t" * 34, "hf_" + "o" * 34
USERS = {TOKEN: "tester", OTHER_TOKEN: "other"}
LFS_ENDINGS = (".safetensors", ".onnx")
PREFIXES = {"models": "", "spaces": "spaces/", "datasets": "datasets/"}


def git_sha(body: bytes) -> str:
    """The name that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@dataclass
class Repository:
    """A repository: `commits` by name -> its files; the last one is `main`."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        """Adds a commit."""
        name = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[name] = files
        return name

    @property
    def head(self) -> str:
        """Name of the last commit."""
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """Files of the last commit."""
        return self.commits[self.head]

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit's name stands for."""
        if revision == "main":
            return self.head
        return self.tags.get(revision) or (revision if revision in self.commits else None)


class PushHub(LoopbackServer):
    """The stand-in; `repositories` by `<kind>/<user>/<name>`, kind being models or spaces.

    Args:
        faults: `[text, fault, times]`: what happens, so many times, to requests whose `METHOD path` holds `text`:
            "drop" (the connection breaks after half of the body), "stall" (nothing comes for `stall_seconds`), "lost"
            (it is done, but the answer never comes), or a status.
        max_lfs_bytes: larger files are refused.
    """

    def __init__(self, faults=(), stall_seconds: float = 30.0, max_lfs_bytes: int = 2**40) -> None:
        super().__init__(Handler)
        self.faults = [list(fault) for fault in faults]
        self.stall_seconds, self.max_lfs_bytes = stall_seconds, max_lfs_bytes
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.lock = threading.Lock()

    def requested(self, text: str) -> int:
        """How many requests held `text`."""
        return sum(text in request for request in self.requests)

    def next_fault(self, request: str):
        """What is to happen to a request."""
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault[0] in request and fault[2] > 0:
                    fault[2] -= 1
                    return fault[1]
        return None

    def metadata_errors(self, content: str, kind: str) -> list[str]:
        """What the Hub would find wrong with a card's metadata."""
        parts = content.split("---\n")
        if len(parts) < 3 or parts[0]:
            return ["no metadata"]
        data = yaml.safe_load(parts[1])
        needed = ("title", "sdk", "app_file") if kind == "space" else ()
        found = {key: data.get(key) for key in ("license", "pipeline_tag", *needed) if key in data or key in needed}
        errors = [f'"{key}" must be text' for key, value in found.items() if not isinstance(value, str)]
        if data.get("license") == "other" and not (data.get("license_name") and data.get("license_link")):
            errors.append('"license: other" needs license_name and license_link')
        for entry in data.get("model-index", []):
            for result in entry["results"]:
                wanted = [result["task"].get("type"), result["dataset"].get("type"), result["dataset"].get("name")]
                wanted += [value for metric in result["metrics"] for value in (metric["type"], metric["value"])]
                if any(value in (None, "") for value in wanted):
                    errors.append("model-index: a field is empty")
        return errors


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: PushHub

    def log_message(self, *_):
        """Silent."""

    def body(self) -> bytes:
        """The request's body, sent whole or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A whole answer."""
        if getattr(self, "lost", False):
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value, status: int = 200, **headers: str) -> None:
        """A whole answer in JSON."""
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def refuse(self, status: int, message: str, code: str = "") -> None:
        """An error as the Hub words it."""
        self.answer_json(
            {"error": message}, status, X_Error_Message=message, **({"X_Error_Code": code} if code else {})
        )

    @property
    def user(self) -> str | None:
        """Who asks; None without a known token."""
        return USERS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def handle_one(self) -> None:
        """Any request: a fault, or what its path asks for."""
        path, _, query = self.path.partition("?")
        fault = self.server.next_fault(f"{self.command} {path}")
        if fault == "drop":
            if self.command == "GET":
                self.drop = True
            else:
                self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
                self.close_connection = True
                return None
        if fault == "stall":
            threading.Event().wait(self.server.stall_seconds)  # not time.sleep, which tests replace
            self.close_connection = True
            return None
        body = self.body()
        self.lost = fault == "lost"
        if isinstance(fault, int):
            return self.refuse(fault, "asked for by the test")
        parts = unquote(path).strip("/").split("/")
        if parts[:2] == ["api", "whoami-v2"]:
            if self.user is None:
                return self.refuse(401, "Invalid credentials in Authorization header")
            return self.answer_json({"type": "user", "name": self.user, "orgs": []})
        if parts[:2] == ["api", "validate-yaml"]:
            asked = json.loads(body)
            errors = self.server.metadata_errors(asked["content"], asked["repoType"])
            found = [{"message": error} for error in errors]
            return self.answer_json({"errors": found, "warnings": []}, 400 if errors else 200)
        if parts[:3] == ["api", "repos", "create"]:
            return self.create_repository(json.loads(body))
        if parts[0] == "lfs":
            return self.take_object(parts[1], body)
        if parts[-1] == "batch":
            return self.lfs_batch(json.loads(body)["objects"])
        if parts[0] == "api" and parts[1] in PREFIXES:
            return self.repository_api(parts[1], "/".join(parts[2:4]), parts[4:], body, parse_qs(query))
        kind = next((kind for kind, prefix in PREFIXES.items() if prefix and path.startswith(f"/{prefix}")), "models")
        parts = parts[1:] if kind != "models" else parts
        if parts[2:3] == ["resolve"]:
            return self.send_file(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self.refuse(404, "no such address", "EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    # ---- writing ----

    def create_repository(self, asked: dict) -> None:
        if self.user is None:
            return self.refuse(401, "Invalid username or password.")
        owner = asked.get("organization") or self.user
        name, kind = f"{owner}/{asked['name']}", f"{asked.get('type') or 'model'}s"
        if owner != self.user:
            return self.refuse(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        url = f"{self.server.url}/{PREFIXES[kind]}{name}"
        if f"{kind}/{name}" in self.server.repositories:
            return self.answer_json({"url": url, "error": "You already created this repo"}, 409)
        repository = self.server.repositories[f"{kind}/{name}"] = Repository(asked.get("visibility") == "private")
        repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.answer_json({"url": url, "name": name})

    def lfs_batch(self, objects: list[dict]) -> None:
        answers = []
        for entry in objects:
            found = {"oid": entry["oid"], "size": entry["size"]}
            if entry["size"] > self.server.max_lfs_bytes:
                found["error"] = {"code": 422, "message": "You need to buy more storage"}
            elif entry["oid"] not in self.server.objects:
                found["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}"}}
            answers.append(found)
        self.answer_json({"transfer": "basic", "objects": answers})

    def take_object(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.refuse(400, "the content is not what its name says")
        self.server.objects[oid] = body
        return self.answer(200)

    def commit(self, repository: Repository, page: str, lines: list[dict]) -> None:
        files = dict(repository.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        name = repository.commit(files)
        self.answer_json({"success": True, "commitOid": name, "commitUrl": f"{page}/commit/{name}"})

    # ---- reading ----

    def repository_api(self, kind: str, name: str, rest: list[str], body: bytes, query: dict) -> None:
        repository = self.server.repositories.get(f"{kind}/{name}")
        if repository is None or (repository.private and self.user != name.split("/")[0]):
            return self.refuse(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        action, revision = (rest + ["revision"])[0], (rest + ["", "main"])[1] or "main"
        if action in ("preupload", "commit", "tag") and self.user != name.split("/")[0]:
            return self.refuse(403, "you have no write access to this repository")
        commit = repository.resolve(revision)
        if action == "refs":
            return self.answer_json(
                {
                    "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": repository.head}],
                    "converts": [],
                    "tags": [
                        {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": at}
                        for tag, at in repository.tags.items()
                    ],
                }
            )
        if commit is None:
            return self.refuse(404, "no such revision", "RevisionNotFound")
        files = repository.commits[commit]
        if action == "preupload":
            asked = [entry["path"] for entry in json.loads(body)["files"]]
            found = [
                {"path": path, "uploadMode": "lfs" if path.endswith(LFS_ENDINGS) else "regular", "shouldIgnore": False}
                | {"oid": self.entry(path, files[path])["lfs_or_oid"] if path in files else None}
                for path in asked
            ]
            return self.answer_json({"files": found})
        if action == "commit":
            page = f"{self.server.url}/{PREFIXES[kind]}{name}"
            return self.commit(repository, page, [json.loads(line) for line in body.splitlines() if line.strip()])
        if action == "tag":
            tag = json.loads(body)["tag"]
            if tag in repository.tags:
                return self.refuse(409, "Tag reference exists already")
            repository.tags[tag] = commit
            return self.answer_json({})
        if action in ("tree", "paths-info"):
            below = "/".join(rest[2:])
            wanted = files
            if action == "paths-info":
                asked = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
                wanted = [path for path in files if path in asked]
            entries = [self.entry(path, files[path]) for path in wanted if path.startswith(below)]
            return self.answer_json(entries)
        return self.answer_json(
            {
                "id": name,
                "sha": commit,
                "private": repository.private,
                "siblings": [{"rfilename": path} for path in files],
                "tags": [],
                "downloads": 0,
            }
        )

    def entry(self, path: str, body: bytes) -> dict:
        """A file as the tree lists it."""
        found = {"type": "file", "path": path, "size": len(body), "oid": git_sha(body), "lfs_or_oid": git_sha(body)}
        if path.endswith(LFS_ENDINGS):
            digest = hashlib.sha256(body).hexdigest()
            found |= {"lfs": {"oid": digest, "size": len(body), "pointerSize": 134}, "lfs_or_oid": digest}
        return found

    def send_file(self, kind: str, name: str, revision: str, path: str) -> None:
        repository = self.server.repositories.get(f"{kind}/{name}")
        if repository is None or (repository.private and self.user != name.split("/")[0]):
            return self.refuse(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        commit = repository.resolve(revision)
        if commit is None:
            return self.refuse(404, "no such revision", "RevisionNotFound")
        if path not in repository.commits[commit]:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        body = repository.commits[commit][path]
        etag = self.entry(path, body)["lfs_or_oid"]
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        status = 200
        if (asked := self.headers.get("Range")) and self.command == "GET":
            first = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content_Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            body, status = body[first:], 206
        if getattr(self, "drop", False):
            self.send_response(status)
            for key, value in {"Content_Length": str(len(body)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            return None
        return self.answer(status, body, **headers)
