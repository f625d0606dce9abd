"""The part of a hub's HTTP API that uploads and downloads need, on loopback, with repositories in memory."""

from __future__ import annotations

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

SHA = "c0ffee" + "0" * 34


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class FakeHub:
    """Serves until the block ends; ``requests`` holds method and path of each request."""

    endpoint: str = ""
    token: str = "hf_test"
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    forced_visibility: str | None = None
    """What every new repository is, whatever is asked for."""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: FakeHub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing; requests are kept."""

    def do_GET(self) -> None:
        self.served.requests.append(f"GET {self.path}")
        if found := re.fullmatch(r"/api/(?:datasets|models)/([^/]+/[^/]+)/tree/.*", self.path):
            files = self.served.repositories[found[1]].files.items()
            listed = [{"type": "file", "path": name, "size": len(content), "oid": SHA} for name, content in files]
            return self._answer(200, listed)
        if found := re.fullmatch(r"/api/(?:datasets|models)/([^/]+/[^/?]+)(/revision/[^?]+)?(\?.*)?", self.path):
            repository = self.served.repositories.get(found[1])
            if repository is None or (repository.private and not self._allowed()):
                return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            siblings = [{"rfilename": name} for name in repository.files]
            about = {"id": found[1], "private": repository.private, "sha": SHA, "siblings": siblings}
            return self._answer(200, about)
        return self._file(body=True)

    def do_HEAD(self) -> None:
        self.served.requests.append(f"HEAD {self.path}")
        self._file(body=False)

    def do_POST(self) -> None:
        self.served.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if not self._allowed():
            return self._answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            private = "private" in (asked.get("visibility"), self.served.forced_visibility)
            self.served.repositories[name] = Repository(private and self.served.forced_visibility != "public")
            kind = "datasets/" if asked.get("type") == "dataset" else ""
            return self._answer(200, {"url": f"{self.served.endpoint}/{kind}{name}"})
        if found := re.fullmatch(r"/api/(?:datasets|models)/(.+)/preupload/main", self.path):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if found := re.fullmatch(r"/api/(datasets/|models/)(.+)/commit/main", self.path):
            kind = "" if found[1] == "models/" else found[1]
            return self._commit(kind, found[2], [json.loads(line) for line in body.splitlines()])
        return self._answer(500, {"error": f"the fake hub knows no {self.path}"})

    def _commit(self, kind: str, name: str, lines: list[dict[str, Any]]) -> None:
        repository = self.served.repositories[name]
        repository.commits.append(lines[0]["value"])
        for line in lines[1:]:
            assert line["key"] == "file"
            repository.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.served.endpoint}/{kind}{name}/commit/{SHA}"
        self._answer(200, {"commitUrl": url, "commitOid": SHA, "pullRequestUrl": None})

    def _file(self, body: bool) -> None:
        found = re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        content = self.served.repositories[found[1]].files.get(found[2]) if found else None
        if content is None:
            return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha256(content).hexdigest()
        self.send_response(200)
        for name, value in (("ETag", f'"{etag}"'), ("X-Repo-Commit", SHA), ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)
        return None

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.served.token}"

    def _answer(self, status: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, header in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, header)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
