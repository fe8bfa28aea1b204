"""Planning what of a model goes on which device: a GGUF file and budgets in, a placement with its reasons out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.errors import EngineError, PlanError
from .devices import device_report
from .listener import SILENT, Listener
from .loading import DEFAULT_LOAD, LoadRequest, available_devices, wished_options
from .sources import resolve_gguf

if TYPE_CHECKING:
    from ..formats.gguf_file import GgufFile
    from ..runner.load_options import LoadOptions
    from ..runner.placing.devices import Device
    from ..runner.placing.memory import ModelFacts
    from ..runner.placing.placement import Placement
    from ..runner.placing.reasons import Group

# the rungs that people choose from, best first
OTHER_TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


@dataclass(frozen=True)
class Request:
    """A model, and what there is to put it on: `load.vram` plans for devices of that size where there are none."""

    model: str | Path | None
    catalogue: Path | None = None
    load: LoadRequest = DEFAULT_LOAD


@dataclass(frozen=True)
class Prepared:
    """A model whose header was read, the devices to plan for, and what was wished."""

    file: "GgufFile"
    facts: "ModelFacts"
    devices: "tuple[Device, ...]"
    wish: "LoadOptions"


@dataclass(frozen=True)
class Variant:
    """How the same model would fit in another quantization; `n_layer` counts layers that are complete on devices."""

    type: str
    n_bytes: int
    fits: bool
    n_layer: int
    largest_n_ctx: int


@dataclass(frozen=True)
class Report:
    """A placement, why it is so, the largest context that fits, and what other quantizations would change."""

    placement: "Placement"
    groups: "tuple[Group, ...]"
    flags: tuple[str, ...]
    largest_n_ctx: int
    variants: tuple[Variant, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what `fit --json` prints."""
        placement = self.placement
        return {
            "n_ctx": placement.n_ctx,
            "devices": [device_report(device) | memory_report(placement, device.name) for device in placement.devices],
            "tensors": [{"name": name, "device": device} for name, device in placement.tensors.items()],
            "flags": list(self.flags),
            "largest_n_ctx": self.largest_n_ctx,
            "groups": [asdict(group) for group in self.groups],
            "quantizations": [asdict(variant) for variant in self.variants],
            "notes": list(placement.notes),
        }


def prepare(request: Request, listener: Listener = SILENT) -> Prepared:
    """Read the header and list the devices. Raises GgufError, CatalogueError and EngineError."""
    from ..formats.gguf_file import read_gguf
    from ..models.gguf_kind import demand_model
    from ..runner.placing.memory import read_facts

    file = read_gguf(resolve_gguf(request.model, request.catalogue))
    demand_model(file)
    facts = read_facts(file)
    devices = available_devices(request.load, listener, hypothetical=True)
    return Prepared(file, facts, tuple(devices), wished_options(request.load, facts, devices))


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Plan the placement. Raises EngineError for a model that does not fit."""
    from ..runner.placing.placement import HYPOTHETICAL, largest_context, plan, plan_file, predict, rank
    from ..runner.placing.reasons import explain, flags

    file, facts, devices, wish = prepared.file, prepared.facts, list(prepared.devices), prepared.wish
    if any(device.description == HYPOTHETICAL for device in devices):
        placement = plan(facts, devices, wish)
        note = "there is no such device here: GPU0 and what follows from it are hypothetical, sizes are estimates"
        placement = replace(placement, notes=(note, *placement.notes))
    else:
        placement = plan_file(file, facts, devices, wish)
    largest = largest_context(placement.facts, rank(placement.devices), wish, predict)
    return Report(
        placement,
        tuple(explain(placement)),
        tuple(flags(placement)),
        max(largest, placement.n_ctx),
        tuple(other_types(file, placement.facts, placement.devices, placement.options, wish)),
    )


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
    from ..quantize.choices import MixOptions
    from ..quantize.facts import facts_of
    from ..quantize.file_types import parse_file_type
    from ..quantize.mixes import plan_types
    from ..quantize.stock_policy import stock

    tensors = list(file.tensors.values())
    sizes = {}
    for name in OTHER_TYPES:
        try:
            mix = stock(parse_file_type(name))
            choices = plan_types(facts_of(file.metadata, file.tensors), tensors, mix, MixOptions(), False)
            sizes[name] = {choice.name: choice.n_bytes for choice in choices}
        except (PlanError, ValueError):
            continue
    return sizes
