"""`moe-gguf quantize`: every variant of a model in one pass over its source, with no 16-bit file in between."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..formats.words import count
from .models import MODEL, catalogue_path
from .output_text import print_output, print_tensors
from .terminal import TERMINAL, detail, echo, emit_json, say, verbosity
from .writing import gate_request, writing_options

if TYPE_CHECKING:
    from ..jobs.budgeting import Budget, BudgetReport
    from ..jobs.quantize import Report, RoundingReport
    from ..quantize.choices import MixOptions
    from ..quantize.file_types import FileType

READ_ONLY = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("source", type=MODEL, required=False)
@click.option("--type", "types", multiple=True, metavar="TYPE", help="E.g. Q4_K_M; may be repeated.")
@click.option("--target-size", metavar="SIZE", help="Choose types for a file of SIZE, e.g. 12GiB.")
@click.option("--target-bpw", type=click.FloatRange(1, 16), help="The same for so many bits per weight.")
@click.option("--sensitivity", type=READ_ONLY, help="What moe-gguf sensitivity measured of this model.")
@click.option(
    "-o",
    "--outfile",
    type=str,
    metavar="FILE",
    help="Output file for one type, folder for any number; by default beside a GGUF source, else in this folder.",
)
@click.option("--imatrix", type=READ_ONLY, help="Importance matrix of llama-imatrix (GGUF or .dat).")
@click.option(
    "--moments", type=READ_ONLY, help="Round by these moments (imatrix --moments): errors cancel in the output."
)
@click.option(
    "--include-weights",
    multiple=True,
    metavar="NAME",
    help="Use the imatrix only for tensors whose name contains NAME.",
)
@click.option(
    "--exclude-weights",
    multiple=True,
    metavar="NAME",
    help="Do not use the imatrix for tensors whose name contains NAME.",
)
@click.option(
    "--tensor-type", multiple=True, metavar="PATTERN=TYPE", help="Type for tensors whose name matches PATTERN."
)
@click.option(
    "--tensor-type-file", type=READ_ONLY, multiple=True, help="Read such PATTERN=TYPE words from a file; repeatable."
)
@click.option("--output-tensor-type", metavar="TYPE", help="Type of output.weight.")
@click.option("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight.")
@click.option("--leave-output-tensor", is_flag=True, help="Do not quantize output.weight.")
@click.option("--pure", is_flag=True, help="One type for all tensors, no mix.")
@click.option("--allow-requantize", is_flag=True, help="Quantize tensors that are quantized already.")
@click.option("--override-kv", multiple=True, metavar="KEY=TYPE:VALUE", help="Override a metadata entry.")
@click.option("--prune-layers", metavar="L0,L1,...", help="Leave these layers out.")
@click.option("--keep-split", is_flag=True, help="Split the output as the source is split.")
@click.option("--verify", is_flag=True, help="Load each finished file in llama.cpp and decode once.")
@click.option("--measure", is_flag=True, help="Report the relative error per role of tensor.")
@writing_options
@verbosity
def command(source: str | None, **options: Any) -> None:
    """Write SOURCE in every --type requested, reading it only once.

    SOURCE is a GGUF file (or the first shard of a split one), a checkpoint folder, a merge recipe (.yml), or a
    name of the catalogue (models.toml); without it, the catalogue's default. Run the same command again to resume an
    interrupted run.
    """
    from ..formats.sizes import parse_size
    from ..jobs import quantize as job
    from ..quantize.overrides import parse_kv_override
    from ..quantize.stock_policy import stock

    split = options["split_max_size"]
    if not (options["types"] or options["target_size"] or options["target_bpw"]):
        raise click.UsageError("say what to write: --type TYPE, or --target-size SIZE")
    request = job.Request(
        source=source,
        mixes=tuple(map(stock, file_types(options["types"]))) if options["types"] else (),
        catalogue=catalogue_path(),
        outfile=options["outfile"],
        imatrix=options["imatrix"],
        moments=options["moments"],
        budget=budget_of(options),
        include_weights=options["include_weights"],
        exclude_weights=options["exclude_weights"],
        options=mix_options(options),
        kv_overrides=tuple(parse_kv_override(text) for text in options["override_kv"]),
        split_max_size=parse_size(split, "file") if split else None,
        keep_split=options["keep_split"],
        pre_tokenizer=options["pre_tokenizer"],
        gates=gate_request(options),
        verify=options["verify"],
        measure=options["measure"],
        allow_nonfinite=options["allow_nonfinite"],
        force=options["force"],
        n_threads=options["threads"],
    )
    prepared = job.prepare(request, TERMINAL)
    report = prepared.report() if options["dry_run"] else job.run(prepared, TERMINAL)
    emit_json(report.as_json()) if options["as_json"] else show(report, options["dry_run"])


def budget_of(options: Mapping[str, Any]) -> "Budget | None":
    """Return the budget of --target-size or --target-bpw; what does not go together is bad usage."""
    from ..formats.sizes import parse_size
    from ..jobs.budgeting import Budget

    size, bits, sensitivity = options["target_size"], options["target_bpw"], options["sensitivity"]
    if size and bits:
        raise click.UsageError("--target-size and --target-bpw exclude each other")
    if bool(size or bits) != bool(sensitivity):
        raise click.UsageError("--target-size or --target-bpw goes with --sensitivity FILE (moe-gguf sensitivity)")
    if not sensitivity:
        return None
    return Budget(sensitivity, parse_size(size, "file") if size else None, bits)


def file_types(names: Sequence[str]) -> "list[FileType]":
    """Return the file types of --type; a name that is none is bad usage."""
    from ..formats.errors import PlanError
    from ..quantize.file_types import parse_file_type
    from ..quantize.variants import parse_types

    try:
        return parse_types(names, parse_file_type)
    except PlanError as error:
        raise click.UsageError(str(error)) from None


def mix_options(options: Mapping[str, Any]) -> "MixOptions":
    """Return what the user overrides of a mix."""
    from ..models.tensor_types import parse_tensor_type, parse_tensor_type_option, read_tensor_type_file
    from ..quantize.choices import MixOptions
    from ..quantize.pruning import parse_layers

    def named(key: str) -> Any:
        return parse_tensor_type(options[key]) if options[key] else None

    return MixOptions(
        tensor_types=(
            *(parse_tensor_type_option(text) for text in options["tensor_type"]),
            *(one for path in options["tensor_type_file"] for one in read_tensor_type_file(path)),
        ),
        output_tensor_type=named("output_tensor_type"),
        token_embedding_type=named("token_embedding_type"),
        leave_output_tensor=options["leave_output_tensor"],
        pure=options["pure"],
        allow_requantize=options["allow_requantize"],
        prune_layers=parse_layers(options["prune_layers"]) if options["prune_layers"] else (),
        keep_order=options["keep_split"],
    )


def print_budget(budget: "BudgetReport") -> None:
    """Print the types that were bought, by role, and the words that make llama-quantize do the same."""
    for role, types in budget.table():
        click.echo(f"  {role}: {types}")
    click.echo(f"  predicted divergence {budget.allocation.predicted_kld:.4f} nats")
    for pattern, qtype in budget.tensor_types:
        detail(f"    {pattern}={qtype}")


def print_rounding(rounding: "RoundingReport") -> None:
    """Say how weights were rounded."""
    error = "" if rounding.error is None else f": errors of outputs {rounding.error:.2f}x on held-out inputs"
    click.echo(f"  {count(rounding.n_tensors, 'tensor')} rounded with error feedback{error}")
    if names := rounding.fallen_back:
        click.echo(f"  {count(len(names), 'tensor')} rounded plainly (no moments, or feedback does not help)")
        detail("    " + ", ".join(names))


def show(report: "Report", dry_run: bool) -> None:
    """Print a few lines per output."""
    for one in report.outputs:
        print_output(one.output)
        if one.budget:
            print_budget(one.budget)
        for fallback in one.fallbacks:
            names = fallback.names
            are, their = ("is", "its") if len(names) == 1 else ("are", "their")
            blocks = f"{their} rows cannot be cut into {fallback.wanted.name}'s blocks"
            echo(f"  {count(len(names), 'tensor')} {are} {fallback.used.name}: {blocks}")
            detail("    " + ", ".join(names))
        if one.rounding and one.rounding.kind == "calibrated":
            print_rounding(one.rounding)
        for role, error in (one.errors or {}).items():
            echo(f"  relative error of {role}: {error:.4f}")
        if dry_run:
            print_tensors(one.output.output.entries)
    if report.seconds is not None:
        say(f"{count(len(report.outputs), 'file')} in {report.seconds:.1f} s")
