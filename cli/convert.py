"""`moe-gguf convert`: a checkpoint or a recipe becomes one GGUF file, verified before it gets its name."""

import time
from pathlib import Path
from typing import Any

import click

from ..formats.sizes import parse_size
from ..formats.words import count
from .models import MODEL
from .terminal import verbosity
from .writing import early_check, stoppable, writing_options

OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0")


@click.command()
@click.argument("source", type=MODEL, required=False)
@click.option(
    "-o",
    "--outfile",
    type=str,
    metavar="FILE",
    help="Output file (.gguf) or folder; by default NAME-SIZE-TYPE.gguf in this folder.",
)
@click.option(
    "--outtype",
    type=click.Choice(OUTTYPES, case_sensitive=False),
    default="auto",
    show_default=True,
    help="Type of the matrices; auto is the checkpoint's own 16-bit type.",
)
@click.option("--no-verify", is_flag=True, help="Do not load the finished file in llama.cpp.")
@writing_options
@verbosity
def command(source: str | None, **options: Any) -> None:
    """Write SOURCE as GGUF.

    SOURCE is a checkpoint folder as transformers or mergekit-moe writes it, a merge recipe (.yml), or a name
    of the catalogue (models.toml); without it, the catalogue's default.
    """
    convert(source, **options)


def convert(
    source: str | None,
    outfile: str | None,
    outtype: str,
    split_max_size: str | None,
    pre_tokenizer: str | None,
    gates: Path | None,
    gate_base: str,
    allow_nonfinite: bool,
    no_verify: bool,
    force: bool,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Plan, write, read back, report."""
    from ..convert.outtype import choose_entries, file_type_field, resolve_outtype
    from ..quantize.encode import Encoder
    from ..runner.threads import best_thread_count
    from ..writer.partial import Output, split_output
    from ..writer.write import write
    from .models import resolve_source
    from .outputs import Place, describe_output, print_output, print_tensors
    from .plans import Routers, check_finished, plan_of
    from .terminal import emit_json, progress, say, warn

    with stoppable():
        planned = plan_of(resolve_source(source), pre_tokenizer, Routers(gates, gate_base, zeros=dry_run))
    for warning in planned.plan.warnings:
        warn(warning)
    resolved = resolve_outtype(planned.plan, outtype.lower())
    plan = planned.plan.with_fields(file_type_field(planned.plan, resolved))
    entries = choose_entries(plan, resolved)
    place = Place.of(outfile, 1, planned.folder)
    path = place.path(plan.fields, resolved.upper())
    output = Output(path, plan.fields, entries, f"convert {resolved}")
    if split_max_size:
        output = split_output(output, parse_size(split_max_size, "file"))
    report = describe_output(output, resolved.upper())
    if dry_run:
        if as_json:
            emit_json({"outputs": [report], "dry_run": True, "ignored": dict(plan.ignored)})
        else:
            print_output(report, entries)
            print_tensors(entries)
        return
    if not no_verify:
        early_check()
    place.prepare()
    started = time.monotonic()
    with stoppable(), progress(sum(tensor.n_weights for tensor in plan.tensors), "convert", " weights") as bar:
        written = write(
            plan,
            [output],
            Encoder(),
            n_threads=threads or best_thread_count(),
            force=force,
            allow_nonfinite=allow_nonfinite,
            advance=bar.update,
            begin=lambda: say(f"{planned.name}: {count(len(entries), 'tensor')} to {path}"),
            check=lambda output, paths: check_finished(
                output, paths, planned.tokenizer, load=not no_verify, forgiving=allow_nonfinite
            ),
        )
    if written[0].resumed_at:
        say("went on where an interrupted run stopped")
    seconds = time.monotonic() - started
    if as_json:
        emit_json({"outputs": [report], "seconds": round(seconds, 3), "ignored": dict(plan.ignored)})
    else:
        print_output(report, entries, seconds)
