"""`moe-gguf publish`: a release folder, sent to the hub."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..formats.words import count
from .terminal import TERMINAL, echo, emit_json, format_bytes, level, say, verbosity

if TYPE_CHECKING:
    from ..release.publish import Report


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.argument("repo", metavar="REPO")
@click.option("--private/--public", default=None, help="For a new repository.  [default: the owner's setting]")
@click.option("--revision", metavar="BRANCH", help="Send to this branch; made when it is not there.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--collection", metavar="SLUG|TITLE", help="Put the repository into this collection.")
@click.option("--delete", multiple=True, metavar="PATTERN", help="Delete files there that fit, and are not in DIR.")
@click.option("--commit-message", metavar="TEXT", help="What the commit says.")
@click.option("--dry-run", is_flag=True, help="List exactly what would be sent; send nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
def command(
    folder: Path,
    repo: str,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    collection: str | None,
    delete: tuple[str, ...],
    commit_message: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send the release in DIR to REPO (OWNER/NAME) on the hub, once its checksums and its manifest hold.

    Log in first: hf auth login, or HF_TOKEN. What the hub has already is not sent again; an interrupted upload goes on
    when it is run again.
    """
    from ..release import publish as job

    if level() < 0 or sys.stderr is None or not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    request = job.Request(folder, repo, private, revision, create_pr, collection, delete, commit_message)
    prepared = job.prepare(request, TERMINAL)
    report = prepared.report if dry_run else job.run(prepared, TERMINAL)
    if as_json:
        emit_json(report.as_json())
    else:
        show(report, dry_run)


def show(report: "Report", dry_run: bool) -> None:
    """Print what would become of each file, or where everything is now."""
    uploads, deletions = report.of("upload"), report.of("delete")
    if dry_run:
        for file in report.files:
            echo(f"{file.action:9}  {format_bytes(file.bytes):>9}  {file.sha256 or '-':64}  {file.path}")
    for what, link in (("commit", report.commit), ("pull request", report.pull_request)):
        if link:
            echo(f"{what}: {link}")
    if report.collection:
        echo(f"collection: {report.collection}")
    size = format_bytes(sum(file.bytes for file in uploads))
    be = "would be" if dry_run else "were"
    gone = f", {count(len(deletions), 'file')} deleted" if deletions else ""
    say(
        f"{report.repo} ({report.revision}): {count(len(uploads), 'file')} ({size}) {be} sent{gone}, "
        f"{len(report.of('unchanged'))} unchanged"
    )
