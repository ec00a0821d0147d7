"""An HTTP server that speaks as much of the Hugging Face hub's protocol as downloading a model takes.

Large files are redirected to another path with their own headers, as the hub does with LFS files.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = ("*.safetensors", "*.bin")


@dataclass
class Repository:
    """Files of each commit, and the names of commits. error: what every request gets, (status, X-Error-Code)."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    error: tuple[int, str] | None = None


@dataclass
class Hub:
    """What the server has, and what it was asked: (method, path, Range)."""

    url: str = ""
    cdn: str = ""  #: the host of large files
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    breaks: dict[str, list[int]] = field(default_factory=dict)  #: file -> after how many bytes connections break
    wrong_size: set[str] = field(default_factory=set)  #: files whose announced size is one too many

    def add(self, name: str, folder: Path, ref: str = "main") -> str:
        """Puts a folder's files there as a commit, which a branch then names."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        commit = hashlib.sha1(repr((name, files)).encode()).hexdigest()
        repository = self.repositories.setdefault(name, Repository({}, {}))
        repository.commits[commit] = files
        repository.refs[ref] = commit
        return commit

    def downloads(self) -> list[str]:
        """Names of the files that were asked for, sorted."""
        return sorted(
            {path.rsplit("/", 1)[1] for method, path, _ in self.requests if method == "GET" and "/api/" not in path}
        )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # the client asks for several files at once


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    servers = [_Server(("127.0.0.1", 0), Handler) for _ in range(2)]
    hub.url, hub.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nothing: pytest's output is not the server's."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if match := re.fullmatch(r"/cdn/(\w+)/(.+)", path):
            self._send_file(
                next(
                    f[match[2]] for r in self.hub.repositories.values() for c, f in r.commits.items() if c == match[1]
                ),
                match[2],
            )
            return
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path) or re.fullmatch(
            r"/([^/]+/[^/]+)/(resolve)/(.+)", path
        )
        repository = self.hub.repositories.get(match[1]) if match else None
        if match is None or repository is None:
            self._error(401, "RepoNotFound")
            return
        if repository.error:
            self._error(*repository.error)
            return
        if match[2] == "resolve":
            self._resolve(repository, match[3])
            return
        name = match[3] or "main"
        commit = repository.refs.get(name, name)
        if commit not in repository.commits:
            self._error(404, "RevisionNotFound")
        elif match[2] == "tree":
            self._send_json(_tree(repository.commits[commit]))
        else:
            siblings = [{"rfilename": name} for name in repository.commits[commit]]
            self._send_json({"_id": "1", "id": match[1], "modelId": match[1], "sha": commit, "siblings": siblings})
        assert parse_qs(url.query).get("cursor") is None

    def _resolve(self, repository: Repository, rest: str) -> None:
        commit, _, name = rest.partition("/")
        files = repository.commits.get(repository.refs.get(commit, commit))
        if files is None or name not in files:
            self._error(404, "EntryNotFound" if files is not None else "RevisionNotFound")
            return
        data = files[name]
        size = len(data) + (name in self.hub.wrong_size)
        if not any(fnmatch(name, pattern) for pattern in LARGE):
            self._send_file(data, name, {"X-Repo-Commit": commit, "ETag": f'"{_blob_id(data)}"'})
            return
        self.send_response(302)
        self.send_header("Location", f"{self.hub.cdn}/cdn/{commit}/{name}")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-Size", str(size))
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_file(self, data: bytes, name: str, headers: dict[str, str] | None = None) -> None:
        begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if (wanted := self.headers.get("Range")) else 0  # type: ignore[index]
        self.send_response(206 if wanted else 200)
        for key, value in (headers or {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}).items():
            self.send_header(key, value)
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        if self.command == "HEAD":
            return
        breaks = self.hub.breaks.get(name)
        if breaks:
            self.wfile.write(data[begin : begin + breaks.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(data[begin:])

    def _send_json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _tree(files: dict[str, bytes]) -> list[dict[str, Any]]:
    entries = []
    for name, data in files.items():
        entry = {"type": "file", "path": name, "size": len(data), "oid": _blob_id(data)}
        if any(fnmatch(name, pattern) for pattern in LARGE):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        entries.append(entry)
    return entries
