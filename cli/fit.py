"""`moe-gguf fit`: plans what of a model goes on which device, says why, and what would change with other types."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from ..formats.errors import EngineError
from .devices import device_report
from .loading import CONTEXT_OPTIONS, available_devices, read_manual
from .models import MODEL, resolve_gguf
from .tables import table
from .terminal import emit_json, format_bytes, verbosity

if TYPE_CHECKING:
    from ..formats.gguf_file import GgufFile
    from ..runner.load_options import LoadOptions
    from ..runner.placing.devices import Device
    from ..runner.placing.memory import ModelFacts
    from ..runner.placing.placement import Placement

# the rungs that people choose from, best first
OTHER_TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


@dataclass(frozen=True)
class Variant:
    """How the same model would fit in another quantization; `n_layer` counts layers that are complete on devices."""

    type: str
    n_bytes: int
    fits: bool
    n_layer: int
    largest_n_ctx: int


def context_options(command: Any) -> Any:
    """Give the command the options that decide how much memory a context takes."""
    for option in reversed(CONTEXT_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.option("--vram", metavar="SIZE,...", help="Plan for devices of this size (8G, or 8G,6G for two).")
@click.option("--ram", metavar="SIZE", help="Plan for so much memory (16G).")
@click.option("--rpc", metavar="HOST:PORT,...", help="Plan with the devices of these workers too.")
@click.option("-dev", "--device", metavar="NAME,...", help="Plan with these devices only (or none).")
@context_options
@click.option("-nkvo", "--no-kv-offload", is_flag=True, help="Keep the KV cache on the CPU.")
@click.option("--no-mmap", is_flag=True, help="Plan for reading the file into memory instead of mapping it.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
def command(model: str | None, as_json: bool, **values: Any) -> None:
    """Plan what of MODEL, a GGUF file or a name of the catalogue, goes on which device, and why.

    First what every token needs (attention, norms, routers, the KV cache), then the experts of as many layers as
    fit. Where llama.cpp has no device beside the CPU, --vram plans for one that you do not have.
    """
    from ..formats.gguf_file import read_gguf
    from ..runner.placing.memory import read_facts
    from ..runner.placing.placement import HYPOTHETICAL, plan, plan_file

    file = read_gguf(resolve_gguf(model))
    facts = read_facts(file)
    devices = available_devices(values, hypothetical=True)
    wish = read_manual(values, facts, devices)
    if any(device.description == HYPOTHETICAL for device in devices):
        placement = plan(facts, devices, wish)
        note = "there is no such device here: GPU0 and what follows from it are hypothetical, sizes are estimates"
        placement = replace(placement, notes=(note, *placement.notes))
    else:
        placement = plan_file(file, facts, devices, wish)
    report(file, placement, wish, as_json)


def report(file: "GgufFile", placement: "Placement", wish: "LoadOptions", as_json: bool) -> None:
    """Print the plan, the largest context and the other quantizations."""
    from ..runner.placing.placement import largest_context, predict, rank
    from ..runner.placing.reasons import explain, flags

    facts, devices = placement.facts, placement.devices
    largest = max(largest_context(facts, rank(devices), wish, predict), placement.n_ctx)
    variants = other_types(file, facts, devices, placement.options, wish)
    if as_json:
        emit_json(
            {
                "n_ctx": placement.n_ctx,
                "devices": [device_report(device) | memory_report(placement, device.name) for device in devices],
                "tensors": [{"name": name, "device": device} for name, device in placement.tensors.items()],
                "flags": flags(placement),
                "largest_n_ctx": largest,
                "groups": [asdict(group) for group in explain(placement)],
                "quantizations": [asdict(variant) for variant in variants],
                "notes": list(placement.notes),
            }
        )
        return
    for note in placement.notes:
        click.echo(f"note: {note}\n")
    click.echo(
        f"{facts.name}: {format_bytes(sum(facts.tensors.values()))}, {facts.n_layer} layers; a context of "
        f"{placement.n_ctx} tokens (largest that fits: {largest}, trained: {facts.n_ctx_train})\n"
    )
    click.echo(device_table(placement))
    rows = [(g.what, g.device, format_bytes(g.n_bytes), g.reason) for g in explain(placement)]
    click.echo("\n" + table(("what", "device", "size", "why"), rows, right=(2,)))
    click.echo("\n" + "\n".join(variant_line(variant, facts.n_layer, devices) for variant in variants))
    click.echo("\nllama.cpp's flags for this: " + shlex.join(flags(placement)))


def device_table(placement: "Placement") -> str:
    """Return a row per device: what it has, what goes there, what is left."""
    rows = []
    for device in placement.devices:
        memory = memory_report(placement, device.name)
        sizes = (device.free_bytes, *memory.values(), device.free_bytes - sum(memory.values()))
        rows.append((device.name, device.kind, *(f"{n / 1e9:.3f}" for n in sizes)))
    heads = ("device", "kind", "free", "weights", "KV cache", "compute", "left (GB)")
    return table(heads, rows, right=range(2, len(heads)))


def memory_report(placement: "Placement", name: str) -> dict[str, int]:
    """Return the bytes that the plan puts on a device."""
    memory = placement.memory.get(name)
    return {
        "weights_bytes": memory.weights if memory else 0,
        "kv_bytes": memory.kv if memory else 0,
        "compute_bytes": memory.compute if memory else 0,
    }


def other_types(
    file: "GgufFile",
    facts: "ModelFacts",
    devices: "tuple[Device, ...]",
    options: "LoadOptions",
    wish: "LoadOptions",
) -> list[Variant]:
    """Return how the model would fit in the other usual quantizations, at the same context."""
    from ..runner.placing.memory import with_tensor_bytes
    from ..runner.placing.placement import complete_layers, largest_context, plan, predict, rank

    variants = []
    for name, sizes in type_sizes(file).items():
        other = with_tensor_bytes(facts, name, sizes)
        n_bytes = sum(sizes.values())
        largest = largest_context(other, rank(devices), wish, predict)
        try:
            placement = plan(other, devices, replace(wish, n_ctx=options.n_ctx))
        except EngineError:
            variants.append(Variant(name, n_bytes, False, 0, largest))
        else:
            variants.append(Variant(name, n_bytes, True, complete_layers(placement), largest))
    return variants


def type_sizes(file: "GgufFile") -> Mapping[str, dict[str, int]]:
    """Return quantization -> tensor -> bytes for the types that this model's rows allow."""
    from ..formats.errors import PlanError
    from ..quantize.choices import RecipeOptions
    from ..quantize.facts import facts_of
    from ..quantize.file_types import parse_file_type
    from ..quantize.recipes import plan_types

    tensors = list(file.tensors.values())
    sizes = {}
    for name in OTHER_TYPES:
        try:
            choices = plan_types(
                facts_of(file.metadata, file.tensors), tensors, parse_file_type(name), RecipeOptions(), False
            )
            sizes[name] = {choice.name: choice.n_bytes for choice in choices}
        except (PlanError, ValueError):
            continue
    return sizes


def variant_line(variant: Variant, n_layer: int, devices: "tuple[Device, ...]") -> str:
    """Return one line on another quantization."""
    size = f"{variant.type:7} {format_bytes(variant.n_bytes):>10}"
    if not variant.fits:
        shorter = f" with this context, but would with {variant.largest_n_ctx}" if variant.largest_n_ctx else ""
        return f"{size}  would not fit{shorter}"
    if not any(device.offloads for device in devices):
        return f"{size}  would fit (context up to {variant.largest_n_ctx})"
    if variant.n_layer == n_layer:
        return f"{size}  would fit on the devices completely (context up to {variant.largest_n_ctx})"
    context = f"(context up to {variant.largest_n_ctx})"
    return f"{size}  would fit with {variant.n_layer} of {n_layer} layers on devices {context}"
