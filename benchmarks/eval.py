"""The claim: `eval` answers as lm-evaluation-harness's own `hf` model does, at twice its requests a second or more.

    python -m benchmarks.eval MODEL.gguf CHECKPOINT --python oracle-env/bin/python

MODEL is the F32 GGUF of CHECKPOINT, a folder that transformers loads; oracle-env is an environment with torch,
transformers and lm-eval. Both sides answer 50 questions of four choices each, made here, after two examples, in float32
on the CPU with the same number of threads. Seconds are those of all requests, without loading.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from moe_gguf.jobs import eval as job
from moe_gguf.jobs.loading import LoadRequest
from moe_gguf.measure.harness import EngineModel
from moe_gguf.runner.threads import best_thread_count

N_QUESTION = 50
LEAST_GAIN = 2.0
TASK = """\
task: local_questions
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {data}
output_type: multiple_choice
validation_split: validation
fewshot_split: validation
num_fewshot: 2
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
THEIRS = """
import json, sys, time, torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
checkpoint, folder, out, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = HFLM(pretrained=checkpoint, dtype="float32", device="cpu", batch_size=8)
spent, plain = 0.0, model._loglikelihood_tokens
def timed(*arguments, **options):
    global spent
    start = time.perf_counter()
    try:
        return plain(*arguments, **options)
    finally:
        spent += time.perf_counter() - start
model._loglikelihood_tokens = timed
tasks = TaskManager(include_path=folder)
found = simple_evaluate(model, tasks=["local_questions"], task_manager=tasks, bootstrap_iters=0)
samples = [[answer[0] for answer in sample["filtered_resps"]] for sample in found["samples"]["local_questions"]]
json.dump({"seconds": spent, "answers": samples}, open(out, "w"))
"""


def write_task(folder: Path) -> None:
    """Write 50 questions about things that stand near each other, and their task."""
    draw = random.Random(7)
    things = [
        "stone",
        "river",
        "bird",
        "house",
        "ship",
        "lamp",
        "horse",
        "garden",
        "window",
        "bridge",
        "letter",
        "forest",
    ]
    looks = ["red", "blue", "green", "old", "new", "cold", "bright", "dark", "quick", "quiet", "sweet", "soft"]
    rows = []
    for _ in range(N_QUESTION):
        first, second, third = draw.sample(things, 3)
        choices = [
            f"the {look} {thing}" for look, thing in zip(draw.sample(looks, 4), draw.sample(things, 4), strict=True)
        ]
        question = f"A {first} stood near the {second}, behind the {third}. What could be seen between them?"
        rows.append({"question": question, "choices": choices, "answer": draw.randrange(4)})
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "local_questions.yaml").write_text(TASK.format(data=data))


def ours(model: Path, folder: Path, threads: int) -> tuple[float, list[list[float]]]:
    """Return the seconds of all requests, and the log likelihoods of each question's choices."""
    spent = 0.0
    plain = EngineModel._loglikelihood_tokens

    def timed(self: EngineModel, requests: Sequence[tuple[Any, list[int], list[int]]]) -> list[tuple[float, bool]]:
        nonlocal spent
        start = time.perf_counter()
        try:
            return plain(self, requests)
        finally:
            spent += time.perf_counter() - start

    EngineModel._loglikelihood_tokens = lambda self, requests, **_: timed(self, requests)
    load = LoadRequest(n_threads=threads, devices=(), n_ctx=2048)
    request = job.Request(model, ("local_questions",), include_path=folder, log_samples=True, load=load)
    found = job.run(job.prepare(request)).results["samples"]["local_questions"]
    return spent, [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in found]


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--python", required=True, help="The interpreter of an environment with torch, transformers and lm-eval.")
@click.option("-t", "--threads", type=int, default=best_thread_count)
def main(model: Path, checkpoint: Path, python: str, threads: int) -> None:
    """Ask both sides the same questions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_task(folder)
        (folder / "theirs.py").write_text(THEIRS)
        out = folder / "theirs.json"
        subprocess.run([python, folder / "theirs.py", checkpoint, folder, out, str(threads)], check=True)
        theirs = json.loads(out.read_text())
        seconds, answers = ours(model, folder, threads)
    same = sum(
        max(range(4), key=one.__getitem__) == max(range(4), key=other.__getitem__)
        for one, other in zip(answers, theirs["answers"], strict=True)
    )
    worst = max(
        abs(a - b)
        for one, other in zip(answers, theirs["answers"], strict=True)
        for a, b in zip(one, other, strict=True)
    )
    gain = theirs["seconds"] / seconds
    n_request = 4 * N_QUESTION
    click.echo(
        f"requests a second: {n_request / seconds:.1f}, hf {n_request / theirs['seconds']:.1f}: {gain:.2f} times"
    )
    click.echo(f"equal answers: {same} of {N_QUESTION}; largest difference of a log likelihood: {worst:.5f}")
    sys.exit(0 if same == N_QUESTION and gain >= LEAST_GAIN else 1)


if __name__ == "__main__":
    main()
