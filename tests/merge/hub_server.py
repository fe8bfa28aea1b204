"""A small hub of the test's own: folders become repositories, over the endpoints that huggingface_hub uses."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..local_server import local_server


@dataclass
class Hub:
    """Repositories by name; `requests` are what was asked, `gated` needs the token, `cut` ends files too early."""

    repositories: dict[str, Path]
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    gated: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    token: str = "hf_mine"
    endpoint: str = ""

    def fetched(self) -> list[str]:
        """Return the names of the files whose content was asked for."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


def commit_of(repo: str) -> str:
    """Return the one commit of a repository."""
    return hashlib.sha1(repo.encode()).hexdigest()


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """Return a request handler that serves the repositories of a hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            """Answer with headers alone."""
            self.answer(with_body=False)

        def do_GET(self) -> None:
            """Answer with headers and content."""
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            parts = path.strip("/").split("/")
            repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            folder = hub.repositories.get(repo)
            if folder is None:
                return self.refuse(401, "RepoNotFound")
            if repo in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.refuse(401, "GatedRepo")
            if parts[0] == "api":
                return self.describe(repo, folder, parts[4:])
            return self.send_file(repo, folder / "/".join(parts[4:]), with_body)

        def describe(self, repo: str, folder: Path, rest: list[str]) -> None:
            if rest[1:] and rest[1] not in ("main", commit_of(repo)):
                return self.refuse(404, "RevisionNotFound")
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            names = [path.relative_to(folder).as_posix() for path in files]
            if rest[:1] == ["tree"]:
                sizes = [path.stat().st_size for path in files]
                entries = [
                    {"type": "file", "path": name, "size": size, "oid": commit_of(name)}
                    for name, size in zip(names, sizes, strict=True)
                ]
                return self.send_json(entries)
            siblings = [{"rfilename": name} for name in names]
            return self.send_json({"id": repo, "sha": commit_of(repo), "siblings": siblings, "private": False})

        def send_file(self, repo: str, path: Path, with_body: bool) -> None:
            if not path.is_file():
                return self.refuse(404, "EntryNotFound")
            data = path.read_bytes()
            start = 0
            if wanted := self.headers.get("Range"):
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", commit_of(repo))
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("Accept-Ranges", "bytes")
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if with_body and path.name in hub.cut:
                hub.cut.remove(path.name)
                self.wfile.write(data[start : len(data) // 2])
                self.close_connection = True
            elif with_body:
                self.wfile.write(data[start:])

        def send_json(self, content: object) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on a free port of this machine."""
    with local_server(handler(hub)) as hub.endpoint:
        yield hub
