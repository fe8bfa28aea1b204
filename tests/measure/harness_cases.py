"""The checkpoint and the tasks that the harness's own `hf` model answered, and that our engine must answer alike."""

import json
import random
from pathlib import Path
from typing import Any

from ..checkpoints import Tiny

CHECKPOINT = Tiny(n_vocab=512, dtype="F32", n_embd=32, n_ff=48, n_head=4, n_head_kv=2, seed=21)
CHOICE, WRITTEN = "fifty_questions", "sums"
N_QUESTION, N_SUM = 50, 10
WORDS = ("river", "weather", "fox", "capital of France", "file", "sea shells", "router", "name", "assistant", "number")
METRIC = {"aggregation": "mean", "higher_is_better": True}


def write_tasks(folder: Path) -> None:
    """Write fifty questions of four choices, and ten sums to be written out as GSM8K wants them, with their tasks."""
    draw = random.Random(5)
    questions, sums = [], []
    for _ in range(N_QUESTION):
        one, other = draw.sample(WORDS, 2)
        choices = [f"the {word} of the {draw.choice(WORDS)}" for word in draw.sample(WORDS, 4)]
        questions.append(
            {"question": f"What is between the {one} and the {other}?", "choices": choices, "answer": draw.randrange(4)}
        )
    for _ in range(N_SUM):
        a, b = draw.randrange(50), draw.randrange(50)
        sums.append({"question": f"She has {a} shells and sells {b}. How many?", "answer": f"{a + b}"})
    choice = {
        "task": CHOICE,
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", **METRIC}, {"metric": "acc_norm", **METRIC}],
        "num_fewshot": 2,
    }
    written = {
        "task": WRITTEN,
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["Question:", "\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 24},
        "metric_list": [{"metric": "exact_match", **METRIC}],
        "num_fewshot": 1,
    }
    write(folder, choice, questions)
    write(folder, written, sums)


def write(folder: Path, task: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write a task and its questions, which are its examples too."""
    data = folder / f"{task['task']}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(data)}},
        "validation_split": "validation",
        "fewshot_split": "validation",
        "metadata": {"version": 1.0},
    }
    # JSON is YAML, and the oracle's environment need not have a writer of it.
    (folder / f"{task['task']}.yaml").write_text(json.dumps({**shared, **task}))


def answers_of(samples: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return what is compared: log likelihoods of the choices, [question][choice], and what was written."""
    ordered = {name: sorted(found, key=lambda one: one["doc_id"]) for name, found in samples.items()}
    return {
        CHOICE: [[round(float(answer[0]), 4) for answer in one["filtered_resps"]] for one in ordered[CHOICE]],
        WRITTEN: [one["resps"][0][0] for one in ordered[WRITTEN]],
    }
