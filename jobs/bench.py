"""Measuring speed: a model, settings and amounts of work come in, tokens a second go out."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..measure.speed import Measurement, Work, describe, measure
from .listener import SILENT, Bar, Listener
from .loading import DEFAULT_LOAD, LoadRequest, load_options
from .sources import resolve_gguf

if TYPE_CHECKING:
    from ..runner.load_options import LoadOptions


@dataclass(frozen=True)
class Request:
    """A model, the works to measure, how often, and the ways of loading to measure them with."""

    model: str | Path | None
    works: tuple[Work, ...]
    catalogue: Path | None = None
    repetitions: int = 5
    loads: tuple[LoadRequest, ...] = (DEFAULT_LOAD,)


@dataclass(frozen=True)
class Prepared:
    """A request whose model was found; `loads` have room for the longest work."""

    request: Request
    path: Path
    loads: tuple[LoadRequest, ...]


@dataclass(frozen=True)
class Row:
    """A measurement and what it was made with."""

    path: Path
    description: str
    size: int
    n_params: int
    backend: str
    options: "LoadOptions"
    n_threads: int
    measurement: Measurement


@dataclass(frozen=True)
class Report:
    """A row for each work and way of loading."""

    rows: tuple[Row, ...]

    def as_json(self) -> list[dict[str, Any]]:
        """Return what `bench --json` prints: llama-bench's names."""
        return [as_record(row) for row in self.rows]


def prepare(request: Request) -> Prepared:
    """Find the model. Raises CatalogueError and GgufError."""
    longest = max(work.n_depth + work.n_tokens for work in request.works)
    loads = tuple(replace(load, n_ctx=longest) for load in request.loads)
    return Prepared(request, resolve_gguf(request.model, request.catalogue), loads)


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Load the model in each way and measure all works. Raises GgufError and EngineError."""
    request = prepared.request
    total = len(prepared.loads) * len(request.works) * request.repetitions
    with listener.bar(total, "bench", "runs") as bar:
        return Report(tuple(row for load in prepared.loads for row in _measure(prepared, load, bar, listener)))


def _measure(prepared: Prepared, load: LoadRequest, bar: Bar, listener: Listener) -> Iterator[Row]:
    from ..runner.engine import Engine
    from ..runner.model import Model

    options = load_options(prepared.path, load, listener)
    with Model(prepared.path, options) as model, Engine(model, options) as engine:
        for work in prepared.request.works:
            measurement = measure(engine, work, prepared.request.repetitions, lambda: bar.update(1))
            backend = backend_of(options, bool(load.rpc))
            yield Row(prepared.path, *describe(model), backend, options, engine.n_threads, measurement)


def backend_of(options: "LoadOptions", with_workers: bool) -> str:
    """Return the names of the backends that take part, as llama-bench prints them."""
    from ..runner.placing.devices import describe_build

    if options.devices == ():
        return "CPU"
    names = [name for name in describe_build().backends if name != "CPU" and (name != "RPC" or with_workers)]
    return ",".join(names) or "CPU"


def as_record(row: Row) -> dict[str, Any]:
    """Return a row with llama-bench's names."""
    work, seconds = row.measurement.work, row.measurement.seconds
    nanoseconds = [round(each * 1e9) for each in seconds]
    mean = sum(nanoseconds) / len(nanoseconds)
    spread = (sum((each - mean) ** 2 for each in nanoseconds) / max(len(nanoseconds) - 1, 1)) ** 0.5
    return {
        "backends": row.backend,
        "model_filename": str(row.path),
        "model_type": row.description,
        "model_size": row.size,
        "model_n_params": row.n_params,
        "n_batch": row.options.n_batch,
        "n_ubatch": row.options.n_ubatch,
        "n_threads": row.n_threads,
        "type_k": row.options.cache_type_k,
        "type_v": row.options.cache_type_v,
        "n_gpu_layers": row.options.n_gpu_layers,
        "flash_attn": row.options.flash_attn,
        "n_prompt": work.n_prompt,
        "n_gen": work.n_gen,
        "n_depth": work.n_depth,
        "avg_ns": round(mean),
        "stddev_ns": round(spread),
        "avg_ts": round(row.measurement.rate, 4),
        "stddev_ts": round(row.measurement.deviation, 4),
        "samples_ns": nanoseconds,
        "samples_ts": [round(each, 4) for each in row.measurement.rates],
    }
