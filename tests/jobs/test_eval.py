"""Log likelihoods of texts that share a beginning, against reading each alone; and the harness over them."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from moe_gguf.formats.errors import EngineError
from moe_gguf.jobs import eval as job
from moe_gguf.jobs.loading import LoadRequest
from moe_gguf.measure.likelihood import Scored, packs, score, text_of
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.losses import all_logits
from moe_gguf.runner.model import Model

EXACT = LoadOptions(
    n_ctx=1000,
    n_batch=128,
    n_ubatch=64,
    n_threads=1,
    n_gpu_layers=0,
    flash_attn="off",
    cache_type_k="f32",
    cache_type_v="f32",
    n_seq_max=24,
    repack=False,
)
LONGEST = 400


def questions() -> list[tuple[list[int], list[int]]]:
    """Return contexts and continuations of all kinds: shared, equal, within each other, of one token, too long."""
    draw = random.Random(1)
    shots = [draw.randrange(5, 250) for _ in range(60)]
    found: list[tuple[list[int], list[int]]] = []
    for number in range(8):
        context = (shots if number % 3 else []) + [draw.randrange(5, 250) for _ in range(draw.randrange(3, 40))]
        found += [(context, [draw.randrange(5, 250) for _ in range(draw.randrange(1, 5))]) for _ in range(4)]
    found += [(shots, [5, 6, 7]), ([*shots, 5], [6, 7]), (shots, [8]), (shots, [9])]
    return [*found, (list(range(5, 205)), list(range(3, 250)))]


def alone(engine: Engine, context: list[int], continuation: list[int]) -> Scored:
    engine.forget(0)
    tokens = [*context, *continuation][-(LONGEST + 1) :]
    logits = all_logits(engine, 0, tokens[:-1]).astype(np.float64)[-len(continuation) :]
    highest = logits.max(axis=1, keepdims=True)
    logprobs = logits - highest - np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))
    rows = range(len(continuation))
    greedy = [int(token) for token in logits.argmax(axis=1)]
    return Scored(float(logprobs[rows, continuation].sum()), greedy == continuation)


def test_shared_texts_score_as_each_alone(tiny: Model) -> None:
    with Engine(tiny, EXACT) as engine:
        texts = [text_of(context, continuation, LONGEST) for context, continuation in questions()]
        done: list[int] = []
        found = score(engine, texts, done.append)
        assert sum(done) == len(texts)
        for (context, continuation), one in zip(questions(), found, strict=True):
            expected = alone(engine, context, continuation)
            assert one.logprob == pytest.approx(expected.logprob, rel=1e-5, abs=1e-4)
            assert one.is_greedy == expected.is_greedy
        assert not any(engine.cached[1:])


def test_packs_cover_all_texts_in_order() -> None:
    texts = sorted(text_of(context, continuation, LONGEST).tokens for context, continuation in questions())
    cut = list(packs(texts, 6))
    assert [number for pack in cut for number in pack] == list(range(len(texts)))
    assert all(len({texts[number] for number in pack}) < 6 for pack in cut)
    assert len(list(packs(texts, 6, can_share=False))) == len(texts)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of two tasks: four questions of choices, and the same to be written."""
    draw = random.Random(3)
    words = ["the sun", "a thin hen", "an inn", "the hat"]
    rows = [{"question": f"what is {draw.choice(words)}", "choices": words, "answer": n} for n in range(4)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metric = {"aggregation": "mean", "higher_is_better": True}
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(tmp_path / "data.jsonl")}},
        "validation_split": "validation",
        "fewshot_split": "validation",
        "num_fewshot": 1,
        "doc_to_text": "{{question}}:",
        "metadata": {"version": 1.0},
    }
    choice = {
        **shared,
        "task": "local_choice",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", **metric}],
    }
    written = {
        **shared,
        "task": "local_written",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5},
        "metric_list": [{"metric": "exact_match", **metric}],
    }
    for task in (choice, written):
        (tmp_path / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    return tmp_path


def test_the_harness_asks_our_engine(tasks: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tasks / "cache"))
    request = job.Request(
        tiny_path,
        ("local_choice", "local_written"),
        include_path=tasks,
        log_samples=True,
        output=tasks / "results.json",
        model_index=tasks / "index.yaml",
        load=LoadRequest(n_threads=1, devices=(), n_ctx=512),
    )
    report = job.run(job.prepare(request))
    assert {score.task: score.n_shot for score in report.scores} == {"local_choice": 1, "local_written": 1}
    stored = json.loads((tasks / "results.json").read_text())
    assert stored["results"]["local_choice"]["acc,none"] == report.scores[0].value
    samples = stored["samples"]["local_choice"]
    right = [max(range(4), key=[float(one[0]) for one in each["filtered_resps"]].__getitem__) for each in samples]
    assert sum(choice == each["doc"]["answer"] for choice, each in zip(right, samples, strict=True)) / 4 == (
        report.scores[0].value
    )
    assert len(stored["samples"]["local_written"]) == 4
    index = yaml.safe_load((tasks / "index.yaml").read_text())
    assert index["model-index"][0]["results"][0]["metrics"][0]["type"] == "acc"
    with pytest.raises(EngineError, match="no task 'nothing'"):
        job.prepare(job.Request(tiny_path, ("nothing",), include_path=tasks))
