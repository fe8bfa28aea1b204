"""`moe-gguf calibrate`: the routers of any mixture in GGUF are fitted to texts, one per expert."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .loading import BUDGET_OPTIONS, MACHINE_OPTIONS, PLACING_OPTIONS, load_request, with_options
from .models import MODEL, catalogue_path
from .numbers import FiniteRange
from .terminal import TERMINAL, echo, emit_json, verbosity

if TYPE_CHECKING:
    from ..jobs.calibrate import Report

FINITE = FiniteRange(min=0, min_open=True)
SHARPNESS = FiniteRange(min=0, min_open=True, max=1000)


@click.command()
@click.argument("model", type=MODEL)
@click.argument("texts", nargs=-1, metavar="[NAME=FILE]...")
@click.option("--texts", "first", multiple=True, metavar="NAME=FILE...", help="The texts, one for each expert.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="GATES", help="File to write.")
@click.option(
    "--tokens", type=click.IntRange(64), default=2560, show_default=True, help="Tokens of each text to fit to."
)
@click.option(
    "--held-out", type=click.IntRange(2), default=2048, show_default=True, help="Tokens of each text to evaluate on."
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 4),
    default=1,
    show_default=True,
    help="Number of fits, each routed by the previous one.",
)
@click.option("-c", "--ctx-size", type=click.IntRange(16), default=512, show_default=True, help="Tokens read at once.")
@click.option("--ridge", type=FINITE, default=1e-3, show_default=True, help="L2 penalty of the regression.")
@click.option("--sharpness", type=SHARPNESS, help="Factor of the routers' scores  [default: chosen by the loss]")
@click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@with_options(BUDGET_OPTIONS + PLACING_OPTIONS + MACHINE_OPTIONS)
@verbosity
def command(model: str, texts: tuple[str, ...], first: tuple[str, ...], **options: Any) -> None:
    """Fit the routers of MODEL, so that each kind of text goes to its expert.

    One text for each expert, in the experts' order: --texts python=a.txt german=b.txt; or the expert's number as the
    name, from 0, as often as you like. The result goes into a GGUF with: moe-gguf regate MODEL GATES -o OUT.
    """
    from ..jobs import calibrate as job

    request = job.Request(
        model=model,
        texts=(*first, *texts),
        output=options["output"],
        catalogue=catalogue_path(),
        n_fit=options["tokens"],
        n_held_out=options["held_out"],
        rounds=options["rounds"],
        n_ctx=options["ctx_size"],
        ridge=options["ridge"],
        sharpness=options["sharpness"],
        force=options["force"],
        load=load_request({**options, "ctx_size": None}),
    )
    report = job.run(job.prepare(request), TERMINAL)
    emit_json(report.as_json()) if options["as_json"] else show(report)


def show(report: "Report") -> None:
    """Print the report: losses per text, accuracy and entropy per layer, loads."""
    from ..jobs.calibrate import mean

    before, after = report.before, report.after
    echo("held-out loss (nats a token)")
    for name in before:
        echo(f"  {name:<16} {before[name]:.3f} -> {after[name]:.3f}")
    echo(f"  {'mean':<16} {mean(before):.3f} -> {mean(after):.3f}")
    last = report.rounds[-1]
    echo("share of each text's tokens per expert")
    for name, loads in last.load.items():
        echo(f"  {name:<16} " + " ".join(f"{share:6.1%}" for share in loads))
    echo(f"sharpness {report.sharpness} (factor of the routers' scores; the table below is before it)")
    echo("layer  accuracy  entropy")
    for layer, (accuracy, entropy) in enumerate(zip(last.accuracy, last.entropy, strict=True)):
        echo(f"{layer:5}  {accuracy:8.1%}  {entropy:7.3f}")
    echo(f"gates saved to {report.output}")
