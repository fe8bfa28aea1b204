"""`moe-gguf devices`: every device of the loaded llama.cpp, how it was built, and what would make it better."""

import click

from .loading import split_list
from .tables import table
from .terminal import TERMINAL, echo, emit_json, format_bytes, verbosity


@click.command()
@click.option("--rpc", metavar="HOST:PORT,...", help="List the devices of these workers too.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
def command(rpc: str | None, as_json: bool) -> None:
    """List the devices that llama.cpp can use here, and how it was built.

    A GPU that this build cannot use is named with the command that rebuilds llama-cpp-python for it.
    """
    from ..jobs import devices as job

    report = job.run(job.Request(tuple(split_list(rpc or ""))), TERMINAL)
    if as_json:
        emit_json(report.as_json())
        return
    rows = [
        (d.name, d.kind, format_bytes(d.free_bytes), format_bytes(d.total_bytes), d.description) for d in report.devices
    ]
    echo(table(("device", "kind", "free", "total", "description"), rows, right=(2, 3)))
    echo(f"\nllama.cpp is built with {', '.join(report.build.backends)}: {report.build.system_info}")
    for line in report.build.rebuild:
        echo(f"\nnot used: {line}")
