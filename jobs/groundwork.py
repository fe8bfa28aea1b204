"""What quantize must know first, measured on the way: moments from a calibration text, sensitivities from a text.

A request comes in, and goes out with the files that it lacked. They lie in a folder of the cache named after the source
and the texts, so that the same command goes on after an interruption; the folder goes when the command is done.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..formats.errors import OutputError, PlanError
from ..formats.sizes import needed
from ..quantize.choices import MixOptions
from ..quantize.file_types import COPY, parse_file_type
from ..quantize.stock_policy import stock
from . import imatrix, quantize, sensitivity
from .budgeting import Budget
from .listener import SILENT, Listener
from .loading import DEFAULT_LOAD, LoadRequest
from .sources import SourceKind, resolve_source
from .working_files import roomy_cache

PREFIX = "moe-gguf-quantize-"
# What a model may be run as for its moments, the first that fits the memory.
RUNNABLE = ("Q8_0", "Q6_K", "Q4_K_M", "Q2_K")
SHARE_OF_MEMORY = 0.6
# What a request asks for beyond its source.
PLAIN: dict[str, Any] = {
    "imatrix": None,
    "moments": None,
    "budget": None,
    "include_weights": (),
    "exclude_weights": (),
    "options": MixOptions(),
    "kv_overrides": (),
    "split_max_size": None,
    "keep_split": False,
    "verify": False,
    "measure": False,
}


@dataclass(frozen=True)
class Wanted:
    """What to learn from texts: `calibration` is one to make moments of, `texts` are to measure divergences on.

    Sensitivities are measured on the first text, else on that of the calibration, `n_chunk` windows a run.
    """

    calibration: Path | None = None
    texts: tuple[Path, ...] = ()
    n_chunk: int = 4
    load: LoadRequest = DEFAULT_LOAD


@dataclass(frozen=True)
class Groundwork:
    """A request that lacks nothing any more, the folder of working files, and the source as a GGUF of 16 bits."""

    request: quantize.Request
    folder: Path
    source: Path | None


@contextmanager
def laid(
    request: quantize.Request, wanted: Wanted, listener: Listener = SILENT, keep: bool = False
) -> Iterator[Groundwork]:
    """Measure what the request lacks; with `keep` working files stay, for the command that comes after a dry run.

    Then only what decides types is measured: without a budget, nothing.

    Raises MoeGgufError, before anything is measured where it can be told by then.
    """
    from ..writer.journal import only_run

    if wanted.calibration and (request.moments or request.imatrix):
        other = "--moments" if request.moments else "--imatrix"
        raise PlanError(f"--calibration and {other} exclude each other: both say what the inputs are like")
    if wanted.texts and request.options.prune_layers:
        raise PlanError(
            "-f and --prune-layers exclude each other: a model with fewer layers is no variant of its source"
        )
    if not (wanted.calibration or wanted.texts) or (keep and request.budget is None):
        if request.budget and request.budget.sensitivity is None:
            raise PlanError(
                "a mix for a size needs a text to measure on, -f TEXT, or --sensitivity FILE of an earlier run"
            )
        yield Groundwork(request, Path(), None)
        return
    early = _refuse_early(request)
    identity = sorted(early.plan.source.identity().items())
    texts = [path.read_bytes() for path in (wanted.calibration, *wanted.texts) if path]
    mixture = early.planned.opened.mixture if early.planned and early.planned.opened else None
    about = (identity, request.gates, str(request.moments), wanted.n_chunk)
    digest = blake2b(repr(about).encode() + b"\0".join(texts), digest_size=8)
    folder = roomy_cache(0) / f"{PREFIX}{digest.hexdigest()}"
    with only_run(folder):
        folder.mkdir(exist_ok=True)
        if mixture and not request.gates.file:
            # Computed once for all passes over the recipe: moments are those of a model with these routers.
            request = replace(request, gates=replace(request.gates, file=folder / "gates.safetensors"))
        source = _as_gguf(request, early, folder, listener)
        if wanted.calibration:
            request = replace(request, moments=_moments(source, wanted, folder, listener))
        if request.budget and not (request.budget.sensitivity and request.budget.sensitivity.exists()):
            request = replace(request, budget=_measured(request, source, wanted, folder, listener))
        yield Groundwork(request, folder, source)
        if not keep:
            shutil.rmtree(folder)


def _refuse_early(request: quantize.Request) -> quantize.Prepared:
    """Refuse what quantize would refuse, before hours are spent; return the plan of the pass, whatever the types."""
    early = quantize.prepare(replace(request, budget=None, mixes=request.mixes or (stock(parse_file_type("Q8_0")),)))
    place = early.place.file
    if place and place.exists() and not request.force:
        raise OutputError(f"{place}: exists already; choose another name, or overwrite it with --force")
    return early


def _as_gguf(request: quantize.Request, early: quantize.Prepared, folder: Path, listener: Listener) -> Path:
    """Return the source as a GGUF file of its own types: itself, or one that is written now."""
    resolved = resolve_source(request.source, request.catalogue, prefer_gguf=True)
    if resolved.kind is SourceKind.GGUF and resolved.path:
        return resolved.path
    path = folder / f"{early.name}.gguf"
    if not path.exists():
        listener.say(f"{early.name}: written to {path} for now, to be run and compared with")
        copied = replace(request, mixes=(stock(COPY),), outfile=str(path), **PLAIN)
        quantize.run(quantize.prepare(copied), listener)
    return path


def _moments(source: Path, wanted: Wanted, folder: Path, listener: Listener) -> Path:
    """Run the calibration text; what an interrupted run left of it counts."""
    assert wanted.calibration
    moments = folder / "moments.safetensors"
    if moments.exists():
        listener.say(f"the moments of {wanted.calibration} are there, from an interrupted run")
        return moments
    model = _runnable(source, folder, listener)
    listener.say(f"moments are made by running {wanted.calibration} through {model}")
    asked = imatrix.Request(
        model, folder / "imatrix.gguf", (wanted.calibration,), moments=moments, force=True, load=wanted.load
    )
    imatrix.run(imatrix.prepare(asked), listener)
    if model.parent == folder and model != source:
        model.unlink()
    return moments


def _runnable(source: Path, folder: Path, listener: Listener) -> Path:
    """Return what to run for the moments: the source where it fits the memory, else a smaller temporary file of it."""
    from ..formats.gguf_file import read_gguf
    from ..runner.limits import system_memory

    if made := sorted(folder.glob("run-*.gguf")):
        return made[0]
    memory = int(SHARE_OF_MEMORY * system_memory()[0])
    size = sum(shard.stat().st_size for shard in read_gguf(source).shards)
    if size <= memory:
        return source
    mixes = tuple(stock(parse_file_type(name)) for name in RUNNABLE)
    sizes = [one.n_bytes for one in quantize.prepare(quantize.Request(source, mixes)).outputs]
    number = next((i for i, n_bytes in enumerate(sizes) if n_bytes <= memory), len(RUNNABLE) - 1)
    path = folder / f"run-{RUNNABLE[number]}.gguf"
    listener.say(f"{source.name} takes {needed(size)}, too much for this machine's memory: run as {RUNNABLE[number]}")
    quantize.run(quantize.prepare(quantize.Request(source, (mixes[number],), outfile=str(path))), listener)
    return path


def _measured(request: quantize.Request, source: Path, wanted: Wanted, folder: Path, listener: Listener) -> Budget:
    """Measure sensitivities, into the file that was named for them or a temporary one."""
    assert request.budget
    text = wanted.texts[0] if wanted.texts else wanted.calibration
    assert text
    path = request.budget.sensitivity or folder / "sensitivity.json"
    if not path.exists():
        listener.say(f"sensitivities are measured on {text}")
        asked = sensitivity.Request(
            source,
            text,
            path,
            moments=request.moments,
            imatrix=request.imatrix,
            n_chunk=wanted.n_chunk,
            load=wanted.load,
        )
        sensitivity.run(sensitivity.prepare(asked), listener)
    return replace(request.budget, sensitivity=path)
