"""quantize's options about sizes and texts, and what it says of mixes that were chosen and texts that were read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .tables import table
from .terminal import detail, echo, format_bytes

if TYPE_CHECKING:
    from ..jobs.budgeting import Budget, BudgetReport
    from ..jobs.frontier import Report
    from ..jobs.groundwork import Wanted
    from ..jobs.quantize_report import TextCheck

Command = TypeVar("Command", bound=Callable[..., Any])
TEXT = click.Path(exists=True, dir_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)

OPTIONS = (
    click.option("--target-size", metavar="SIZE", help="Choose types for a file of SIZE, e.g. 12GiB."),
    click.option("--target-bpw", type=click.FloatRange(1, 16), help="The same for so many bits per weight."),
    click.option(
        "--target-fit",
        metavar="VRAM+RAM",
        help='The same for the largest file that runs in so much memory, e.g. "8G+16G"; "16G" is RAM alone.',
    ),
    click.option("--frontier", is_flag=True, help="Print the best mix of every size, and write none."),
    click.option("--plot", "plots", type=FILE, multiple=True, help="With --frontier: draw it (PNG or SVG)."),
    click.option(
        "--sensitivity",
        type=FILE,
        help="What moe-gguf sensitivity measured of this model; with -f a file that is not there yet is written.",
    ),
    click.option(
        "--calibration", type=TEXT, metavar="TEXT", help="Round by moments that are made of this text on the way."
    ),
    click.option(
        "-f",
        "--file",
        "texts",
        type=TEXT,
        multiple=True,
        metavar="TEXT",
        help="Text to measure divergences on: sensitivities, and how the result does; repeatable.",
    ),
    click.option(
        "--chunks", type=click.IntRange(1), default=4, show_default=True, help="Windows of a text to read each time."
    ),
)


def budget_options(command: Command) -> Command:
    """Give a command the options of this module."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def budget_of(options: Mapping[str, Any]) -> "Budget | None":
    """Return the budget that was asked for; what does not go together is bad usage."""
    from ..formats.sizes import parse_size
    from ..jobs.budgeting import Budget

    size, bits, fit = options["target_size"], options["target_bpw"], options["target_fit"]
    given = [f"--{name}" for name in ("target-size", "target-bpw", "target-fit") if options[name.replace("-", "_")]]
    given += ["--frontier"] * options["frontier"]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other")
    if options["plots"] and not options["frontier"]:
        raise click.UsageError("--plot goes with --frontier")
    if not given:
        if options["sensitivity"]:
            raise click.UsageError("--sensitivity goes with --target-size, --target-bpw, --target-fit or --frontier")
        return None
    known = options["sensitivity"]
    if not (known and known.exists()) and not (options["texts"] or options["calibration"]):
        if known:
            raise click.UsageError(f"{known}: no such file; with -f TEXT it is measured and written")
        raise click.UsageError(f"{given[0]} goes with -f TEXT to measure on, or --sensitivity FILE of an earlier run")
    vram, ram = memory_of(fit) if fit else ((), None)
    return Budget(known, parse_size(size, "file") if size else None, bits, vram, ram)


def memory_of(text: str) -> tuple[tuple[int, ...], int | None]:
    """Return the bytes of "8G+16G", VRAM and RAM, of "8G,8G+16G" with two devices, or of "16G", RAM alone."""
    from ..formats.errors import PlanError
    from ..formats.sizes import parse_size

    *devices, ram = text.split("+")
    if len(devices) > 1:
        raise click.UsageError(f'--target-fit {text!r}: write VRAM+RAM, e.g. "8G+16G", or "8G,8G+16G" for two devices')
    try:
        vram = tuple(parse_size(one, "memory") for one in devices[0].split(",")) if devices else ()
        return vram, parse_size(ram, "memory")
    except PlanError as error:
        raise click.UsageError(f"--target-fit: {error}") from None


def wanted_of(options: Mapping[str, Any]) -> "Wanted":
    """Return what is to be learnt from texts."""
    from ..jobs.groundwork import Wanted
    from ..jobs.loading import LoadRequest

    load = LoadRequest(n_threads=options["threads"])
    return Wanted(options["calibration"], options["texts"], options["chunks"], load)


def print_budget(budget: "BudgetReport") -> None:
    """Print the types that were bought, by role, and the words that make llama-quantize do the same."""
    for role, types in budget.table():
        echo(f"  {role}: {types}")
    echo(f"  predicted divergence {budget.allocation.predicted_kld:.4f} nats")
    for pattern, qtype in budget.tensor_types:
        detail(f"    {pattern}={qtype}")


def print_texts(texts: "tuple[TextCheck, ...]") -> None:
    """Print the divergence on each text, and that of plain rounding beside it."""
    rows = []
    for one in texts:
        row = [one.text, f"{one.kld:.5f} ± {one.error:.5f}"]
        if one.plain_kld is not None:
            row += [f"{one.plain_kld:.5f} ± {one.plain_error:.5f}", f"{one.kld / one.plain_kld:.2f}x"]
        rows.append(row)
    heads = ("divergence on", "nats", "rounded plainly", "ratio")[: len(rows[0])]
    echo("  " + table(heads, rows, right=(1, 2, 3)).replace("\n", "\n  "))


def print_frontier(report: "Report") -> None:
    """Print a line for each size."""
    rows = []
    for place in report.places:
        bought = place.bought.allocation
        counts: dict[str, int] = {}
        for qtype in bought.types.values():
            counts[qtype.name] = counts.get(qtype.name, 0) + 1
        types = ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), key=lambda item: -item[1]))
        name = place.type + (" (its size)" if place.stock else "")
        sizes = (format_bytes(place.n_bytes), f"{place.bits_per_weight:.2f}", f"{bought.predicted_kld:.4f}")
        rows.append((*sizes, name, types))
    echo(table(("size", "bpw", "predicted", "name", "types"), rows, right=(0, 1, 2)))
