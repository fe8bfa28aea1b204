"""`moe-gguf quantize`: every variant of a model in one pass over its source, with no 16-bit file in between."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..formats.words import count
from .models import MODEL
from .terminal import verbosity
from .writing import early_check, stoppable, writing_options

READ_ONLY = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("source", type=MODEL, required=False)
@click.option("--type", "types", multiple=True, required=True, metavar="TYPE", help="As Q4_K_M; may be repeated.")
@click.option(
    "-o",
    "--outfile",
    type=str,
    metavar="FILE",
    help="Output file for one type, folder for any number; by default beside a GGUF source, else in this folder.",
)
@click.option("--imatrix", type=READ_ONLY, help="Importance matrix of llama-imatrix (GGUF or .dat).")
@click.option("--tensor-type", multiple=True, metavar="PATTERN=TYPE", help="Type of the tensors that match.")
@click.option("--output-tensor-type", metavar="TYPE", help="Type of output.weight.")
@click.option("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight.")
@click.option("--leave-output-tensor", is_flag=True, help="Do not quantize output.weight.")
@click.option("--pure", is_flag=True, help="One type for all tensors, no mixture.")
@click.option("--allow-requantize", is_flag=True, help="Quantize tensors that are quantized already.")
@click.option("--override-kv", multiple=True, metavar="KEY=TYPE:VALUE", help="Change the metadata.")
@click.option("--prune-layers", metavar="L0,L1,...", help="Leave these layers out.")
@click.option("--keep-split", is_flag=True, help="Split the output as the source is split.")
@click.option("--verify", is_flag=True, help="Load each finished file in llama.cpp and decode once.")
@click.option("--measure", is_flag=True, help="Report the relative error per role of tensor.")
@writing_options
@verbosity
def command(source: str | None, **options: Any) -> None:
    """Write SOURCE quantized as every --type, reading it once.

    SOURCE is a GGUF file (or the first shard of a split one), a checkpoint folder, a merge recipe (.yml), or a
    name of the catalogue (models.toml); without it, the catalogue's default. An interrupted run goes on where it
    stopped when the same command is run again.
    """
    quantize(source, options)


def quantize(source: str | None, options: Mapping[str, Any]) -> None:
    """Plan, write, check, report."""
    from ..quantize.encode import Encoder
    from ..runner.threads import best_thread_count
    from ..writer.write import write
    from .plans import check_finished
    from .terminal import progress, say, warn
    from .variants import Job, report_of, show, warm_up

    with stoppable():
        job = Job.of(source, options)
        for warning in job.warnings:
            warn(warning)
        if options["dry_run"]:
            show(report_of(job), job, options)
            return
        if options["verify"]:
            early_check()
        warm_up(job)
        job.place.prepare()
    encoder = Encoder(job.importance, measure=options["measure"])
    targets = ", ".join(str(output.path) for output in job.outputs)
    started = time.monotonic()
    with stoppable(), progress(sum(tensor.n_weights for tensor in job.plan.tensors), "quantize", " weights") as bar:
        written = write(
            job.plan,
            job.outputs,
            encoder,
            n_threads=options["threads"] or best_thread_count(),
            force=options["force"],
            allow_nonfinite=options["allow_nonfinite"],
            advance=bar.update,
            check=lambda output, paths: check_finished(
                output, paths, job.tokenizer, load=options["verify"], forgiving=options["allow_nonfinite"]
            ),
            begin=lambda: say(f"{job.name}: {count(len(job.plan.tensors), 'tensor')} to {targets}"),
        )
    if any(one.resumed_at for one in written):
        say("went on where an interrupted run stopped")
    for qtype in encoder.fallen_back:
        warn(f"{qtype.name}: this llama.cpp computes differently from our kernel; its own encoder was used")
    show(report_of(job, encoder, time.monotonic() - started), job, options)
