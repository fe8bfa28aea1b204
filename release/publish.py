"""A release folder sent to the hub, by huggingface_hub; what is there already is not sent again.

`prepare` lists what there is to do; `run` does it. An upload that was interrupted goes on when it is run again: the hub
keeps files that arrived, and where it deduplicates, parts of them. No token is ever shown.
"""

from typing import Any

from ..formats.errors import Interrupted, ReleaseError
from ..formats.words import count
from ..jobs.listener import SILENT, Listener
from .hub import hub_api, patiently, refusals
from .publish_plan import DELETE, UPLOAD, PlannedFile, Prepared, Report, Request, is_same, prepare, remote_files

__all__ = ["PlannedFile", "Prepared", "Report", "Request", "prepare", "run"]


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Make the repository, send what it lacks, and commit all of it at once. Raises ReleaseError and Interrupted."""
    request = prepared.request
    try:
        return _send(prepared, listener)
    except KeyboardInterrupt:
        raise Interrupted(f"{request.repo}: interrupted; what arrived is kept: run it again to go on") from None


def _send(prepared: Prepared, listener: Listener) -> Report:
    request, report = prepared.request, prepared.report
    api = hub_api()
    with refusals(request.repo, "be sent to"):
        _need_login(api)
        if not prepared.exists:
            patiently(lambda: api.create_repo(request.repo, private=request.private, exist_ok=True), listener)
        if not prepared.has_branch and request.revision:
            name = request.revision
            patiently(lambda: api.create_branch(request.repo, branch=name, exist_ok=True), listener)
        commit = pull_request = None
        if report.of(UPLOAD) or report.of(DELETE):
            commit, pull_request = _commit(api, prepared, listener)
        collection = _collect(api, request, listener) if request.collection else None
    return Report(report.repo, report.revision, report.files, commit, pull_request, collection)


def _commit(api: Any, prepared: Prepared, listener: Listener) -> tuple[str | None, str | None]:
    """Send files one after the other, then commit them all; return links to the commit and the pull request."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    request, report = prepared.request, prepared.report
    additions = []
    for number, file in enumerate(report.of(UPLOAD), 1):
        addition = CommitOperationAdd(file.path, request.folder / file.path)
        listener.say(f"{file.path}: {file.bytes:,} bytes ({number} of {len(report.of(UPLOAD))})")
        # huggingface_hub asks again by itself when a part does not arrive.
        api.preupload_lfs_files(
            request.repo, [addition], revision=request.revision, create_pr=request.create_pr, free_memory=False
        )
        # Hashed again while it was sent.
        if addition.upload_info.sha256.hex() != file.sha256:
            raise ReleaseError(f"{request.folder / file.path}: changed while it was published; run it again")
        additions.append(addition)
    deletions = [CommitOperationDelete(file.path) for file in report.of(DELETE)]
    message = request.message or f"Publish {count(len(additions), 'file')} with moe-gguf"

    def commit() -> Any:
        return api.create_commit(
            request.repo,
            [*additions, *deletions],
            commit_message=message,
            revision=request.revision,
            create_pr=request.create_pr,
        )

    def arrived() -> bool:
        """Whether a commit got through whose answer was lost; of a pull request nobody can tell."""
        if request.create_pr:
            raise ReleaseError(f"{request.repo}: the answer was lost; see whether a pull request is there by now")
        remote = remote_files(request)[2]
        return all(is_same(request.folder, file, remote.get(file.path)) for file in report.of(UPLOAD))

    done = patiently(commit, listener, arrived)
    return (str(done.commit_url), done.pr_url) if done else (None, None)


def _collect(api: Any, request: Request, listener: Listener) -> str:
    """Put the repository into a collection; return a link to it."""
    slug = request.collection or ""
    if "/" not in slug:
        owner = request.repo.partition("/")[0]
        slug = patiently(lambda: api.create_collection(slug, namespace=owner, exists_ok=True), listener).slug
    return patiently(lambda: api.add_collection_item(slug, request.repo, "model", exists_ok=True), listener).url


def _need_login(api: Any) -> None:
    """Ask who is logged in, before anything is hashed or sent."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import LocalTokenNotFoundError

    if get_token() is None:
        raise LocalTokenNotFoundError("no token")
    patiently(api.whoami, SILENT)
