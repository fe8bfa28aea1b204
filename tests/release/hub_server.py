"""A small hub of the tests' own that can be written to: repositories in memory, over the endpoints that
huggingface_hub uses to make, fill and read them; with faults on request.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ..local_server import local_server

PART = 100_000


@dataclass
class Repo:
    """A repository: content by path, by branch; `commits` are its messages, `pull_requests` what they would add."""

    private: bool | None = None
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)
    pull_requests: list[dict[str, bytes]] = field(default_factory=list)


@dataclass
class Fault:
    """What goes wrong `times` times where a request's "METHOD /path" fits: a status, or "drop" for the connection."""

    where: str
    what: int | str
    times: int = 1
    after: bool = False


@dataclass
class Hub:
    """The hub; `stored` are large files by SHA-256, `parts` those on their way, `requests` "METHOD /path" each.

    `sent` and `served` are bytes by file; `strangers` the credentials that reached the host where large files lie.
    """

    token: str = "hf_mineandnobodyelses"
    repos: dict[str, Repo] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    collections: dict[str, list[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    strangers: list[str | None] = field(default_factory=list)
    endpoint: str = ""

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """Return the files of a branch."""
        return self.repos[repo].branches[branch]


class Refused(Exception):
    """An answer that is no success: status, the hub's code, its words."""


class Elsewhere(Exception):
    """An answer that sends the asker to another address."""


def blob(content: bytes) -> str:
    """Return git's name for a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    """Tell which files the hub keeps outside of git."""
    return path.endswith((".gguf", ".safetensors", ".png"))


def commit_of(files: dict[str, bytes]) -> str:
    """Return a name for the state of a branch."""
    state = "".join(f"{path}{blob(content)}" for path, content in sorted(files.items()))
    return hashlib.sha1(state.encode()).hexdigest()


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """Return a request handler for a hub."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def do_PUT(self) -> None:
            self.answer()

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.body = self.rfile.read(length)
            if self.headers.get("Transfer-Encoding") == "chunked":
                self.body = self.read_chunks()
            url = urlsplit(self.path)
            path, self.query = unquote(url.path), parse_qs(url.query)
            what = f"{self.command} {path}"
            with lock:
                hub.requests.append(what)
                fault = next((one for one in hub.faults if one.times and re.search(one.where, what)), None)
                if fault:
                    fault.times -= 1
            if fault and not fault.after:
                return self.fail(fault)
            try:
                with lock:
                    reply = self.route(path)
            except Elsewhere as elsewhere:
                return self.reply(302, None, {"Location": str(elsewhere)})
            except Refused as refused:
                status, code, message = refused.args
                return self.reply(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})
            if fault:
                return self.fail(fault)
            return self.send_bytes(*reply) if isinstance(reply, tuple) else self.reply(200, reply)

        def read_chunks(self) -> bytes:
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        def fail(self, fault: Fault) -> None:
            if fault.what == "drop":
                self.close_connection = True
                self.connection.close()
                return
            message = {402: "storage quota exceeded", 403: "storage quota exceeded"}.get(int(fault.what), "busy")
            self.reply(int(fault.what), {"error": message}, {"Retry-After": "0", "X-Error-Message": message})

        def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
            data = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def send_bytes(self, data: bytes, commit: str, name: str) -> None:
            start, stop = 0, len(data)
            if wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last) + 1, len(data)) if last else len(data)
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            if self.command == "GET":
                hub.served[name] += stop - start
                self.wfile.write(data[start:stop])

        def route(self, path: str) -> Any:
            parts = path.strip("/").split("/")
            if parts[0] == "storage":
                return self.store(parts[1], int(self.query.get("part", ["0"])[0]))
            if path.endswith(".git/info/lfs/objects/batch"):
                return self.batch()
            if parts[0] == "cdn":
                hub.strangers.append(self.headers.get("Authorization"))
                return self.resolve("/".join(parts[1:3]), parts[3], "/".join(parts[4:]))
            if parts[0] == "complete":
                hub.stored[parts[1]] = b"".join(one for _, one in sorted(hub.parts.pop(parts[1]).items()))
                return {}
            if parts[0] != "api":
                if is_large(path) and "/".join(parts[:2]) in hub.repos:
                    # Another host by its name: what is sent to the hub alone must not go there.
                    port = hub.endpoint.rpartition(":")[2]
                    raise Elsewhere(f"http://localhost:{port}/cdn/{'/'.join(parts[:2] + parts[3:])}")
                return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            writes = self.command != "GET" and parts[1] != "validate-yaml"
            if (writes or parts[1] == "whoami-v2") and self.headers.get("Authorization") != f"Bearer {hub.token}":
                raise Refused(401, "Unauthorized", "Invalid credentials in Authorization header")
            if parts[1] == "models":
                return self.model("/".join(parts[2:4]), parts[4:])
            routes = {"whoami-v2": self.whoami, "repos": self.create, "validate-yaml": self.valid}
            return self.collection(parts[2:]) if parts[1] == "collections" else routes[parts[1]]()

        def whoami(self) -> Any:
            return {"type": "user", "name": "us", "orgs": [], "auth": {"accessToken": {"role": "write"}}}

        def valid(self) -> Any:
            return {"errors": [], "warnings": []}

        def create(self) -> Any:
            wanted = json.loads(self.body)
            name = f"{wanted.get('organization') or 'us'}/{wanted['name']}"
            private = {"private": True, "public": False}.get(wanted.get("visibility"), wanted.get("private"))
            hub.repos.setdefault(name, Repo(private))
            return {"url": f"{hub.endpoint}/{name}", "name": name, "id": "0"}

        def model(self, name: str, rest: list[str]) -> Any:
            repo = hub.repos.get(name)
            if repo is None or (repo.private and "Authorization" not in self.headers):
                raise Refused(404, "RepoNotFound", "Repository not found")
            verb, revision = rest[0] if rest else "", "/".join(rest[1:]) or "main"
            if verb == "branch":
                repo.branches.setdefault(revision, dict(repo.branches["main"]))
                return {}
            files = self.at(repo, revision)
            if verb == "tree":
                return [self.entry(path, content) for path, content in sorted(files.items())]
            if verb == "preupload":
                return {"files": [self.mode(one["path"], files) for one in json.loads(self.body)["files"]]}
            if verb == "commit":
                return self.commit(name, repo, files)
            siblings = [{"rfilename": path} for path in files]
            return {"id": name, "sha": commit_of(files), "private": bool(repo.private), "siblings": siblings}

        def at(self, repo: Repo, revision: str) -> dict[str, bytes]:
            by_commit = {commit_of(files): files for files in repo.branches.values()}
            found = repo.branches.get(revision, by_commit.get(revision))
            if found is None:
                raise Refused(404, "RevisionNotFound", "Invalid rev id")
            return found

        def entry(self, path: str, content: bytes) -> Any:
            one = {"type": "file", "path": path, "size": len(content), "oid": blob(content)}
            digest = hashlib.sha256(content).hexdigest()
            return one | ({"lfs": {"oid": digest, "size": len(content), "pointerSize": 134}} if is_large(path) else {})

        def mode(self, path: str, files: dict[str, bytes]) -> Any:
            mode = "lfs" if is_large(path) else "regular"
            oid = None
            if path in files:
                oid = hashlib.sha256(files[path]).hexdigest() if is_large(path) else blob(files[path])
            return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

        def batch(self) -> Any:
            objects = []
            for one in json.loads(self.body)["objects"]:
                oid, size = one["oid"], one["size"]
                if oid in hub.stored:
                    objects.append({"oid": oid, "size": size})
                elif size <= PART:
                    objects.append({**one, "actions": {"upload": {"href": f"{hub.endpoint}/storage/{oid}"}}})
                else:
                    numbers = range(1, -(-size // PART) + 1)
                    header = {str(n): f"{hub.endpoint}/storage/{oid}?part={n}" for n in numbers}
                    header["chunk_size"] = str(PART)
                    upload = {"href": f"{hub.endpoint}/complete/{oid}", "header": header}
                    objects.append({**one, "actions": {"upload": upload}})
            return {"transfer": "multipart", "objects": objects}

        def store(self, oid: str, part: int) -> Any:
            hub.sent[oid] += len(self.body)
            if part:
                hub.parts.setdefault(oid, {})[part] = self.body
            else:
                hub.stored[oid] = self.body
            return (b"", "0" * 40, "")

        def commit(self, name: str, repo: Repo, files: dict[str, bytes]) -> Any:
            lines = [json.loads(line) for line in self.body.splitlines()]
            wanted = self.query.get("create_pr") == ["1"]
            changed = dict(files) if wanted else files
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    repo.commits.append(value["summary"])
                elif line["key"] == "file":
                    changed[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    changed[value["path"]] = hub.stored[value["oid"]]
                elif line["key"] == "deletedFile":
                    del changed[value["path"]]
            reply = {"commitUrl": f"{hub.endpoint}/{name}/commit/1", "commitOid": commit_of(changed)}
            if wanted:
                repo.pull_requests.append(changed)
                reply["pullRequestUrl"] = f"{hub.endpoint}/{name}/discussions/{len(repo.pull_requests)}"
            return reply

        def collection(self, rest: list[str]) -> Any:
            wanted = json.loads(self.body)
            if not rest:
                slug = f"{wanted['namespace']}/{wanted['title'].lower()}-0123"
                hub.collections.setdefault(slug, [])
            else:
                slug = "/".join(rest[:2])
                hub.collections[slug].append(wanted["item"]["id"])
            return {
                "slug": slug,
                "title": slug,
                "owner": {"name": "us"},
                "position": 0,
                "private": False,
                "theme": "blue",
                "upvotes": 0,
                "items": [],
                "lastUpdated": "2026-01-01T00:00:00.000Z",
            }

        def resolve(self, name: str, revision: str, path: str) -> Any:
            repo = hub.repos.get(name)
            if repo is None:
                raise Refused(404, "RepoNotFound", "Repository not found")
            files = self.at(repo, revision)
            if path not in files:
                raise Refused(404, "EntryNotFound", "Entry not found")
            return (files[path], commit_of(files), path)

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on a free port of this machine."""
    with local_server(handler(hub)) as hub.endpoint:
        yield hub
