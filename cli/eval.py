"""`moe-gguf eval`: benchmarks of lm-evaluation-harness, answered by our engine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..formats.errors import EngineError
from .loading import load_request, loading_options
from .models import MODEL, catalogue_path
from .tables import table
from .terminal import TERMINAL, echo, emit_json, verbosity

if TYPE_CHECKING:
    from ..jobs.eval import Report

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.option(
    "--tasks", metavar="NAME,...", help="Tasks of the harness, or YAML files  [default: the Open LLM Leaderboard's six]"
)
@click.option("--num-fewshot", "--num_fewshot", type=click.IntRange(0), help="Examples  [default: the leaderboard's]")
@click.option(
    "--limit", "-L", type=float, metavar="N", help="Only so many questions of each task (a part, if below 1)."
)
@click.option(
    "--include-path", "--include_path", type=click.Path(path_type=Path), help="A folder of tasks' YAML files."
)
@click.option("--apply-chat-template", "--apply_chat_template", is_flag=True, help="Ask in the model's chat template.")
@click.option(
    "--system-instruction", "--system_instruction", metavar="TEXT", help="A system message before each question."
)
@click.option("--log-samples", "--log_samples", is_flag=True, help="Keep every question and answer in the JSON.")
@click.option("-o", "--output", "--output-path", "--output_path", type=FILE, help="Write the harness's JSON here.")
@click.option("--model-index", type=FILE, help="Write the model-index of a model card here, as YAML.")
@click.option("--eval-results", type=FILE, help="Write the Hub's .eval_results here, as YAML.")
@click.option("--json", "as_json", is_flag=True, help="Print the harness's JSON.")
@loading_options
@verbosity
def command(model: str | None, tasks: str | None, as_json: bool, **options: Any) -> None:
    """Ask MODEL the tasks of lm-evaluation-harness (pip install 'moe-gguf[eval]').

    Without --tasks these are the six of the Open LLM Leaderboard, with its numbers of examples.
    """
    from ..jobs import eval as job

    limit = options["limit"]
    if limit is not None and not limit > 0:
        raise click.BadParameter("write a number above 0", param_hint="--limit")
    names = tuple(name.strip() for name in tasks.split(",") if name.strip()) if tasks else tuple(job.LEADERBOARD)
    if not names:
        raise EngineError("--tasks names no task")
    same = ("num_fewshot", "limit", "include_path", "apply_chat_template", "system_instruction", "log_samples")
    same += ("output", "model_index", "eval_results")
    request = job.Request(
        model,
        names,
        catalogue_path(),
        **{name: options.pop(name) for name in same},
        load=load_request(options),
    )
    report = job.run(job.prepare(request), TERMINAL)
    emit_json(report.as_json()) if as_json else show(report)


def show(report: "Report") -> None:
    """Print a row for each task and metric, beside what is published of the model."""
    has_published = any(score.published is not None for score in report.scores)
    heads = ["task", "shots", "metric", "value", "±", *(["published"] if has_published else [])]
    rows = []
    for score in report.scores:
        row = [score.alias, str(score.n_shot), score.metric, f"{100 * score.value:.2f}"]
        row.append("" if score.error is None else f"{100 * score.error:.2f}")
        if has_published:
            row.append("" if score.published is None else f"{100 * score.published:.2f}")
        rows.append(row)
    echo(table(heads, rows, right={1, 3, 4, 5}))
