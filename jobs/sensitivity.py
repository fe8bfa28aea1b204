"""How much a model suffers where: divergence when one role, or one group of layers, alone has about four bits.

Three files are quantized, one of eight bits, and of fewer one with scales alone and one with minimums; each
configuration takes its tensors from the first and another one, is read once, and held against the predictions of the
source. What each type does to a tensor needs no run: some of its rows are rounded. An interrupted run goes on.

Long because the configurations, their measurement and what is concluded from them belong together.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gguf import GGMLQuantizationType

from ..formats.errors import OutputError, PlanError
from ..formats.gguf_file import GgufFile, read_gguf
from ..formats.source import file_identity
from ..models.tensor_roles import Role, layer_of, reason_to_keep, role_of
from ..quantize.budget import LADDER
from ..quantize.fallback import fitting_type
from ..quantize.file_types import parse_file_type
from ..quantize.mixes import by_table
from ..quantize.sensitivity import FINEST, KINDS, SYMMETRIC, VERSION, Sensitivity, reference_of
from . import compare, quantize
from .listener import SILENT, Listener
from .loading import DEFAULT_LOAD, LoadRequest
from .sources import resolve_gguf
from .splicing import splice
from .working_files import roomy_cache

_T = GGMLQuantizationType
# Roles with less than this share of the weights are measured with 16 bits too.
SMALL, EXACTLY = 1 / 64, "at 16 bits"


@dataclass(frozen=True)
class Request:
    """A GGUF file of 16 or 32 bits (or a name of `catalogue`), a text, and where to write; moments round as they will.

    `n_chunk` windows of `n_ctx` tokens are read each time; `n_group` groups of layers are told apart.
    """

    model: str | Path | None
    text: Path
    outfile: Path
    catalogue: Path | None = None
    moments: Path | None = None
    imatrix: Path | None = None
    n_chunk: int = 4
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
    """What was measured; `additivity` is by kind the divergence of all roles at once over the sum of each alone."""

    sensitivity: Sensitivity
    path: Path
    additivity: Mapping[str, float]

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
    request = prepared.request
    configurations = _configurations(prepared)
    unfinished = request.outfile.with_name(request.outfile.name + ".partial")
    known = _Known(unfinished, _identity(prepared))
    if known.found:
        listener.say(f"{len(known.found)} of {len(configurations)} measurements are there, in {unfinished}")
    missing = {what: config for what, config in configurations.items() if what not in known.found}
    if missing:
        n_bytes = 3 * prepared.file.path.stat().st_size
        with (
            TemporaryDirectory(prefix="moe-gguf-sensitivity-", dir=roomy_cache(n_bytes)) as name,
            _measuring(prepared, Path(name), listener) as kld,
            listener.bar(len(missing), "measure sensitivities", " runs") as bar,
        ):
            for what, (names, how) in missing.items():
                known.add(what, kld(names, how))
                listener.detail(f"{what}: {known.found[what]:.5f} nats")
                bar.update(1)
    sensitivity, additivity = _summed_up(prepared, known.found, _errors(prepared, listener))
    finished = request.outfile.with_name(request.outfile.name + ".new")
    finished.write_text(json.dumps(sensitivity.as_json(), indent=1) + "\n", encoding="utf-8")
    finished.replace(request.outfile)
    unfinished.unlink(missing_ok=True)
    return Report(sensitivity, request.outfile, additivity)


class _Known:
    """Measurements by configuration, kept in a file as they come; those of another model, text or rounding are not."""

    def __init__(self, path: Path, identity: str) -> None:
        self._path, self._identity = path, identity
        self.found: dict[str, float] = {}
        try:
            left = json.loads(path.read_text(encoding="utf-8"))
            if left["identity"] == identity:
                self.found = {str(what): float(kld) for what, kld in left["found"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass

    def add(self, what: str, kld: float) -> None:
        """Keep one more."""
        self.found[what] = kld
        new = self._path.with_name(self._path.name + ".new")
        new.write_text(json.dumps({"identity": self._identity, "found": self.found}), encoding="utf-8")
        new.replace(self._path)


def _identity(prepared: Prepared) -> str:
    request = prepared.request
    read = [path for path in (request.moments, request.imatrix, *prepared.file.shards) if path]
    settings = (VERSION, request.n_chunk, request.n_group, request.n_ctx, _digest(request.text))
    return repr((settings, [file_identity(path) for path in read]))


def _digest(text: Path) -> str:
    return blake2b(text.read_bytes(), digest_size=16).hexdigest()


def _configurations(prepared: Prepared) -> dict[str, tuple[frozenset[str], str]]:
    """Return by configuration the tensors that differ from all others, and how: a kind of types, or EXACTLY."""
    names = prepared.tensors
    roles = {role.name: frozenset(name for name in names if role_of(name) is role) for role in _roles(prepared)}
    found = {"floor": (frozenset[str](), SYMMETRIC)}
    for kind in KINDS:
        found |= {f"{what} {kind}": (which, kind) for what, which in {"all": frozenset(names), **roles}.items()}
    found |= {f"{role.name} {EXACTLY}": (roles[role.name], EXACTLY) for role in _small(prepared)}
    for start, stop in _groups(prepared):
        within = frozenset(name for name in names if start <= _layer(name) < stop)
        found[f"layers {start} to {stop - 1}"] = (within, SYMMETRIC)
    return found


def _small(prepared: Prepared) -> list[Role]:
    """Return the roles of few weights."""
    weights = dict.fromkeys(_roles(prepared), 0)
    for name, shape in prepared.tensors.items():
        weights[role_of(name)] += prod(shape)
    return [role for role, n in weights.items() if n < SMALL * sum(weights.values())]


def _roles(prepared: Prepared) -> list[Role]:
    return sorted({role_of(name) for name in prepared.tensors}, key=list(Role).index)


def _groups(prepared: Prepared) -> list[tuple[int, int]]:
    """Return ranges of layers, as many as were asked for, or as there are."""
    n_layer = 1 + max((_layer(name) for name in prepared.tensors), default=0)
    n_group = min(prepared.request.n_group, n_layer)
    return list(pairwise([round(i * n_layer / n_group) for i in range(n_group + 1)])) if n_group > 1 else []


def _layer(name: str) -> int:
    layer = layer_of(name)
    return -1 if layer is None else layer


@contextmanager
def _measuring(
    prepared: Prepared, folder: Path, listener: Listener
) -> Iterator[Callable[[frozenset[str], str], float]]:
    """Make the files and read the source; yields what measures the divergence when some tensors differ so."""
    request, variant = prepared.request, folder / "variant.gguf"
    fine, *coarse = _quantized(prepared, folder, listener)
    others = {EXACTLY: prepared.file.path, **dict(zip(KINDS, coarse, strict=True))}
    comparison = compare.Request(
        prepared.file.path,
        (),
        ((request.text.name, request.text),),
        n_ctx=request.n_ctx,
        n_chunk=request.n_chunk,
        spread=True,
        compact=True,
        speed=False,
        load=request.load,
    )
    with compare.reading_base(compare.prepare(comparison), listener) as held_against:

        def kld(names: frozenset[str], how: str) -> float:
            splice(fine, others[how], names, variant)
            return held_against(read_gguf(variant)).divergence.kld.value

        yield kld


def _quantized(prepared: Prepared, folder: Path, listener: Listener) -> list[Path]:
    """Write the model in one pass with the finest type, and with the reference of each kind."""
    request, mixes = prepared.request, []
    for what, wanted in (("fine", lambda _: FINEST), *((kind, partial(reference_of, kind)) for kind in KINDS)):
        types = {name: fitting_type(name, shape[0], wanted(shape[0])) for name, shape in prepared.tensors.items()}
        mixes.append(by_table(what, parse_file_type(FINEST.name), types))
    asked = quantize.Request(
        prepared.file.path, tuple(mixes), outfile=f"{folder}/", moments=request.moments, imatrix=request.imatrix
    )
    ready = quantize.prepare(asked)
    quantize.run(ready, listener)
    return [output.shards()[0][0] for output in ready.outputs]


def _errors(prepared: Prepared, listener: Listener) -> dict[str, dict[str, float]]:
    """Round some rows of every tensor to every type."""
    from concurrent.futures import ThreadPoolExecutor

    from ..quantize.encode import Encoder
    from ..quantize.type_errors import type_errors
    from ..runner.threads import best_thread_count

    request = prepared.request
    asked = quantize.Request(
        prepared.file.path,
        (by_table("Q8_0", parse_file_type("Q8_0"), {}),),
        moments=request.moments,
        imatrix=request.imatrix,
    )
    known = quantize.prepare(asked)
    encoder = Encoder(known.importance, calibration=known.calibration)
    planned = [tensor for tensor in known.plan.tensors if tensor.name in prepared.tensors]
    with (
        ThreadPoolExecutor(request.load.n_threads or best_thread_count()) as pool,
        listener.bar(len(planned), "round some rows to every type", " tensors") as bar,
    ):

        def one(number: int) -> dict[str, float]:
            found = type_errors(known.plan.source, planned[number], LADDER, encoder)
            bar.update(1)
            return found

        found = list(pool.map(one, range(len(planned))))
    return {tensor.name: errors for tensor, errors in zip(planned, found, strict=True)}


def _summed_up(
    prepared: Prepared, klds: Mapping[str, float], errors: Mapping[str, Mapping[str, float]]
) -> tuple[Sensitivity, dict[str, float]]:
    request, floor = prepared.request, klds["floor"]
    above = {what: max(kld - floor, 0.0) for what, kld in klds.items()}
    per_layer = {
        layer: above[f"layers {start} to {stop - 1}"] / (stop - start)
        for start, stop in _groups(prepared)
        for layer in range(start, stop)
    }
    mean = sum(per_layer.values()) / max(len(per_layer), 1)
    layers = {layer: value / mean for layer, value in per_layer.items()} if mean > 0 else {}
    names, additivity = [role.name for role in _roles(prepared)], {}
    for kind in KINDS:
        summed = sum(above[f"{name} {kind}"] for name in names)
        additivity[kind] = above[f"all {kind}"] / summed if summed > 0 else 1.0
    found = Sensitivity(
        model=prepared.file.path.name,
        text=_digest(request.text),
        roles={name: {kind: above[f"{name} {kind}"] * additivity[kind] for kind in KINDS} for name in names},
        layers=layers,
        errors=errors,
        exact={role.name: max(floor - klds[f"{role.name} {EXACTLY}"], 0.0) for role in _small(prepared)},
        floor=floor,
        rounding="calibrated" if request.moments else "plain",
    )
    return found, additivity
