"""`moe-gguf fit`: plans what of a model goes on which device, says why, and what would change with other types."""

import shlex
from typing import TYPE_CHECKING, Any

import click

from .llama_words import LlamaCommand
from .loading import CONTEXT_OPTIONS, load_request, with_options
from .models import MODEL, catalogue_path
from .tables import table
from .terminal import TERMINAL, echo, emit_json, format_bytes, verbosity

if TYPE_CHECKING:
    from ..jobs.fit import Report, Variant


@click.command(cls=LlamaCommand)
@click.argument("model", type=MODEL, required=False)
@click.option("--vram", metavar="SIZE,...", help="Plan for devices of this size, e.g. 8G, or 8G,6G for two.")
@click.option("--ram", metavar="SIZE", help="Plan for this much memory, e.g. 16G.")
@click.option("--rpc", metavar="HOST:PORT,...", help="Plan with the devices of these workers too.")
@click.option("-dev", "--device", metavar="NAME,...", help="Plan with these devices only (or none).")
@with_options(CONTEXT_OPTIONS)
@click.option("-nkvo", "--no-kv-offload", is_flag=True, help="Keep the KV cache on the CPU.")
@click.option("--no-mmap", is_flag=True, help="Plan for reading the file into memory instead of mapping it.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
def command(model: str | None, as_json: bool, **values: Any) -> None:
    """Plan what of MODEL, a GGUF file or a name of the catalogue, goes on which device, and why.

    First what every token needs (attention, norms, routers, the KV cache), then the experts of as many layers as
    fit. Where llama.cpp has no device beside the CPU, --vram plans for one that you do not have.
    """
    from ..jobs import fit as job

    request = job.Request(model=model, catalogue=catalogue_path(), load=load_request(values))
    report = job.run(job.prepare(request, TERMINAL), TERMINAL)
    emit_json(report.as_json()) if as_json else show(report)


def show(report: "Report") -> None:
    """Print the plan, the largest context and the other quantizations."""
    placement, facts = report.placement, report.placement.facts
    for note in placement.notes:
        echo(f"note: {note}\n")
    echo(
        f"{facts.name}: {format_bytes(sum(facts.tensors.values()))}, {facts.n_layer} layers; a context of "
        f"{placement.n_ctx} tokens (largest that fits: {report.largest_n_ctx}, trained: {facts.n_ctx_train})\n"
    )
    echo(device_table(report))
    rows = [(group.what, group.device, format_bytes(group.n_bytes), group.reason) for group in report.groups]
    echo("\n" + table(("what", "device", "size", "why"), rows, right=(2,)))
    offloads = any(device.offloads for device in placement.devices)
    echo("\n" + "\n".join(variant_line(variant, facts.n_layer, offloads) for variant in report.variants))
    echo("\nllama.cpp's flags for this: " + shlex.join(report.flags))


def device_table(report: "Report") -> str:
    """Return a row per device: what it has, what goes there, what is left."""
    from ..jobs.fit import memory_report

    rows = []
    for device in report.placement.devices:
        memory = memory_report(report.placement, device.name)
        sizes = (device.free_bytes, *memory.values(), device.free_bytes - sum(memory.values()))
        rows.append((device.name, device.kind, *(f"{n / 1e9:.3f}" for n in sizes)))
    heads = ("device", "kind", "free", "weights", "KV cache", "compute", "left (GB)")
    return table(heads, rows, right=range(2, len(heads)))


def variant_line(variant: "Variant", n_layer: int, offloads: bool) -> str:
    """Return one line on another quantization."""
    size = f"{variant.type:7} {format_bytes(variant.n_bytes):>10}"
    if not variant.fits:
        shorter = f" with this context, but would with {variant.largest_n_ctx}" if variant.largest_n_ctx else ""
        return f"{size}  would not fit{shorter}"
    if not offloads:
        return f"{size}  would fit (context up to {variant.largest_n_ctx})"
    if variant.n_layer == n_layer:
        return f"{size}  would fit on the devices completely (context up to {variant.largest_n_ctx})"
    context = f"(context up to {variant.largest_n_ctx})"
    return f"{size}  would fit with {variant.n_layer} of {n_layer} layers on devices {context}"
