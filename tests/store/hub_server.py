"""A stand-in for the hub: the part of its HTTP interface that uploads use, with repositories in memory."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_stand_in"


@dataclass
class Repository:
    """A repository of the hub."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    commits: int = 0


class Hub(ThreadingHTTPServer):
    """The server. `fails` names the part of an address whose requests it answers with an error."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.fails = ""

    @property
    def url(self) -> str:
        """Address for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Hub

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, content: Any, **headers: str) -> None:
        """Send an answer."""
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        """Who is it, and what is in a repository."""
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials in header")
        elif self.path == "/api/whoami-v2":
            self.answer(200, {"name": "someone", "type": "user", "auth": {}, "orgs": []})
        elif (name := self.path.removeprefix("/api/models/")) in self.server.repositories:
            found = self.server.repositories[name]
            files = [{"rfilename": file} for file in found.files]
            self.answer(200, {"id": name, "private": found.private, "tags": [], "siblings": files})
        else:
            self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    def do_PUT(self) -> None:
        """A large file."""
        data = self.body()
        self.server.large[hashlib.sha256(data).hexdigest()] = data
        self.answer(200, {})

    def do_POST(self) -> None:
        """Everything that changes a repository."""
        text = self.body()
        if self.server.fails and self.server.fails in self.path:
            self.answer(403, {"error": "storage is full"}, X_Error_Message="storage is full")
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            asked = json.loads(text)
            name = f"{asked['organization']}/{asked['name']}"
            private = asked.get("visibility") == "private" or asked.get("private", False)
            status = 409 if name in self.server.repositories else 200
            self.server.repositories.setdefault(name, Repository(private))
            self.answer(status, {"url": f"{self.server.url}/{name}"})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"{self.server.url}/large/{one['oid']}"}}}
                for one in json.loads(text)["objects"]
            ]
            self.answer(200, {"objects": objects, "transfer": "basic"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main.*", self.path):
            self.change(found[1], found[2], text)
        else:
            self.answer(404, {"error": self.path})

    def change(self, name: str, what: str, text: bytes) -> None:
        """Say which files are large ones, or make a commit."""
        if what == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(text)["files"]
            ]
            self.answer(200, {"files": modes})
            return
        repository = self.server.repositories[name]
        for line in map(json.loads, text.decode().splitlines()):
            if line["key"] == "file":
                repository.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                repository.files[line["value"]["path"]] = self.server.large[line["value"]["oid"]]
        repository.commits += 1
        self.answer(200, {"commitOid": "0" * 40, "commitUrl": f"{self.server.url}/{name}/commit/{'0' * 40}"})

    def body(self) -> bytes:
        """Return what was sent."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))


@contextmanager
def hub() -> Iterator[Hub]:
    """Run the server."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
