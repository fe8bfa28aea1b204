"""`moe-gguf bench`: measures prompt processing and generation, in llama-bench's table."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .loading import OPTIONS, build_load_options
from .models import MODEL, resolve_gguf
from .terminal import emit_json, progress, verbosity

if TYPE_CHECKING:
    from ..measure.speed import Measurement, Work
    from ..runner.load_options import LoadOptions

MIB, GIB = 2**20, 2**30


class Several(click.ParamType):
    """Numbers or words between commas."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        """Read each of them by `read`, which raises ValueError or KeyError for others."""
        self.name, self.read = name, read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        """Return the list."""
        try:
            return [self.read(word.strip()) for word in str(value).split(",")]
        except (ValueError, KeyError):
            self.fail(f"{value!r}: write {self.name} with commas between them", param, ctx)


def count(word: str) -> int:
    """Read a number that is not negative."""
    if not word.isdigit():
        raise ValueError
    return int(word)


def positive(word: str) -> int:
    """Read a number above 0."""
    if not count(word):
        raise ValueError
    return int(word)


def switch(word: str) -> str:
    """Read auto, on or off; llama-bench's 1 and 0 too."""
    return {"auto": "auto", "on": "on", "off": "off", "1": "on", "0": "off"}[word]


COUNTS, POSITIVE = Several("numbers", count), Several("numbers above 0", positive)
WORDS, SWITCHES = Several("words", str), Several("auto, on or off", switch)

# What may be given several times, with commas: each combination is loaded and measured.
SWEPT = {
    "n_gpu_layers": (("-ngl", "--n-gpu-layers"), WORDS, "Layers on devices."),
    "threads": (("-t", "--threads"), POSITIVE, "Threads  [default: physical cores]"),
    "batch_size": (("-b", "--batch-size"), POSITIVE, "Most tokens per call of llama.cpp  [default: 2048]"),
    "ubatch_size": (("-ub", "--ubatch-size"), POSITIVE, "Most tokens computed at once  [default: 512]"),
    "flash_attn": (("-fa", "--flash-attn"), SWITCHES, "Flash attention: auto, on, off  [default: auto]"),
    "cache_type_k": (("-ctk", "--cache-type-k"), WORDS, "Type of the K cache  [default: f16]"),
    "cache_type_v": (("-ctv", "--cache-type-v"), WORDS, "Type of the V cache  [default: f16]"),
}
NOT_MEASURED = {*SWEPT, "ctx_size", "threads_batch"}


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
    measurement: "Measurement"


def bench_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give the command the swept flags, and those of loading that have one value here too."""
    for option in reversed(OPTIONS):
        probe: Any = option(lambda: None)
        if probe.__click_params__[0].name not in NOT_MEASURED:
            command = option(command)
    for name, (flags, kind, text) in reversed(SWEPT.items()):
        command = click.option(*flags, name, type=kind, default=None, metavar="N,N,...", help=text)(command)
    return command


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.option("-p", "--n-prompt", type=COUNTS, default="512", show_default=True, help="Tokens of the prompt.")
@click.option("-n", "--n-gen", type=COUNTS, default="128", show_default=True, help="Tokens to generate.")
@click.option("-d", "--n-depth", type=COUNTS, default="0", show_default=True, help="Tokens already in the context.")
@click.option("-r", "--repetitions", type=click.IntRange(min=1), default=5, show_default=True, help="Repetitions.")
@click.option("-o", "--output", type=click.Choice(["md", "json"]), default="md", show_default=True, help="Format.")
@click.option("--json", "as_json", is_flag=True, help="The same as -o json.")
@bench_options
@verbosity
def command(
    model: str | None,
    n_prompt: list[int],
    n_gen: list[int],
    n_depth: list[int],
    repetitions: int,
    output: str,
    as_json: bool,
    **values: Any,
) -> None:
    """Measure how many tokens a second MODEL reads (pp) and writes (tg).

    Settings given several times, with commas between them, are measured in all combinations.
    """
    from ..measure.speed import Work

    path = resolve_gguf(model)
    works = [Work(n, 0, depth) for depth in n_depth for n in n_prompt if n]
    works += [Work(0, n, depth) for depth in n_depth for n in n_gen if n]
    if not works:
        raise click.UsageError("nothing to measure: give -p or -n a number above 0")
    rows = list(measure_all(path, works, repetitions, values))
    if as_json or output == "json":
        emit_json([as_record(row) for row in rows])
    else:
        click.echo(markdown(rows))


def measure_all(path: Path, works: "list[Work]", repetitions: int, values: dict[str, Any]) -> Iterator[Row]:
    """Load the model with each combination of settings and measure all works."""
    from ..measure.speed import describe, measure
    from ..runner.engine import Engine
    from ..runner.model import Model

    swept = {name: values.pop(name) or [None] for name in SWEPT}
    combinations = list(itertools.product(*swept.values()))
    longest = max(work.n_depth + work.n_tokens for work in works)
    with progress(len(combinations) * len(works) * repetitions, "bench", "runs") as bar:
        for combination in combinations:
            chosen = values | dict(zip(swept, combination, strict=True)) | {"ctx_size": longest}
            options = build_load_options(path, chosen)
            with Model(path, options) as model, Engine(model, options) as engine:
                for work in works:
                    measurement = measure(engine, work, repetitions, bar.update)
                    backend = backend_of(options, bool(values.get("rpc")))
                    yield Row(path, *describe(model), backend, options, engine.n_threads, measurement)


def backend_of(options: "LoadOptions", with_workers: bool) -> str:
    """Return the names of the backends that take part, as llama-bench prints them."""
    from ..runner.placing.devices import describe_build

    if options.devices == ():
        return "CPU"
    names = [name for name in describe_build().backends if name != "CPU" and (name != "RPC" or with_workers)]
    return ",".join(names) or "CPU"


def markdown(rows: list[Row]) -> str:
    """Return llama-bench's table: settings have a column when they are not the default, or differ."""
    from ..runner.load_options import LoadOptions

    columns: dict[str, list[str]] = {
        "model": [row.description for row in rows],
        "size": [f"{row.size / GIB:.2f} GiB" if row.size >= GIB else f"{row.size / MIB:.2f} MiB" for row in rows],
        "params": [
            f"{row.n_params / 1e9:.2f} B" if row.n_params >= 10**9 else f"{row.n_params / 1e6:.2f} M" for row in rows
        ],
        "backend": [row.backend for row in rows],
    }
    if any(row.backend != "CPU" for row in rows):
        columns["ngl"] = [str(row.options.n_gpu_layers) for row in rows]
    columns["threads"] = [str(row.n_threads) for row in rows]
    shown = {"n_batch": "n_batch", "n_ubatch": "n_ubatch", "cache_type_k": "type_k", "cache_type_v": "type_v"}
    for name, title in (shown | {"flash_attn": "fa", "repack": "repack"}).items():
        values = [getattr(row.options, name) for row in rows]
        if any(value != getattr(LoadOptions(), name) for value in values):
            columns[title] = [str(value) for value in values]
    columns["test"] = [row.measurement.work.name for row in rows]
    columns["t/s"] = [f"{row.measurement.rate:.2f} ± {row.measurement.deviation:.2f}" for row in rows]
    return table(columns)


def table(columns: dict[str, list[str]]) -> str:
    """Return columns as Markdown, the first and the backend to the left."""
    left = {"model", "backend"}
    widths = {title: max(len(title), *map(len, cells)) for title, cells in columns.items()}

    def line(cells: dict[str, str]) -> str:
        padded = (f"{cell:{'<' if title in left else '>'}{widths[title]}}" for title, cell in cells.items())
        return f"| {' | '.join(padded)} |"

    rule = {
        title: "-" * (width if title in left else width - 1) + ":" * (title not in left)
        for title, width in widths.items()
    }
    numbers = range(len(next(iter(columns.values()))))
    rows = [{title: cells[number] for title, cells in columns.items()} for number in numbers]
    return "\n".join(map(line, [{title: title for title in columns}, rule, *rows]))


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
