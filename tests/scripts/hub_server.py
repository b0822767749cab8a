"""A loopback stand-in for the Hub that serves one dataset of a folder, and faults as they are asked for."""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


COMMIT = "0" * 39 + "1"


class LoopbackServer(ThreadingHTTPServer):
    """A server on a free port, from the start of a `with` block to its end."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class HubServer(LoopbackServer):
    """Serves `folder` as the dataset `tester/shapes`, and its files under `/plain/`.

    Args:
        faults: what happens to the coming requests for parts of parquet files, in turn: None (nothing), "drop" (the
            connection breaks in the middle of the body), "stall" (nothing comes for `stall_seconds`), or a status.
        statuses: what the coming requests of any kind are answered in place of what they ask for, in turn; None is
            nothing.
    Attributes:
        sent: bytes of parts of files so far.
    """

    def __init__(self, folder: Path, faults=(), stall_seconds: float = 5.0, statuses=()) -> None:
        super().__init__(Handler)
        self.folder = folder
        self.faults = list(faults)
        self.statuses = list(statuses)
        self.stall_seconds = stall_seconds
        self.served: list[str] = []
        self.sent = 0
        self.asked: list[str] = []

    def entry(self, file: Path) -> dict:
        """A file or folder as the tree of a repository lists it."""
        name = file.relative_to(self.folder).as_posix()
        if file.is_dir():
            return {"type": "directory", "path": name, "oid": "0"}
        digest = hashlib.sha1(file.read_bytes()).hexdigest()
        return {"type": "file", "path": name, "size": file.stat().st_size, "oid": digest}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_):
        """Silent."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value) -> None:
        """A whole answer in JSON."""
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_POST(self):
        """`paths-info`: what there is at some paths."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
        files = [self.server.folder / path for path in ([asked] if isinstance(asked, str) else asked)]
        self.answer_json([self.server.entry(file) for file in files if file.exists()])

    def do_HEAD(self):
        """As GET without the body."""
        self.do_GET()

    def do_GET(self):
        """The repository, its tree, or a file."""
        path, _, query = self.path.partition("?")
        self.server.asked.append(f"{self.command} {path}")
        if self.server.statuses and (status := self.server.statuses.pop(0)):
            return self.answer(status, Retry_After="0")
        files = sorted(file for file in self.server.folder.rglob("*") if file.is_file())
        if path.startswith("/api/datasets/tester/shapes/tree"):
            below = path.partition("/tree/")[2].partition("/")[2]
            folder = self.server.folder / below
            inside = sorted(folder.rglob("*") if "recursive=true" in query.lower() else folder.glob("*"))
            self.answer_json([self.server.entry(file) for file in inside])
        elif path in (
            "/api/datasets/tester/shapes",
            f"/api/datasets/tester/shapes/revision/{COMMIT}",
        ) or path.endswith("/revision/main"):
            names = [{"rfilename": self.server.entry(file)["path"]} for file in files]
            self.answer_json({"id": "tester/shapes", "sha": COMMIT, "siblings": names, "private": False, "tags": []})
        elif path.startswith(("/datasets/tester/shapes/resolve/", "/plain/")):
            name = path[len("/plain/") :] if path.startswith("/plain/") else path.split("/", 6)[6]
            self.send_file(self.server.folder / name)
        else:
            self.answer(404, X_Error_Code="EntryNotFound")
        return None

    def send_file(self, file: Path) -> None:
        """A file or a part of it, with the next fault if it is a part of the data."""
        if not file.is_file():
            return self.answer(404, X_Error_Code="EntryNotFound")
        body, status = file.read_bytes(), 200
        headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "Accept_Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = body[int(first) : int(last) + 1 if last else None]
            headers["Content_Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
            body, status = part, 206
            self.server.sent += len(part) if self.command == "GET" else 0
        fault = None
        if file.suffix == ".parquet" and self.command == "GET":
            self.server.served.append(file.name)
            fault = self.server.faults.pop(0) if self.server.faults else None
        if isinstance(fault, int):
            return self.answer(fault, b"", Retry_After="0")
        if fault == "stall":
            time.sleep(self.server.stall_seconds)
        if fault == "drop":
            self.send_response(status)
            for name, value in {"Content_Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return None
        return self.answer(status, body, **headers)
