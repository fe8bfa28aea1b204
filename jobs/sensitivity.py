"""How much a model suffers where: divergence when one role, or one group of layers, alone has about four bits.

Each configuration is quantized to a temporary file (everything else Q8_0), read once, and held against the predictions
of the source, which are stored. By role a run each, by groups of layers a run each, and two for the slope per bit.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gguf import GGMLQuantizationType

from ..formats.errors import OutputError, PlanError
from ..formats.gguf_file import GgufFile, read_gguf
from ..models.tensor_roles import Role, layer_of, reason_to_keep, role_of
from ..quantize.budget import REFERENCE, Sensitivity, bits_of
from ..quantize.fallback import fitting_type
from ..quantize.file_types import parse_file_type
from ..quantize.mixes import by_table
from . import compare, quantize
from .listener import SILENT, Listener
from .loading import DEFAULT_LOAD, LoadRequest
from .sources import resolve_gguf
from .working_files import roomy_cache

_T = GGMLQuantizationType
Types = Mapping[str, GGMLQuantizationType]


@dataclass(frozen=True)
class Request:
    """A GGUF file of 16 or 32 bits (or a name of `catalogue`), a text, and where to write; moments round as they will.

    `n_chunk` windows of 512 tokens are read each time; `n_group` groups of layers are told apart.
    """

    model: str | Path | None
    text: Path
    outfile: Path
    catalogue: Path | None = None
    moments: Path | None = None
    n_chunk: int = 8
    n_group: int = 6
    n_ctx: int = 512
    force: bool = False
    load: LoadRequest = DEFAULT_LOAD


@dataclass(frozen=True)
class Prepared:
    """A model that was found, and the tensors that can be quantized."""

    request: Request
    file: GgufFile
    tensors: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Report:
    """What was measured."""

    sensitivity: Sensitivity
    path: Path

    def as_json(self) -> dict[str, Any]:
        """Return what `sensitivity --json` prints, and its file holds."""
        return self.sensitivity.as_json()


def prepare(request: Request) -> Prepared:
    """Read headers. Raises MoeGgufError for a model that is quantized already, and for an output that exists."""
    file = read_gguf(resolve_gguf(request.model, request.catalogue))
    if request.outfile.exists() and not request.force:
        raise OutputError(f"{request.outfile}: exists already; --force replaces it")
    tensors = {t.name: t.shape for t in file.tensors.values() if reason_to_keep(t, file.architecture) is None}
    if any(file.tensors[name].qtype not in (_T.F32, _T.F16, _T.BF16) for name in tensors):
        raise PlanError(f"{file.path}: quantized already; sensitivities are measured on a 16-bit file")
    return Prepared(request, file, tensors)


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Measure, and write the file once all is known."""
    request, tensors = prepared.request, prepared.tensors
    roles = sorted({role_of(name) for name in tensors}, key=list(Role).index)
    groups = _groups(prepared)
    configurations: dict[str, Types] = {"floor": {}, "all": _reference(tensors), "finer": _reference(tensors, _T.Q5_K)}
    configurations |= {
        role.name: _reference({n: s for n, s in tensors.items() if role_of(n) is role}) for role in roles
    }
    for start, stop in groups:
        within = {n: s for n, s in tensors.items() if start <= _layer(n) < stop}
        configurations[f"layers {start} to {stop - 1}"] = _reference(within)
    klds: dict[str, float] = {}
    room = roomy_cache(prepared.file.path.stat().st_size)
    with (
        TemporaryDirectory(prefix="moe-gguf-sensitivity-", dir=room) as name,
        listener.bar(len(configurations), "measure sensitivities", " runs") as bar,
    ):
        for what, types in configurations.items():
            klds[what] = _kld(prepared, types, Path(name))
            listener.detail(f"{what}: {klds[what]:.5f} nats")
            bar.update(1)
    sensitivity = _summed_up(prepared, klds, [role.name for role in roles], groups)
    partial = request.outfile.with_name(request.outfile.name + ".partial")
    partial.write_text(json.dumps(sensitivity.as_json(), indent=1) + "\n", encoding="utf-8")
    partial.replace(request.outfile)
    return Report(sensitivity, request.outfile)


def _groups(prepared: Prepared) -> list[tuple[int, int]]:
    """Return ranges of layers, as many as were asked for, or as there are."""
    n_layer = 1 + max((_layer(name) for name in prepared.tensors), default=0)
    n_group = min(prepared.request.n_group, n_layer)
    return list(pairwise([round(i * n_layer / n_group) for i in range(n_group + 1)])) if n_group > 1 else []


def _layer(name: str) -> int:
    layer = layer_of(name)
    return -1 if layer is None else layer


def _reference(tensors: Mapping[str, tuple[int, ...]], qtype: _T = REFERENCE) -> dict[str, GGMLQuantizationType]:
    return {name: fitting_type(name, shape[0], qtype) for name, shape in tensors.items()}


def _kld(prepared: Prepared, types: Types, folder: Path) -> float:
    """Quantize with these types, Q8_0 elsewhere, and return the mean divergence from the source in nats."""
    request = prepared.request
    variant, logits = folder / "variant.gguf", folder / "base.logits"
    mix = by_table("Q8_0", parse_file_type("Q8_0"), types)
    asked = quantize.Request(prepared.file.path, (mix,), outfile=str(variant), moments=request.moments, force=True)
    quantize.run(quantize.prepare(asked))
    stored = logits.exists()
    comparison = compare.Request(
        prepared.file.path,
        (variant,),
        ((request.text.name, request.text),),
        n_ctx=request.n_ctx,
        n_chunk=request.n_chunk,
        base_logits=logits if stored else None,
        save_logits=None if stored else logits,
        compact=True,
        speed=False,
        load=request.load,
    )
    return compare.run(compare.prepare(comparison)).variants[0].divergence.kld.value


def _summed_up(
    prepared: Prepared, klds: Mapping[str, float], roles: list[str], groups: list[tuple[int, int]]
) -> Sensitivity:
    floor = klds["floor"]
    above = {what: max(kld - floor, 0.0) for what, kld in klds.items()}
    per_layer = {
        layer: above[f"layers {start} to {stop - 1}"] / (stop - start)
        for start, stop in groups
        for layer in range(start, stop)
    }
    mean = sum(per_layer.values()) / max(len(per_layer), 1)
    layers = {layer: value / mean for layer, value in per_layer.items()} if mean > 0 else {}

    def bits(qtype: _T) -> float:
        types = _reference(prepared.tensors, qtype)
        return sum(map(bits_of, types.values())) / len(types)

    finer = bits(_T.Q5_K) - bits(REFERENCE)
    slope = (above["all"] / above["finer"]) ** (1 / finer) if above["finer"] > 0 and finer > 0 else 4.5
    digest = blake2b(prepared.request.text.read_bytes(), digest_size=16).hexdigest()
    return Sensitivity(
        prepared.file.path.name, digest, {role: above[role] for role in roles}, layers, min(max(slope, 1.5), 20), floor
    )
