"""`moe-gguf quantize`: every variant of a model in one pass over its source, with no 16-bit file in between."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..formats.words import count
from .budget_options import budget_of, budget_options, print_budget, print_frontier, print_texts, wanted_of
from .models import MODEL, catalogue_path
from .output_text import print_output, print_tensors
from .terminal import TERMINAL, detail, echo, emit_json, say, verbosity
from .writing import force_option, gate_request, writing_options

if TYPE_CHECKING:
    from ..jobs.quantize import Report, RoundingReport
    from ..quantize.choices import MixOptions
    from ..quantize.file_types import FileType

READ_ONLY = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("source", type=MODEL, required=False)
@click.option("--type", "types", multiple=True, metavar="TYPE", help="E.g. Q4_K_M; may be repeated.")
@budget_options
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
    "--rounding",
    type=click.Choice(["quick", "thorough"]),
    default="quick",
    show_default=True,
    help="With moments: thorough improves rows of more than 2048 columns once more, at a third of the pace.",
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
@force_option("--force")
@verbosity
def command(source: str | None, **options: Any) -> None:
    """Write SOURCE in every --type requested, reading it only once.

    SOURCE is a GGUF file (or the first shard of a split one), a checkpoint folder, a merge recipe (.yml), or a
    name of the catalogue (models.toml); without it, the catalogue's default. Run the same command again to resume an
    interrupted run.
    """
    from ..formats.sizes import parse_size
    from ..jobs import checking, frontier
    from ..jobs import quantize as job
    from ..jobs.groundwork import laid
    from ..quantize.overrides import parse_kv_override
    from ..quantize.stock_policy import stock

    split = options["split_max_size"]
    budget = budget_of(options)
    if not (options["types"] or budget):
        raise click.UsageError("say what to write: --type TYPE, or --target-size SIZE")
    if options["frontier"] and options["types"]:
        raise click.UsageError("--frontier writes nothing, so it goes without --type")
    request = job.Request(
        source=source,
        mixes=tuple(map(stock, file_types(options["types"]))) if options["types"] else (),
        catalogue=catalogue_path(),
        outfile=options["outfile"],
        imatrix=options["imatrix"],
        moments=options["moments"],
        rounding=options["rounding"],
        budget=budget,
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
    wanted = wanted_of(options)
    with laid(request, wanted, TERMINAL, keep=options["dry_run"] or options["frontier"]) as ready:
        if options["frontier"]:
            along = frontier.prepare(frontier.Request(ready.request, options["plots"]), TERMINAL)
            places = frontier.run(along, TERMINAL)
            emit_json(places.as_json()) if options["as_json"] else print_frontier(places)
            return
        prepared = job.prepare(ready.request, TERMINAL)
        report = prepared.report() if options["dry_run"] else job.run(prepared, TERMINAL)
        if not options["dry_run"] and checking.is_due(ready.request, wanted):
            report = checking.checked(report, ready, wanted, TERMINAL)
    emit_json(report.as_json()) if options["as_json"] else show(report, options["dry_run"])


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


def print_rounding(rounding: "RoundingReport") -> None:
    """Say how weights were rounded."""
    error = "" if rounding.error is None else f": errors of outputs {rounding.error:.2f}x on held-out inputs"
    echo(f"  {count(rounding.n_tensors, 'tensor')} rounded with error feedback{error}")
    for why, names in rounding.reasons.items():
        echo(f"  {count(len(names), 'tensor')} rounded plainly: {why}")
        detail("    " + ", ".join(names))
    if few := rounding.few_tokens:
        echo(f"  experts of {count(len(few), 'tensor')} saw few tokens, so correlations count less than half for them")
        detail("    " + ", ".join(f"{name} ({', '.join(map(str, experts))})" for name, experts in few.items()))


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
        if one.texts:
            print_texts(one.texts)
        for role, error in (one.errors or {}).items():
            echo(f"  relative error of {role}: {error:.4f}")
        if dry_run:
            print_tensors(one.output.output.entries)
    if report.seconds is not None:
        say(f"{count(len(report.outputs), 'file')} in {report.seconds:.1f} s")
