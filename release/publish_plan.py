"""What publishing a release folder would do: the folder is held against its own lists and against what the hub has.

In: the folder and a repository. Out: each file with its size, SHA-256 and what becomes of it; nothing is sent here.
"""

import fnmatch
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any

from ..formats.errors import ReleaseError
from ..formats.words import count
from ..jobs.listener import SILENT, Listener
from .checksums import SUMS, check_checksums, read_checksums, sha256_of
from .hub import hub_api, is_repo, refusals
from .manifest import MANIFEST, read_manifest

# The hub's limits of a file, in bytes (docs of its storage limits): refused beyond, not recommended beyond.
LARGEST, RECOMMENDED = 500 * 10**9, 200 * 10**9
UPLOAD, UNCHANGED, DELETE = "upload", "unchanged", "delete"


@dataclass(frozen=True)
class Request:
    """A release folder, and the repository OWNER/NAME that it becomes.

    `private` is for a repository that is made now; None is the owner's default. `revision` is a branch, made when it is
    not there; with `create_pr` a pull request against it. `collection` is the slug of one, or the title of one of the
    owner's, made when it is not there. Files of the repository that fit a pattern of `delete` and are not in the
    folder are deleted.
    """

    folder: Path
    repo: str
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    collection: str | None = None
    delete: tuple[str, ...] = ()
    message: str | None = None


@dataclass(frozen=True)
class PlannedFile:
    """A file of the repository: bytes, SHA-256 (of one to be deleted, where the hub states it), what becomes of it."""

    path: str
    bytes: int
    sha256: str | None
    action: str


@dataclass(frozen=True)
class Report:
    """What would be sent, or was; the links are None in a dry run, and when there was nothing to do."""

    repo: str
    revision: str
    files: tuple[PlannedFile, ...]
    commit: str | None = None
    pull_request: str | None = None
    collection: str | None = None

    def of(self, action: str) -> tuple[PlannedFile, ...]:
        """Return the files with an action."""
        return tuple(file for file in self.files if file.action == action)

    def as_json(self) -> dict[str, Any]:
        """Return what `publish --json` prints; of a dry run without the links."""
        report = {"repo": self.repo, "revision": self.revision, "files": [asdict(file) for file in self.files]}
        links = {"commit": self.commit, "pull_request": self.pull_request, "collection": self.collection}
        return report | {key: value for key, value in links.items() if value}


@dataclass(frozen=True)
class Prepared:
    """A folder that holds, what the repository has of it, and whether repository and branch are there."""

    request: Request
    report: Report
    exists: bool
    has_branch: bool


@dataclass(frozen=True)
class RemoteFile:
    """A file of the repository: the hub states the SHA-256 of a large one, and git's name of any."""

    n_bytes: int
    sha256: str | None
    blob: str


def prepare(request: Request, listener: Listener = SILENT) -> Prepared:
    """Refuse a folder that does not hold, ask the hub what it has of it, and list what there is to do.

    Raises ReleaseError: checksums or manifest that do not hold, files too large, no such hub, no access.
    """
    if not is_repo(request.repo):
        raise ReleaseError(f"{request.repo!r} cannot be a repository; write OWNER/NAME")
    sums = _listed(request.folder, listener)
    _check_sizes(request.folder, sums, listener)
    _check_folder(request.folder, sums, listener)
    exists, has_branch, remote = remote_files(request)
    if exists and request.private is not None:
        _check_visibility(request, listener)
    files = [_planned(request.folder, name, digest, remote.get(name)) for name, digest in sums.items()]
    sums_path = request.folder / SUMS
    files.append(_planned(request.folder, SUMS, sha256_of(sums_path), remote.get(SUMS)))
    sent = {file.path for file in files}
    for name, file in remote.items():
        if name not in sent and any(fnmatch.fnmatch(name, pattern) for pattern in request.delete):
            files.append(PlannedFile(name, file.n_bytes, file.sha256, DELETE))
    revision = request.revision or "main"
    return Prepared(request, Report(request.repo, revision, tuple(sorted(files, key=_by_path))), exists, has_branch)


def _listed(folder: Path, listener: Listener) -> dict[str, str]:
    """Return what a folder lists of itself; what lies in it and is not listed is not sent, which is said."""
    if not folder.is_dir():
        raise ReleaseError(f"{folder}: no such folder; give one that moe-gguf release made")
    sums = read_checksums(folder)
    if not sums:
        raise ReleaseError(f"{folder / SUMS}: lists no file, so there is nothing to publish")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    strays = sorted(there - set(sums) - {SUMS})
    if strays:
        more = f" and {len(strays) - 1} more" if len(strays) > 1 else ""
        listener.warn(f"{folder / strays[0]}{more}: not listed in {SUMS}, so not sent")
    return sums


def _check_sizes(folder: Path, sums: Mapping[str, str], listener: Listener) -> None:
    for name in sums:
        size = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if size > LARGEST:
            raise ReleaseError(
                f"{folder / name}: {size / 1e9:.0f} GB; the hub takes files up to {LARGEST // 10**9} GB: cut it by "
                "moe-gguf split --split-max-size 45G"
            )
        if size > RECOMMENDED:
            listener.warn(f"{folder / name}: {size / 1e9:.0f} GB; the hub recommends at most {RECOMMENDED // 10**9} GB")


def _check_visibility(request: Request, listener: Listener) -> None:
    """Refuse to send to a public repository what is meant to be private."""
    with refusals(request.repo, "be read from"):
        is_private = bool(hub_api().repo_info(request.repo).private)
    if request.private and not is_private:
        raise ReleaseError(f"{request.repo}: is public; make it private in its settings, or publish without --private")
    if is_private and not request.private:
        listener.warn(f"{request.repo}: is private, and stays so; --public is for a repository that is made now")


def _check_folder(folder: Path, sums: Mapping[str, str], listener: Listener) -> None:
    """Refuse a folder whose files are not what its checksums and its manifest say."""
    if (folder / MANIFEST).is_file() or MANIFEST in sums:
        for listed in read_manifest(folder).listed:
            if sums.get(listed.name) != listed.sha256:
                raise ReleaseError(
                    f"{folder / MANIFEST}: has another SHA-256 of {listed.name} than {SUMS}; make the release again"
                )
    total = sum((folder / name).stat().st_size for name in sums if (folder / name).is_file())
    with listener.bar(total, "checksums", delay=1) as bar:
        wrong = check_checksums(folder, sums, advance=bar.update)
    if wrong:
        more = f" ({count(len(wrong), 'file')} in all)" if len(wrong) > 1 else ""
        raise ReleaseError(f"{folder}: {wrong[0]}{more}; nothing was sent: see moe-gguf verify {folder}")


def remote_files(request: Request) -> tuple[bool, bool, dict[str, RemoteFile]]:
    """Return whether the repository and its branch are there, and its files."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    with refusals(request.repo, "be read from"), _absent() as absent:
        entries = list(hub_api().list_repo_tree(request.repo, recursive=True, revision=request.revision))
        files = {
            entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
            for entry in entries
            if isinstance(entry, RepoFile)
        }
        return True, True, files
    if isinstance(absent.error, RevisionNotFoundError):
        return True, False, {}
    assert isinstance(absent.error, RepositoryNotFoundError)
    return False, False, {}


@dataclass
class _Absent:
    error: Exception | None = None


@contextmanager
def _absent() -> Iterator[_Absent]:
    """Keep the error that says that a repository or a branch is not there: it will be made."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    absent = _Absent()
    try:
        yield absent
    except GatedRepoError:
        raise
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        absent.error = error


def _planned(folder: Path, name: str, digest: str, remote: RemoteFile | None) -> PlannedFile:
    size = (folder / name).stat().st_size
    file = PlannedFile(name, size, digest, UPLOAD)
    return PlannedFile(name, size, digest, UNCHANGED if is_same(folder, file, remote) else UPLOAD)


def is_same(folder: Path, file: PlannedFile, remote: RemoteFile | None) -> bool:
    """Tell whether the hub has a file as it is here: by its SHA-256, or a small one by git's name for its content."""
    if remote is None or remote.n_bytes != file.bytes:
        return False
    if remote.sha256 is not None:
        return remote.sha256 == file.sha256
    content = (folder / file.path).read_bytes()
    return sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == remote.blob


def _by_path(file: PlannedFile) -> str:
    return file.path
