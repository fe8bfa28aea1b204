"""`moe-gguf bench`: measures prompt processing and generation, in llama-bench's table."""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..jobs.loading import LoadRequest
from .llama_words import LlamaCommand
from .loading import OPTIONS, load_request
from .models import MODEL, catalogue_path
from .terminal import TERMINAL, echo, emit_json, verbosity

if TYPE_CHECKING:
    from ..jobs.bench import Row

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
    "batch_size": (("-b", "--batch-size"), POSITIVE, "Maximum tokens per call of llama.cpp  [default: 2048]"),
    "ubatch_size": (("-ub", "--ubatch-size"), POSITIVE, "Maximum tokens computed at once  [default: 512]"),
    "flash_attn": (("-fa", "--flash-attn"), SWITCHES, "Flash attention: auto, on, off  [default: auto]"),
    "cache_type_k": (("-ctk", "--cache-type-k"), WORDS, "Type of the K cache  [default: f16]"),
    "cache_type_v": (("-ctv", "--cache-type-v"), WORDS, "Type of the V cache  [default: f16]"),
}
NOT_MEASURED = {*SWEPT, "ctx_size", "threads_batch"}


def bench_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give the command the swept flags, and those of loading that have one value here too."""
    for option in reversed(OPTIONS):
        probe: Any = option(lambda: None)
        if probe.__click_params__[0].name not in NOT_MEASURED:
            command = option(command)
    for name, (flags, kind, text) in reversed(SWEPT.items()):
        command = click.option(*flags, name, type=kind, default=None, metavar="N,N,...", help=text)(command)
    return command


@click.command(cls=LlamaCommand)
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
    """Measure how many tokens per second MODEL reads (pp) and writes (tg).

    Settings given several times, with commas between them, are measured in all combinations.
    """
    from ..jobs import bench as job
    from ..measure.speed import Work

    works = [Work(n, 0, depth) for depth in n_depth for n in n_prompt if n]
    works += [Work(0, n, depth) for depth in n_depth for n in n_gen if n]
    if not works:
        raise click.UsageError("nothing to measure: give -p or -n a number above 0")
    request = job.Request(model, tuple(works), catalogue_path(), repetitions, combinations(values))
    report = job.run(job.prepare(request), TERMINAL)
    if as_json or output == "json":
        emit_json(report.as_json())
    else:
        echo(markdown(list(report.rows)))


def combinations(values: dict[str, Any]) -> tuple[LoadRequest, ...]:
    """Return a way of loading for each combination of the settings that were given several times."""
    swept = {name: values.pop(name) or [None] for name in SWEPT}
    return tuple(
        load_request(values | dict(zip(swept, chosen, strict=True))) for chosen in itertools.product(*swept.values())
    )


def markdown(rows: "list[Row]") -> str:
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
