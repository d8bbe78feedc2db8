"""A server on the loopback address that speaks as much of the Hub's protocol as uploads and downloads need.

Repositories hold commits, and a commit is files by name; large files arrive before their commit, by their hash.
The server can refuse every token but one, and cut connections.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors",)
"""Files that go by their hash; others are part of the commit itself."""


@dataclass
class Repository:
    """Its visibility and its commits, newest last; each is a mapping of names to contents."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return next(reversed(self.commits), "0" * 40)

    def at(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.head if revision == "main" else revision)


@dataclass
class Hub:
    """What the server holds and how it behaves.

    Attributes:
        token: the only one that it takes.
        cuts: by method, how many requests are cut off after they were read and before anything is stored.
        requests: `METHOD path` of every request.
        bodies: every body, as it arrived.
    """

    token: str = "hf_right"
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    url: str = ""

    def cut(self, what: str) -> bool:
        """Whether this request is to be cut off."""
        self.cuts[what] = self.cuts.get(what, 0) - 1
        return self.cuts[what] >= 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, value: Any = None, *, raw: bytes | None = None, **headers: str) -> None:
        content = json.dumps(value).encode() if raw is None else raw
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _handle(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        body = self._body()
        hub.bodies.append(body)
        if path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
            return
        if path.startswith("/blobs/"):  # where large files go needs no token, as on the hub
            self._store(path.removeprefix("/blobs/"), body)
            return
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._send(401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials")
            return
        self._api(path, body)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _store(self, oid: str, body: bytes) -> None:
        if self.hub.cut("PUT"):
            self.close_connection = True
            self.connection.close()
            return
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        self._send(200, {})

    def _api(self, path: str, body: bytes) -> None:
        hub, parts = self.hub, path.strip("/").split("/")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            there = name in hub.repositories
            hub.repositories.setdefault(name, Repository(asked.get("visibility") == "private"))
            self._send(409 if there else 200, {"url": f"{hub.url}/{name}", "error": "You already created it"})
            return
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            self._send(200, {"transfer": "basic", "objects": [self._object(each) for each in wanted]})
            return
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        repository = hub.repositories.get(name)
        if repository is None:
            self._send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif parts[0] == "api" and "preupload" in parts:
            files = [each["path"] for each in json.loads(body)["files"]]
            modes = ["lfs" if file.endswith(LARGE) else "regular" for file in files]
            pairs = zip(files, modes, strict=True)
            self._send(200, {"files": [{"path": f, "uploadMode": m, "shouldIgnore": False} for f, m in pairs]})
        elif parts[0] == "api" and "commit" in parts:
            self._commit(name, repository, body)
        elif parts[0] == "api" and "tree" in parts:
            files_ = repository.at(parts[parts.index("tree") + 1]) or {}
            self._send(200, [self._entry(file, content) for file, content in files_.items()])
        elif parts[0] == "api":
            revision = parts[parts.index("revision") + 1] if "revision" in parts else "main"
            self._info(name, repository, revision)
        else:
            self._file(repository, parts[3], "/".join(parts[4:]))

    def _object(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.hub.blobs:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/blobs/{wanted['oid']}", "header": {}}}}

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        if self.hub.cut("commit"):
            self.close_connection = True
            self.connection.close()
            return
        files = dict(repository.at("main") or {})
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        oid = hashlib.sha1(repr((repository.head, body)).encode()).hexdigest()
        repository.commits[oid] = files
        self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def _info(self, name: str, repository: Repository, revision: str) -> None:
        files = repository.at(revision)
        if files is None and repository.commits:
            self._send(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            return
        sha = repository.head if revision == "main" else revision
        siblings = [{"rfilename": file} for file in files or {}]
        self._send(200, {"id": name, "sha": sha, "private": repository.private, "siblings": siblings})

    def _entry(self, file: str, content: bytes) -> dict[str, Any]:
        sha256, oid = hashlib.sha256(content).hexdigest(), hashlib.sha1(content).hexdigest()
        large = {"lfs": {"oid": sha256, "size": len(content), "pointerSize": 100}} if file.endswith(LARGE) else {}
        return {"type": "file", "path": file, "size": len(content), "oid": oid, **large}

    def _file(self, repository: Repository, revision: str, file: str) -> None:
        content = (repository.at(revision) or {}).get(file)
        if content is None:
            self._send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            return
        hashed = hashlib.sha256 if file.endswith(LARGE) else hashlib.sha1
        commit = repository.head if revision == "main" else revision
        self._send(200, raw=content, ETag=f'"{hashed(content).hexdigest()}"', X_Repo_Commit=commit)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of the loopback address, while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
