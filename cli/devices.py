"""`moe-gguf devices`: every device of the loaded llama.cpp, how it was built, and what would make it better."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .loading import available_devices
from .tables import table
from .terminal import emit_json, format_bytes, verbosity

if TYPE_CHECKING:
    from ..runner.placing.devices import Device


@click.command()
@click.option("--rpc", metavar="HOST:PORT,...", help="List the devices of these workers too.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
def command(rpc: str | None, as_json: bool) -> None:
    """List the devices that llama.cpp can use here, and how it was built.

    A GPU that this build cannot use is named with the command that rebuilds llama-cpp-python for it.
    """
    from ..runner.placing.devices import describe_build

    devices = available_devices({"rpc": rpc})
    build = describe_build()
    if as_json:
        emit_json({"devices": [device_report(device) for device in devices], "build": asdict(build)})
        return
    rows = [(d.name, d.kind, format_bytes(d.free_bytes), format_bytes(d.total_bytes), d.description) for d in devices]
    click.echo(table(("device", "kind", "free", "total", "description"), rows, right=(2, 3)))
    click.echo(f"\nllama.cpp is built with {', '.join(build.backends)}: {build.system_info}")
    for line in build.rebuild:
        click.echo(f"\nnot used: {line}")


def device_report(device: "Device") -> dict[str, str | int]:
    """Return the part of a report that `devices` and `fit` share."""
    return {
        "name": device.name,
        "kind": device.kind,
        "free_bytes": device.free_bytes,
        "total_bytes": device.total_bytes,
    }
