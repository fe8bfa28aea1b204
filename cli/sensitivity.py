"""`moe-gguf sensitivity`: which roles and layers of a model suffer most, for mixes under a budget."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .loading import BUDGET_OPTIONS, MACHINE_OPTIONS, PLACING_OPTIONS, READING_OPTIONS, load_request, with_options
from .models import MODEL, catalogue_path
from .terminal import TERMINAL, echo, emit_json, say, verbosity

if TYPE_CHECKING:
    from ..jobs.sensitivity import Report

TEXT = click.Path(exists=True, dir_okay=False, path_type=Path)
OUTPUT = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.option("-f", "--file", "text", type=TEXT, required=True, help="The text to measure on.")
@click.option("-o", "--outfile", type=OUTPUT, required=True, help="Where to write the sensitivities (JSON).")
@click.option("--moments", type=TEXT, help="Round by these moments, as quantize will.")
@click.option("--imatrix", type=TEXT, help="Round by this importance matrix, as quantize will.")
@click.option("-c", "--ctx-size", type=click.IntRange(8), default=512, show_default=True, help="Tokens of a window.")
@click.option("--chunks", type=click.IntRange(1), default=4, show_default=True, help="Windows to read each time.")
@click.option("--groups", type=click.IntRange(1), default=6, show_default=True, help="Groups of layers to tell apart.")
@click.option("--force", is_flag=True, help="Replace the output.")
@with_options(READING_OPTIONS + BUDGET_OPTIONS + PLACING_OPTIONS + MACHINE_OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
def command(
    model: str | None,
    text: Path,
    outfile: Path,
    moments: Path | None,
    imatrix: Path | None,
    chunks: int,
    groups: int,
    force: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Measure how much MODEL, a 16-bit GGUF, diverges when one role or group of layers alone has four bits.

    The file that is written tells quantize --target-size which tensors deserve the bytes.
    """
    from ..jobs import sensitivity as job

    n_ctx = values.pop("ctx_size")
    request = job.Request(
        model=model,
        text=text,
        outfile=outfile,
        catalogue=catalogue_path(),
        moments=moments,
        imatrix=imatrix,
        n_chunk=chunks,
        n_group=groups,
        n_ctx=n_ctx,
        force=force,
        load=load_request(values),
    )
    report = job.run(job.prepare(request), TERMINAL)
    emit_json(report.as_json()) if as_json else show(report)


def show(report: "Report") -> None:
    """Print the roles, the most sensitive first, and the layers."""
    found = report.sensitivity
    kinds = tuple(report.additivity)
    echo(f"{'nats':12}" + "".join(f"{kind:>12}" for kind in kinds))
    for role, row in sorted(found.roles.items(), key=lambda item: -max(item[1].values())):
        echo(f"{role.lower():12}" + "".join(f"{row[kind]:12.5f}" for kind in kinds))
    together = " and ".join(f"{report.additivity[kind]:.2f}x" for kind in kinds)
    echo(f"all Q8_0: {found.floor:.5f} nats; all roles at once: {together} of their sums")
    layers = ", ".join(f"{layer}: {factor:.2f}" for layer, factor in found.layers.items())
    say(f"by layer: {layers}")
