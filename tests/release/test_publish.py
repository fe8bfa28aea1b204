"""A release folder sent to a hub of the tests' own: exactly what is listed, once, whatever goes wrong on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moe_gguf.release.checksums import SUMS, sha256_of, write_checksums

from ..command import Outcome, moe_gguf
from .hub_server import Fault, Hub, Repo, serving

REPO = "us/Wide-GGUF"
LARGE = "wide-Q4_K_M.gguf"
FILES = {LARGE: bytes(range(256)) * 1000, "small.gguf": b"GGUF small", "README.md": b"---\nlicense: mit\n---\n# Wide\n"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with checksums; what its files hold is of no concern here."""
    folder = tmp_path / "release"
    (folder / "plots").mkdir(parents=True)
    for name, content in {**FILES, "plots/sizes.svg": b"<svg/>"}.items():
        (folder / name).write_bytes(content)
    list_again(folder)
    return folder


def list_again(folder: Path) -> None:
    """Write the checksums of what lies in a folder now."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != SUMS]
    write_checksums(folder, {name: sha256_of(folder / name) for name in names})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub, and the environment of somebody who is logged in there."""
    with serving(Hub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield hub


def publish(folder: Path, *options: str, status: int = 0) -> Outcome:
    """Publish a folder; nothing that was printed, and no file of the folder, holds the token."""
    done = moe_gguf("publish", folder, REPO, *options)
    assert done.status == status, done.stdout + done.stderr
    token = os.environ.get("HF_TOKEN", "hf_none")
    assert token not in done.stdout + done.stderr
    assert all(token.encode() not in path.read_bytes() for path in folder.parent.rglob("*") if path.is_file())
    return done


def here(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def report(done: Outcome) -> dict[str, Any]:
    return json.loads(done.stdout)


def test_a_dry_run_lists_exactly_what_would_be_sent_and_sends_nothing(folder: Path, hub: Hub) -> None:
    told = report(publish(folder, "--dry-run", "--json"))
    assert set(told) == {"repo", "revision", "files"} and (told["repo"], told["revision"]) == (REPO, "main")
    assert told["files"] == [
        {"path": path, "bytes": len(content), "sha256": sha256_of(folder / path), "action": "upload"}
        for path, content in sorted(here(folder).items())
    ]
    assert not hub.repos and all(request.startswith("GET ") for request in hub.requests)
    text = publish(folder, "--dry-run").stdout
    assert f"upload      256.0 kB  {sha256_of(folder / LARGE)}  {LARGE}" in text


def test_what_is_listed_is_sent_in_one_commit_and_not_again(folder: Path, hub: Hub) -> None:
    (folder / "notes.txt").write_text("not listed")
    done = publish(folder, "--private")
    (folder / "notes.txt").unlink()
    assert "notes.txt: not listed in SHA256SUMS, so not sent" in done.stderr
    assert hub.files(REPO) == here(folder) and hub.repos[REPO].private is True
    assert len(hub.repos[REPO].commits) == 1 and f"commit: {hub.endpoint}/{REPO}/commit/1" in done.stdout
    hub.requests.clear()
    again = publish(folder)
    assert "0 files (0 B) were sent, 5 unchanged" in again.stderr
    assert not [request for request in hub.requests if not request.startswith("GET ")]


def test_only_what_changed_is_sent_and_what_is_gone_is_deleted_on_request(folder: Path, hub: Hub) -> None:
    publish(folder, "--public")
    hub.files(REPO)["old-Q2_K.gguf"] = b"GGUF old"
    hub.files(REPO)["notes.md"] = b"kept"
    (folder / "README.md").write_text("# New\n")
    list_again(folder)
    told = report(publish(folder, "--delete", "*.gguf", "--json", "--dry-run"))
    actions = {file["path"]: file["action"] for file in told["files"]}
    assert actions == {
        LARGE: "unchanged",
        "small.gguf": "unchanged",
        "plots/sizes.svg": "unchanged",
        "README.md": "upload",
        SUMS: "upload",
        "old-Q2_K.gguf": "delete",
    }
    hub.sent.clear()
    publish(folder, "--delete", "*.gguf")
    assert hub.files(REPO) == {**here(folder), "notes.md": b"kept"} and not hub.sent


def test_a_branch_a_pull_request_and_a_collection(folder: Path, hub: Hub) -> None:
    publish(folder, "--revision", "next", "--collection", "Merges")
    assert hub.files(REPO, "next") == here(folder) and hub.files(REPO) == {}
    assert hub.collections == {"us/merges-0123": [REPO]}
    done = publish(folder, "--create-pr", "--commit-message", "Six types")
    assert hub.repos[REPO].pull_requests == [here(folder)] and hub.files(REPO) == {}
    assert (
        hub.repos[REPO].commits[-1] == "Six types"
        and f"pull request: {hub.endpoint}/{REPO}/discussions/1" in done.stdout
    )
    publish(folder, "--revision", "next", "--collection", "us/merges-0123")
    assert hub.collections["us/merges-0123"] == [REPO, REPO]


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("POST /api/repos/create", 429),
        ("POST /api/models/.*/preupload", 500),
        ("objects/batch", 503),
        ("PUT /storage", "drop"),
        ("PUT /storage", 500),
        ("POST /complete", 500),
        ("POST /api/models/.*/commit", 429),
        ("POST /api/models/.*/commit", "drop"),
        ("GET /api/whoami-v2", "drop"),
        ("GET /api/models/.*/tree", 500),
    ],
)
def test_a_hub_that_is_busy_or_drops_connections_is_asked_again(
    folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, where: str, what: int | str
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.faults.append(Fault(where, what))
    publish(folder)
    assert hub.files(REPO) == here(folder) and len(hub.repos[REPO].commits) == 1
    assert not any(fault.times for fault in hub.faults)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.faults.append(Fault("/commit/", "drop", after=True))
    publish(folder)
    assert hub.files(REPO) == here(folder) and len(hub.repos[REPO].commits) == 1


@pytest.mark.parametrize("status", [402, 403])
def test_a_full_quota_is_named_and_what_arrived_is_kept(folder: Path, hub: Hub, status: int) -> None:
    hub.faults.append(Fault("/commit/", status))
    done = publish(folder, status=1)
    assert "no room left on" in done.stderr and "storage quota exceeded" in done.stderr
    assert len(done.stderr.strip().splitlines()[-1].splitlines()) == 1 and not hub.files(REPO)
    hub.sent.clear()
    publish(folder)
    assert hub.files(REPO) == here(folder) and not hub.sent


def test_an_interrupted_upload_goes_on(folder: Path, hub: Hub) -> None:
    """Killed by Ctrl-C while the second large file is on its way, in a process of its own."""
    hub.faults.append(Fault("/complete/", 503, times=10**6))
    command = [sys.executable, "-c", "from moe_gguf.cli import main; main()", "publish", str(folder), REPO]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any("/complete/" in request for request in hub.requests) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 130 and "what arrived is kept: run it again to go on" in told
    hub.faults.clear()
    hub.sent.clear()
    publish(folder)
    assert hub.files(REPO) == here(folder)


def test_a_token_that_the_hub_does_not_know_is_not_shown(
    folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_somebodyelses")
    done = publish(folder, "-v", status=1)
    assert "does not know the token" in done.stderr and not hub.repos
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder.parent / "no-token"))
    assert "without logging in: run hf auth login" in publish(folder, status=1).stderr


def test_folders_that_do_not_hold_are_refused_before_anything_is_sent(folder: Path, hub: Hub, tmp_path: Path) -> None:
    (folder / "README.md").write_text("changed")
    assert "README.md: SHA-256 is" in publish(folder, status=1).stderr
    (folder / "README.md").unlink()
    assert "README.md: is listed, and not there" in publish(folder, status=1).stderr
    (folder / "manifest.json").write_text("{}")
    list_again(folder)
    assert "manifest.json: not a manifest" in publish(folder, status=1).stderr
    (folder / "manifest.json").unlink()
    list_again(folder)
    with open(folder / "huge.gguf", "wb") as file:
        file.truncate(501 * 10**9)
    listed = (folder / SUMS).read_text()
    (folder / SUMS).write_text(f"{'0' * 64}  huge.gguf\n{listed}")
    assert "501 GB; the hub takes files up to 500 GB" in moe_gguf("publish", folder, REPO).stderr
    (folder / "huge.gguf").unlink()
    (folder / SUMS).unlink()
    assert "no such file; a release folder has one" in publish(folder, status=1).stderr
    assert "no such folder" in moe_gguf("publish", tmp_path / "none", REPO).stderr
    assert "write OWNER/NAME" in moe_gguf("publish", folder, "just-a-name").stderr
    assert not hub.repos


def test_what_is_meant_to_be_private_is_not_sent_to_a_public_repository(folder: Path, hub: Hub) -> None:
    publish(folder, "--public")
    assert "is public; make it private" in publish(folder, "--private", status=1).stderr
    hub.repos[REPO].private = True
    assert "is private, and stays so" in publish(folder, "--public").stderr and hub.repos[REPO].private


def test_a_private_repository_of_somebody_else_cannot_be_told_from_none(folder: Path, hub: Hub) -> None:
    hub.repos["them/Wide-GGUF"] = Repo(private=True)
    hub.faults.append(Fault("/tree/", 401, times=10**6))
    done = moe_gguf("publish", folder, "them/Wide-GGUF", "--dry-run")
    assert done.status == 1 and "token" in done.stderr
