"""`moe-gguf perplexity`: how well a model predicts a text, to the digits of llama-perplexity."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .loading import BUDGET_OPTIONS, MACHINE_OPTIONS, PLACING_OPTIONS, READING_OPTIONS, load_request, with_options
from .models import MODEL, catalogue_path
from .terminal import TERMINAL, echo, emit_json, say, verbosity

if TYPE_CHECKING:
    from ..jobs.perplexity import Report

TEXT = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.option("-f", "--file", "text", type=TEXT, required=True, help="The text.")
@click.option("-c", "--ctx-size", type=click.IntRange(8), default=512, show_default=True, help="Tokens of a window.")
@click.option("--chunks", type=click.IntRange(1), help="Read only the first N windows.")
@click.option("--stride", "--ppl-stride", type=click.IntRange(1), help="Let windows overlap: score the last N tokens.")
@with_options(READING_OPTIONS + BUDGET_OPTIONS + PLACING_OPTIONS + MACHINE_OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
def command(
    model: str | None, text: Path, chunks: int | None, stride: int | None, as_json: bool, **values: Any
) -> None:
    """Measure how well MODEL predicts a text: e to the mean loss of its tokens, the lower the better.

    The text is cut into windows of -c tokens, and the second half of each is scored, as llama-perplexity does.
    """
    from ..jobs import perplexity as job

    n_ctx = values.pop("ctx_size")
    request = job.Request(model, text, catalogue_path(), n_ctx, chunks, stride, load_request(values))
    report = job.run(job.prepare(request), TERMINAL)
    emit_json(report.as_json()) if as_json else show(report)


def show(report: "Report") -> None:
    """Print the estimate as llama-perplexity does."""
    found = report.perplexity
    echo(f"Final estimate: PPL = {found.ppl:.4f} +/- {found.error:.5f}")
    say(f"{found.n_token} tokens of {found.n_chunk} chunks, {report.tokens_per_second:.0f} tokens/s")
