"""A Hub on the loopback, enough of one for the real client, and a guard against any other network.

``hub`` is the fixture: ``hub.add_repo("owner/name", {"adapter_config.json": b"…"})`` publishes, and
``hub.env(tmp_path)`` gives the environment of a process that knows this Hub and nothing else: connecting
anywhere else, or asking for any other name, raises there. ``hub.client(env, ("fetch", uri), …)`` runs the
source in such a process. ``hub.requests`` has everything that was asked, in order.

Behaviour follows what the Hub was seen to do: a repository that is missing or private is 401 without a
token and 404 with one; a gated one is listed to all, and its files are 401 or 403; weights are a redirect
to another host, which must not see the token.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers.hub_scripts import CLIENT, GUARD

ROOT = Path(__file__).parents[2]
TOKEN = "hf_good"
_STORED_APART = (".safetensors", ".bin", ".gguf")


@dataclass(frozen=True)
class Request:
    """One request as it came in; ``authorization`` is the token, if one was sent."""

    method: str
    host: str
    path: str
    authorization: str | None
    range: str | None
    status: int

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Repo:
    """A repository: revision -> commit -> path -> bytes."""

    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    disabled: bool = False

    def commit(self, revision: str) -> str | None:
        return self.revisions.get(revision, revision if revision in self.commits else None)


class Hub:
    """The server, what it publishes and what it was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.tokens = {TOKEN}  #: valid, and allowed to see private repositories
        self.granted: set[str] = set()  #: of these, allowed to read gated files
        self.failures: list[tuple[re.Pattern[str], int, str]] = []  #: path pattern, status, body
        self.cuts = 0  #: how many downloads of weights to break off half way
        self.delay = 0.0  #: seconds before every answer
        self.after_listing: Callable[[], object] = lambda: None  #: somebody pushes just then
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes | str | Path] | Path,
        revision: str = "main",
        *,
        gated: bool = False,
        private: bool = False,
        disabled: bool = False,
    ) -> str:
        """Publishes ``files`` (or a folder's) as the new head of a revision; its commit is returned."""
        if isinstance(files, Path):
            files = {path.relative_to(files).as_posix(): path for path in files.rglob("*") if path.is_file()}
        content = {name: _bytes(data) for name, data in files.items()}
        repo = self.repos.setdefault(repo_id, Repo())
        repo.gated, repo.private, repo.disabled = gated, private, disabled
        text = f"{repo_id}{len(repo.commits)}{[(name, _sha256(data)) for name, data in sorted(content.items())]}"
        commit = hashlib.sha1(text.encode()).hexdigest()
        repo.commits[commit] = content
        repo.revisions[revision] = commit
        self.blobs.update({_sha256(data): data for data in content.values()})
        return commit

    def env(self, tmp: Path, *, token: str | None = None, **extra: str) -> dict[str, str]:
        """The environment of a process that can reach this Hub and nothing else; its cache is in ``tmp``."""
        guard = tmp / "guard"
        guard.mkdir(exist_ok=True)
        (guard / "sitecustomize.py").write_text(GUARD)
        unwanted = ("HF_", "HUGGING", "TRANSFORMERS_", "ADAPTRIX_", "PYTHON")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(unwanted) and "proxy" not in name.lower()
        }
        return kept | {
            "HOME": str(tmp),
            "HF_HOME": str(tmp / "hf"),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",  # one more request a day, which is the client's own affair
            "HUB_TEST_PORT": str(self.port),
            "PYTHONPATH": f"{guard}{os.pathsep}{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",
            **({"HF_TOKEN": token} if token else {}),
            **extra,
        }

    def client(
        self, env: Mapping[str, str], *calls: tuple[Literal["fetch", "config", "quiet"], str], cwd: Path | None = None
    ) -> list[Any]:
        """What ``hub.fetch`` or ``hub.config`` gave to each call, all in one process: fields or problems."""
        done = self.run(env, sys.executable, "-c", CLIENT, stdin=json.dumps(calls), cwd=cwd)
        assert done.returncode == 0, done.stderr
        self.stderr = done.stderr
        results: list[Any] = json.loads(done.stdout)
        return results

    def run(
        self, env: Mapping[str, str], *command: str, stdin: str = "", cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Any command in such an environment."""
        return subprocess.run(
            command, env=dict(env), input=stdin, capture_output=True, text=True, timeout=120, cwd=cwd or env["HOME"]
        )

    def asked(self) -> list[str]:
        """``METHOD path`` of every request, in order, and forgets them."""
        asked = [str(request) for request in self.requests]
        self.requests.clear()
        return asked

    def fail(self, status: int, pattern: str = "", body: str = "") -> None:
        """Answers every path that matches with ``status``."""
        self.failures.append((re.compile(pattern), status, body))

    @contextmanager
    def serving(self) -> Iterator[Hub]:
        thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub of one's own, empty."""
    with Hub().serving() as server:
        yield server


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self.status = status
        self.headers = {name: value for name, value in headers.items() if value}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            time.sleep(hub.delay)
            try:
                self.answer(urlsplit(self.path).path)
            except _RefusedError as refusal:
                self.reply(refusal.status, refusal.headers, b"")
            except (BrokenPipeError, ConnectionResetError):  # the client gave up, as some tests want
                self.close_connection = True

        do_HEAD = do_GET  # noqa: N815

        def answer(self, path: str) -> None:
            for pattern, status, body in hub.failures:
                if pattern.search(path):
                    return self.reply(status, {"Content-Type": "text/html"}, body.encode())
            if match := re.fullmatch(r"/api/models/(.+?)(?:/revision/([^/]+))?", path):
                return self.listing(match[1], unquote(match[2] or "main"))
            if match := re.fullmatch(r"/cdn/([0-9a-f]{64})", path):
                return self.blob(match[1])
            if match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
                return self.file(match[1], unquote(match[2]), unquote(match[3]))
            raise _RefusedError(404)

        def listing(self, repo_id: str, revision: str) -> None:
            repo, commit = self.repo(repo_id, revision)
            siblings = [{"rfilename": name, "size": len(data)} for name, data in repo.commits[commit].items()]
            info = {"id": repo_id, "sha": commit, "siblings": siblings, "private": repo.private, "gated": repo.gated}
            self.reply(200, {"Content-Type": "application/json"}, json.dumps(info).encode())
            hub.after_listing()

        def file(self, repo_id: str, revision: str, name: str) -> None:
            repo, commit = self.repo(repo_id, revision)
            if repo.gated and self.token() not in hub.granted:
                raise _RefusedError(
                    403 if self.token() else 401, "GatedRepo", f"Access to model {repo_id} is restricted."
                )
            data = repo.commits[commit].get(name)
            if data is None:
                raise _RefusedError(404, "EntryNotFound", "Entry not found", commit)
            headers = {"ETag": f'"{_sha256(data)}"', "X-Repo-Commit": commit}
            if not name.endswith(_STORED_APART):
                self.reply(200, headers, data)
                return
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": headers.pop("ETag")}
            self.reply(302, headers | {"Location": f"http://localhost:{hub.port}/cdn/{_sha256(data)}"}, b"")

        def blob(self, digest: str) -> None:
            data = hub.blobs[digest]
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
            start, end = (int(wanted[1]), int(wanted[2] or len(data) - 1) + 1) if wanted else (0, len(data))
            headers = {"Content-Range": f"bytes {start}-{min(end, len(data)) - 1}/{len(data)}"} if wanted else {}
            cut = hub.cuts > 0 and self.command == "GET"
            hub.cuts -= cut
            self.reply(206 if wanted else 200, headers, data[start:end], cut=cut)

        def repo(self, repo_id: str, revision: str) -> tuple[Repo, str]:
            token = self.token()
            if token is not None and token not in hub.tokens:
                raise _RefusedError(401, "", "Invalid credentials in Authorization header")
            repo = hub.repos.get(repo_id)
            if repo is None or (repo.private and token is None):
                raise _RefusedError(401 if token is None else 404, "RepoNotFound", "Repository not found")
            if repo.disabled:
                raise _RefusedError(403, "", "Access to this resource is disabled.")
            commit = repo.commit(revision)
            if commit is None:
                raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return repo, commit

        def token(self) -> str | None:
            return (self.headers["Authorization"] or "").removeprefix("Bearer ") or None

        def reply(self, status: int, headers: Mapping[str, str], body: bytes, cut: bool = False) -> None:
            host, asked = self.headers["Host"], self.headers["Range"]
            hub.requests.append(Request(self.command, host, urlsplit(self.path).path, self.token(), asked, status))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = self.close_connection or cut

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def _bytes(data: bytes | str | Path) -> bytes:
    if isinstance(data, Path):
        return data.read_bytes()
    return data.encode() if isinstance(data, str) else data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def code(result: Mapping[str, Any]) -> str:
    """The code of the only problem in a result of ``hub.client``."""
    (problem,) = result["problems"]
    assert isinstance(problem["code"], str)
    return problem["code"]
