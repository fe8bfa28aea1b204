"""Tasks of lm-evaluation-harness on our engine: a model and names of tasks come in, the harness's results go out."""

import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from datetime import date
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.errors import EngineError, MoeGgufError, OutputError
from .listener import SILENT, Listener
from .loading import DEFAULT_LOAD, LoadRequest, opened_engine
from .scoring import going_on
from .sources import resolve_gguf

if TYPE_CHECKING:
    from ..models.catalogue import Result

# The Open LLM Leaderboard's six: the shots that each is given, its metric, and what the leaderboard calls it and its
# metric. https://huggingface.co/docs/leaderboards/open_llm_leaderboard/archive
LEADERBOARD = {
    "arc_challenge": (25, "acc_norm", "ARC-Challenge"),
    "hellaswag": (10, "acc_norm", "HellaSwag"),
    "mmlu": (5, "acc", "MMLU"),
    "truthfulqa_mc2": (0, "acc", "TruthfulQA"),
    "winogrande": (5, "acc", "Winogrande"),
    "gsm8k": (5, "exact_match", "GSM8K"),
}
# What cards and the Hub's leaderboards know the data sets as: id, configuration, split.
DATASETS = {
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "hellaswag": ("Rowan/hellaswag", "default", "validation"),
    "mmlu": ("cais/mmlu", "all", "test"),
    "truthfulqa_mc2": ("truthfulqa/truthful_qa", "multiple_choice", "validation"),
    "winogrande": ("allenai/winogrande", "winogrande_xl", "validation"),
    "gsm8k": ("openai/gsm8k", "main", "test"),
}
LONGEST = 4096


@dataclass(frozen=True)
class Request:
    """A GGUF file or a name of `catalogue`, and what to ask of it.

    `tasks` are the harness's names, or YAML files of tasks; `include_path` is a folder of more. `num_fewshot` None is
    the leaderboard's number for its six tasks, and the task's own for others. `limit` is questions per task, or a part
    of them below 1. `model_index` and `eval_results` are YAML files to write, `output` the harness's JSON.
    """

    model: str | Path | None
    tasks: tuple[str, ...] = tuple(LEADERBOARD)
    catalogue: Path | None = None
    num_fewshot: int | None = None
    limit: float | None = None
    include_path: Path | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    log_samples: bool = False
    output: Path | None = None
    model_index: Path | None = None
    eval_results: Path | None = None
    load: LoadRequest = DEFAULT_LOAD


@dataclass(frozen=True)
class Prepared:
    """A request whose model and tasks were found; `shots` groups tasks by their number of examples."""

    request: Request
    path: Path
    shots: Mapping[int | None, tuple[str, ...]]
    published: "Sequence[Result]"
    manager: Any


@dataclass(frozen=True)
class Score:
    """What a task comes to: `value` and `error` between 0 and 1 for accuracies; `published` in the same unit."""

    task: str
    alias: str
    n_shot: int
    metric: str
    value: float
    error: float | None
    published: float | None = None


@dataclass(frozen=True)
class Report:
    """The harness's results as they are, and the scores in them."""

    path: Path
    results: Mapping[str, Any]
    scores: tuple[Score, ...]

    def as_json(self) -> Mapping[str, Any]:
        """Return what `eval --json` prints: lm-evaluation-harness's own JSON."""
        return self.results

    def model_index(self) -> list[dict[str, Any]]:
        """Return the `model-index` of a model card."""
        results = [
            {
                "task": {"type": "text-generation", "name": "Text Generation"},
                "dataset": _dataset(score),
                "metrics": [{"type": score.metric, "value": round(100 * score.value, 2), "name": score.metric}],
                "source": {
                    "name": "lm-evaluation-harness",
                    "url": "https://github.com/EleutherAI/lm-evaluation-harness",
                },
            }
            for score in self.scores
        ]
        return [{"name": self.path.stem, "results": results}]

    def eval_results(self, day: date) -> list[dict[str, Any]]:
        """Return what goes into `.eval_results/NAME.yaml` of a repository."""
        return [
            {
                "dataset": {"id": DATASETS[score.task][0], "task_id": score.task},
                "value": round(100 * score.value, 2),
                "date": day.isoformat(),
                "notes": f"{self.path.name}, {score.n_shot}-shot, {score.metric}, lm-evaluation-harness",
            }
            for score in self.scores
            if score.task in DATASETS
        ]


def _dataset(score: Score) -> dict[str, Any]:
    known = {"name": score.alias, "type": score.task}
    if score.task in DATASETS:
        name, configuration, split = DATASETS[score.task]
        known = {"name": score.alias, "type": name, "config": configuration, "split": split}
    return {**known, "args": {"num_few_shot": score.n_shot}}


def prepare(request: Request) -> Prepared:
    """Find the model and the tasks. Raises CatalogueError, GgufError and OutputError, and EngineError for an unknown
    task.
    """
    from ..models.catalogue import read_catalogue

    path = resolve_gguf(request.model, request.catalogue)
    for output in (request.output, request.model_index, request.eval_results):
        if output and not output.absolute().parent.is_dir():
            raise OutputError(f"{output.parent}: no such folder; create it first")
    published: Sequence[Result] = ()
    if request.catalogue and request.catalogue.is_file():
        catalogue = read_catalogue(request.catalogue)
        name = catalogue.default if request.model is None else str(request.model)
        published = next((one.results for one in catalogue.models.values() if one.name == name), ())
    manager = _task_manager(request)
    shots: dict[int | None, tuple[str, ...]] = {}
    for task in request.tasks:
        if not Path(task).is_file() and not manager.match_tasks([task]):
            raise EngineError(
                f"no task {task!r} in lm-evaluation-harness; name a task, a YAML file, or an --include-path"
            )
        n_shot = request.num_fewshot
        if n_shot is None and task in LEADERBOARD:
            n_shot = LEADERBOARD[task][0]
        shots[n_shot] = (*shots.get(n_shot, ()), task)
    return Prepared(request, path, shots, published, manager)


def _task_manager(request: Request) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise EngineError(
            f"eval stands on lm-evaluation-harness, which is not installed ({error.name}): pip install 'moe-gguf[eval]'"
        ) from None
    if request.include_path and not request.include_path.is_dir():
        raise EngineError(f"{request.include_path}: no such folder of tasks")
    return TaskManager(include_path=str(request.include_path) if request.include_path else None)


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Ask all tasks and write what was asked for. Raises GgufError, and EngineError for what the harness refuses."""
    from ..measure.harness import N_SEQ, EngineModel
    from ..measure.likelihood import BATCH_TOKENS

    request = prepared.request
    load = request.load
    longest = load.n_ctx or min(_trained_for(prepared.path), LONGEST)
    load = replace(load, n_ctx=longest + BATCH_TOKENS, n_seq_max=N_SEQ)
    found: dict[str, Any] = {}
    with (
        opened_engine(prepared.path, load, listener) as engine,
        listener.bar(0, "eval", "requests") as bar,
        going_on("nothing is written"),
    ):
        model = EngineModel(engine, bar.update)
        for n_shot, tasks in prepared.shots.items():
            for key, value in _evaluate(prepared, model, n_shot, tasks).items():
                found[key] = {**found[key], **value} if isinstance(found.get(key), dict) else value
    found["model_name"], found["model_source"] = prepared.path.stem, "moe-gguf"
    found["config"] = {**found.get("config", {}), "model": "moe-gguf", "model_args": {"path": str(prepared.path)}}
    report = Report(prepared.path, _plain(found), scores_of(found, prepared.published))
    _write(report, request)
    return report


def _trained_for(path: Path) -> int:
    from ..formats.gguf_file import read_gguf
    from ..runner.placing.memory import read_facts

    return read_facts(read_gguf(path)).n_ctx_train


def _evaluate(prepared: Prepared, model: Any, n_shot: int | None, tasks: Sequence[str]) -> dict[str, Any]:
    """Ask tasks that are given equally many examples; what the harness prints on stdout is dropped."""
    from lm_eval.evaluator import simple_evaluate

    request = prepared.request
    try:
        with redirect_stdout(StringIO()):
            found = simple_evaluate(
                model,
                tasks=list(tasks),
                num_fewshot=n_shot,
                limit=request.limit,
                log_samples=request.log_samples,
                apply_chat_template=request.apply_chat_template,
                system_instruction=request.system_instruction,
                task_manager=prepared.manager,
                bootstrap_iters=1000,
            )
    except MoeGgufError:
        raise
    except Exception as error:  # the harness raises whatever its data sets and tasks do
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EngineError(f"{', '.join(tasks)}: lm-evaluation-harness stops: {reason}") from None
    assert found is not None
    return dict(found)


def scores_of(found: Mapping[str, Any], results: "Sequence[Result]" = ()) -> tuple[Score, ...]:
    """Return a score for each task of the harness's JSON, and for each metric of those that no leaderboard knows.

    `results` are published ones, to be put beside them.
    """
    published = {one.task: one.value / 100 for one in results}
    scores = []
    for task, values in found["results"].items():
        if "alias" not in values or (task not in LEADERBOARD and values["alias"].startswith(" ")):
            continue
        n_shot, alias = found.get("n-shot", {}).get(task), values["alias"].strip(" -")
        metrics = [key for key in values if "," in key and "_stderr" not in key]
        if task in LEADERBOARD:
            n_shot, metric, alias = n_shot or LEADERBOARD[task][0], *LEADERBOARD[task][1:]
            metrics = [key for key in metrics if key.split(",")[0] == metric][:1]
        for key in metrics:
            name, rest = key.split(",", 1)
            error = values.get(f"{name}_stderr,{rest}")
            error = float(error) if isinstance(error, int | float) else None
            scores.append(Score(task, alias, n_shot or 0, name, float(values[key]), error, published.get(alias)))
    return tuple(scores)


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results without what JSON cannot say, as the harness writes them."""
    from lm_eval.utils import handle_non_serializable

    kept = {key: value for key, value in found.items() if key != "samples" or value}
    return json.loads(json.dumps(kept, default=handle_non_serializable))


def _write(report: Report, request: Request) -> None:
    import yaml

    def dump(data: Any) -> str:
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)

    texts = {
        request.output: lambda: json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n",
        request.model_index: lambda: dump({"model-index": report.model_index()}),
        request.eval_results: lambda: dump(report.eval_results(date.today())),
    }
    for path, text in texts.items():
        if path is not None:
            try:
                path.write_text(text(), "utf-8")
            except OSError as error:
                raise OutputError(f"{path}: {error.strerror}") from None
