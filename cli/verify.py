"""`moe-gguf verify`: whether GGUF files are what they say they are, anyone's, here or on the hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..formats.words import count
from .models import MODEL, catalogue_path
from .terminal import TERMINAL, detail, echo, emit_json, say, verbosity
from .writing import gate_options, gate_request

if TYPE_CHECKING:
    from ..release.problems import FileReport, Report

READ_ONLY = click.Path(exists=True, dir_okay=False, path_type=Path)
# Problems of one file that are printed unless -v asks for all.
FEW = 12


@click.command()
@click.argument("target", type=MODEL, metavar="DIR|FILE|REPO")
@click.option("--against", type=MODEL, metavar="SOURCE", help="Make every tensor again from this source, and compare.")
@click.option("--sample", type=click.IntRange(1), metavar="N", help="Compare N rows of each expert and matrix only.")
@click.option("--imatrix", type=READ_ONLY, help="The importance matrix that the files were made with.")
@click.option("--moments", type=READ_ONLY, help="The moments that the files were rounded by.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of REPO.")
@click.option("--pre-tokenizer", metavar="NAME", help="As convert was given it.")
@gate_options
@click.option(
    "--load/--no-load",
    default=True,
    show_default=True,
    help="Look at all weights, load each file in llama.cpp, decode.",
)
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads; by default one per core.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
@click.pass_context
def command(context: click.Context, target: str, against: str | None, as_json: bool, **options: Any) -> None:
    """Check GGUF files: checksums, manifest, structure, mix, metadata, load, finite logits.

    With the SOURCE that they were made of, each tensor is bit-exact, of the same type with other bytes, or wrong. Of a
    REPO (OWNER/NAME on the hub) only the bytes that are looked at are fetched. The exit status is 1 when something is
    wrong.
    """
    from ..release.verify import Request, run

    request = Request(
        target,
        against,
        catalogue_path(),
        imatrix=options["imatrix"],
        moments=options["moments"],
        pre_tokenizer=options["pre_tokenizer"],
        gates=gate_request(options),
        sample=options["sample"],
        revision=options["revision"],
        load=options["load"],
        n_threads=options["threads"],
    )
    report = run(request, TERMINAL)
    if as_json:
        emit_json(report.as_json())
    else:
        show(report)
    context.exit(0 if report.ok else 1)


def show(report: "Report") -> None:
    """Print what was found, a file after the other."""
    for file in report.files:
        show_file(file)
    if report.coverage:
        echo(report.coverage)
    n_bad = sum(not file.ok for file in report.files)
    of = count(len(report.files), "file")
    say(f"{of} in {report.seconds:.1f} s: {f'something is wrong with {n_bad}' if n_bad else 'nothing is wrong'}")


def show_file(file: "FileReport") -> None:
    """Print what was found of one file."""
    tensors = file.tensors
    parts = (
        (tensors.exact, "bit-exact"),
        (tensors.same_type, "of the same type with other bytes"),
        (tensors.wrong, "wrong"),
        (tensors.unchecked, "not compared"),
    )
    told = ", ".join(f"{number} {what}" for number, what in parts if number)
    n_tensors = sum(number for number, _ in parts)
    summary = f" ({count(n_tensors, 'tensor')}: {told})" if n_tensors else ""
    echo(f"{file.path}: {'ok' if file.ok else count(len(file.problems), 'problem')}{summary}")
    if file.mix:
        detail(f"  types: {file.mix}")
    for note in file.notes:
        say(f"  {note}")
    for problem in file.problems[:FEW]:
        echo(f"  {problem.kind}: {problem.message}")
    for problem in file.problems[FEW:]:
        detail(f"  {problem.kind}: {problem.message}")
    if len(file.problems) > FEW:
        say(f"  and {len(file.problems) - FEW} more (-v shows all, --json too)")
