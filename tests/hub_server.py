"""A Hugging Face Hub on the loopback interface, for tests: real HTTP, made-up repositories.

It answers what `huggingface_hub`, `datasets` and `transformers` ask to find and read a repository, with the
status codes and headers by which they tell one failure from another. It knows no uploads and no large-file storage.
"""

import contextlib
import hashlib
import json
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Snapshot:
    """The files of a repository at one commit."""

    files: Mapping[str, bytes]

    @property
    def commit(self) -> str:
        digest = hashlib.sha1()
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + content + b"\0")
        return digest.hexdigest()


@dataclass
class Repository:
    """Branches and tags, and who may read: everyone, or the holders of some tokens."""

    revisions: dict[str, Snapshot] = field(default_factory=dict)
    members: frozenset[str] | None = None

    def at(self, revision: str) -> Snapshot | None:
        by_commit = {snapshot.commit: snapshot for snapshot in self.revisions.values()}
        return self.revisions.get(revision) or by_commit.get(revision)


@dataclass(frozen=True)
class Request:
    """What a client has asked for, and how many bytes of content it was sent."""

    method: str
    path: str
    sent: int


class HubServer:
    """The Hub. `publish` gives it repositories; `requests` is what it was asked, oldest first."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.tokens: set[str] = set()
        self.requests: list[Request] = []
        self.failure: int | None = None
        self.plugged_in = True
        self.seconds_per_slice = 0.0
        """A slow line: the pause after each SLICE bytes of an answer."""
        self.held: set[str] = set()
        """Files, by the end of their paths, that a client waits for until they are taken out of here."""
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, name="hub", daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def publish(
        self,
        kind: str,
        name: str,
        content: Path | Mapping[str, bytes | str],
        *,
        revision: str = "main",
        members: frozenset[str] | None = None,
    ) -> str:
        """Put a folder, or files by name, into the repository `name` of kind `model` or `dataset`; return the commit.

        With `members`, the repository is gated, and opens to those tokens alone.
        """
        if isinstance(content, Path):
            content = {
                str(file.relative_to(content)): file.read_bytes() for file in content.rglob("*") if file.is_file()
            }
        files = {path: data.encode() if isinstance(data, str) else data for path, data in content.items()}
        repository = self.repositories.setdefault((kind, name), Repository())
        repository.revisions[revision] = Snapshot(files)
        repository.members = members
        self.tokens |= members or set()
        return repository.revisions[revision].commit

    @contextlib.contextmanager
    def unplugged(self) -> Iterator[None]:
        """Break every connection without an answer, as a network that is down does."""
        self.plugged_in = False
        try:
            yield
        finally:
            self.plugged_in = True

    @contextlib.contextmanager
    def failing(self, status: int) -> Iterator[None]:
        """Answer every request with this status."""
        self.failure = status
        try:
            yield
        finally:
            self.failure = None


API = re.compile(
    r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)"
    r"(?:/(?P<verb>revision|tree|paths-info|refs|auth-check)(?:/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?)?"
)
RESOLVE = re.compile(r"/(?P<datasets>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


SLICE = 2**14


class _Server(ThreadingHTTPServer):
    """Says nothing of clients that were killed."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection. Paths are matched before they are unquoted: a revision may hold an escaped slash."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_: object) -> None:
        """Say nothing: `HubServer.requests` is the log."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.hub.plugged_in:
            self.close_connection = True
            return
        url = urllib.parse.urlsplit(self.path)
        if self.hub.failure is not None:
            self._answer(self.hub.failure, b"")
        elif match := RESOLVE.fullmatch(url.path):
            while url.path.endswith(tuple(self.hub.held)):
                time.sleep(0.05)
            kind = "dataset" if match["datasets"] else "model"
            self._resolve(
                kind, match["name"], urllib.parse.unquote(match["revision"]), urllib.parse.unquote(match["path"])
            )
        elif match := API.fullmatch(url.path):
            revision = urllib.parse.unquote(match["revision"] or "main")
            path = urllib.parse.unquote(match["path"] or "").strip("/")
            self._api(match["kind"], match["name"], match["verb"], revision, path, url.query, body)
        else:
            self._answer(404, b"")

    do_HEAD = do_POST = do_GET  # noqa: N815 - the names are http.server's

    def _api(self, kind: str, name: str, verb: str, revision: str, path: str, query: str, body: bytes) -> None:
        repository = self._repository(kind, name)
        if repository is None:
            return
        if verb == "auth-check":
            if self._may_read(repository):
                self._json({})
            return
        snapshot = repository.at(revision)
        if snapshot is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif verb == "tree":
            self._tree(snapshot, path, recursive="recursive=true" in query.lower())
        elif verb == "paths-info":
            form = urllib.parse.parse_qs(body.decode())
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else form["paths"]
            self._json([_entry(file, snapshot.files[file]) for file in wanted if file in snapshot.files])
        elif verb == "refs":
            refs = {ref: at.commit for ref, at in repository.revisions.items()}
            branches = [
                {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": commit} for ref, commit in refs.items()
            ]
            self._json({"branches": branches, "tags": [], "converts": []})
        else:
            self._json(
                {
                    "_id": "0",
                    "id": name,
                    "sha": snapshot.commit,
                    "private": False,
                    "gated": "auto" if repository.members is not None else False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "siblings": [{"rfilename": file} for file in sorted(snapshot.files)],
                }
            )

    def _tree(self, snapshot: Snapshot, folder: str, *, recursive: bool) -> None:
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, object]] = {}
        for file, content in sorted(snapshot.files.items()):
            inside, *deeper = file.removeprefix(prefix).split("/") if file.startswith(prefix) else [""]
            if deeper:
                entries[prefix + inside] = {"type": "directory", "path": prefix + inside, "oid": "0" * 40, "size": 0}
            if inside and (recursive or not deeper):
                entries[file] = _entry(file, content)
        if entries:
            self._json(list(entries.values()))
        else:
            self._error(404, "EntryNotFound", f"{folder} does not exist")

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repository = self._repository(kind, name)
        # As on the real Hub, the card of a gated repository is open to everyone.
        if repository is None or (path != "README.md" and not self._may_read(repository)):
            return
        snapshot = repository.at(revision)
        if snapshot is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif path not in snapshot.files:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": snapshot.commit})
        else:
            content = snapshot.files[path]
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": snapshot.commit,
                "Accept-Ranges": "bytes",
            }
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                self._answer(206, content[first : last + 1], headers)
            else:
                self._answer(200, content, headers)

    def _repository(self, kind: str, name: str) -> Repository | None:
        """The repository; or an answer to the client, who cannot tell a private one from one that does not exist."""
        token = self._token()
        if token is not None and token not in self.hub.tokens:
            self._error(401, None, "Invalid credentials in Authorization header")
            return None
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            self._error(*((404, "RepoNotFound") if token else (401, None)), "Repository not found")
        return repository

    def _may_read(self, repository: Repository) -> bool:
        token = self._token()
        if repository.members is None or token in repository.members:
            return True
        self._error(403 if token else 401, "GatedRepo", "Access to this repository is restricted")
        return False

    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> None:
        codes = {"X-Error-Code": code} if code else {}
        self._answer(
            status, json.dumps({"error": message}).encode(), {**codes, "X-Error-Message": message, **(headers or {})}
        )

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        sent = b"" if self.command == "HEAD" else body
        self.hub.requests.append(Request(self.command, self.path, len(sent)))
        self.send_response(status)
        for header, value in (headers or {}).items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not self.hub.seconds_per_slice:
            self.wfile.write(sent)
            return
        for start in range(0, len(sent), SLICE):
            self.wfile.write(sent[start : start + SLICE])
            time.sleep(self.hub.seconds_per_slice)


def _entry(file: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
