"""What split, join, edit and upgrade share: their options, and what they report."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .output_text import print_output
from .terminal import TERMINAL, detail, echo, emit_json, say

if TYPE_CHECKING:
    from ..jobs.rewrite import Request

Command = TypeVar("Command", bound=Callable[..., Any])
OUTPUT = click.Path(dir_okay=False, path_type=Path)


def rewriting_options(command: Command) -> Command:
    """Give a command --force, --dry-run and --json."""
    options = (
        click.option("-f", "--force", is_flag=True, help="Overwrite the output."),
        click.option("--dry-run", is_flag=True, help="Print what would change, and the exact size; write nothing."),
        click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def rewrite(request: "Request", dry_run: bool, as_json: bool) -> None:
    """Run a request and report."""
    from ..jobs import rewrite as job

    prepared = job.prepare(request)
    report = job.Report(job.OutputReport(prepared.output, "COPY"), prepared.changes)
    if not dry_run:
        report = job.run(prepared, TERMINAL)
    if as_json:
        emit_json(report.as_json())
        return
    print_output(report.output, report.seconds)
    for change in report.changes:
        echo(f"  {change}")
    shards = report.output.output.shards()
    if len(shards) > 1:
        say(f"{len(shards)} shards; llama.cpp loads all of them when it is given the first")
        for path, layout in shards:
            detail(f"  {path}: {layout.n_bytes:,} bytes")
