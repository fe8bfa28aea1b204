"""Log likelihoods of texts that share a beginning, against reading each alone; and the harness over them."""

import json
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import yaml
from moe_gguf.cli.eval import show
from moe_gguf.formats.errors import EngineError, Interrupted, OutputError
from moe_gguf.jobs import eval as job
from moe_gguf.jobs.loading import LoadRequest
from moe_gguf.measure import harness
from moe_gguf.measure.likelihood import Scored, packs, score, text_of
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.losses import all_logits
from moe_gguf.runner.model import Model

from ..checkpoints import write_checkpoint
from ..command import convert
from ..measure.harness_cases import CHECKPOINT, CHOICE, N_QUESTION, WRITTEN, answers_of, write_tasks

GOLDEN = json.loads((Path(__file__).parents[1] / "measure" / "golden" / "harness.json").read_text())
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


F32 = LoadRequest(
    n_threads=1, devices=(), n_ctx=512, cache_type_k="f32", cache_type_v="f32", flash_attn="off", repack=False
)
CATALOGUE = """
default = "tiny"
[models.tiny]
path = "tiny.gguf"
results = [{ task = "fifty_questions", n_shot = 2, metric = "acc", value = 12.34 }]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the checkpoint that the harness's own model answered from, as an F32 GGUF, and its tasks."""
    folder = tmp_path_factory.mktemp("eval")
    checkpoint = write_checkpoint(folder / "checkpoint", CHECKPOINT)
    assert convert(checkpoint, folder / "tiny.gguf", "--outtype", "f32").status == 0
    (folder / "tasks").mkdir()
    write_tasks(folder / "tasks")
    (folder / "models.toml").write_text(CATALOGUE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def request_(folder: Path) -> job.Request:
    """Both tasks, with everything that can be written."""
    return job.Request(
        None,
        (CHOICE, WRITTEN),
        catalogue=folder / "models.toml",
        include_path=folder / "tasks",
        log_samples=True,
        output=folder / "results.json",
        model_index=folder / "index.yaml",
        eval_results=folder / "eval.yaml",
        load=F32,
    )


@pytest.fixture(scope="module")
def prepared(request_: job.Request) -> job.Prepared:
    return job.prepare(request_)


@pytest.fixture(scope="module")
def report(prepared: job.Prepared) -> job.Report:
    return job.run(prepared)


def test_answers_are_those_of_the_harness_s_own_model(report: job.Report) -> None:
    found = answers_of(report.as_json()["samples"])
    np.testing.assert_allclose(found[CHOICE], GOLDEN[CHOICE], atol=2e-3)
    assert found[WRITTEN] == GOLDEN[WRITTEN]
    results = report.as_json()["results"]
    assert {key: results[CHOICE][key] for key in ("acc,none", "acc_norm,none")} == {
        key: GOLDEN["results"][key] for key in ("acc,none", "acc_norm,none")
    }
    assert results[WRITTEN]["exact_match,none"] == GOLDEN["results"]["exact_match,none"]


def test_the_json_is_the_harness_s_own(report: job.Report, folder: Path) -> None:
    stored = json.loads((folder / "results.json").read_text())
    assert stored == json.loads(json.dumps(report.as_json()))
    assert stored.keys() >= {"results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config"}
    assert stored["n-samples"][CHOICE] == {"original": N_QUESTION, "effective": N_QUESTION}
    assert stored["n-shot"] == {CHOICE: 2, WRITTEN: 1} and stored["model_name"] == "tiny"
    samples = stored["samples"][CHOICE]
    right = [max(range(4), key=[float(one[0]) for one in each["filtered_resps"]].__getitem__) for each in samples]
    correct = sum(choice == each["doc"]["answer"] for choice, each in zip(right, samples, strict=True))
    assert correct / N_QUESTION == stored["results"][CHOICE]["acc,none"]


def test_scores_stand_beside_what_the_catalogue_publishes(
    report: job.Report, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {(score.task, score.n_shot, score.metric) for score in report.scores} == {
        (CHOICE, 2, "acc"),
        (CHOICE, 2, "acc_norm"),
        (WRITTEN, 1, "exact_match"),
    }
    show(report)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["task", "shots", "metric", "value", "±", "published"]
    assert next(line.split() for line in shown if "acc_norm" in line)[-1] == "12.34"
    assert "12.34" not in next(line for line in shown if WRITTEN in line)


def test_yaml_for_cards_and_for_the_hub(report: job.Report, folder: Path) -> None:
    (index,) = yaml.safe_load((folder / "index.yaml").read_text())["model-index"]
    result = index["results"][0]
    assert index["name"] == "tiny" and set(result) == {"task", "dataset", "metrics", "source"}
    assert result["dataset"] == {"name": CHOICE, "type": CHOICE, "args": {"num_few_shot": 2}}
    assert result["metrics"] == [{"type": "acc", "value": 100 * GOLDEN["results"]["acc,none"], "name": "acc"}]
    # Only benchmarks that the Hub's leaderboards know have an entry there.
    assert yaml.safe_load((folder / "eval.yaml").read_text()) == []
    known = replace(report, scores=(job.Score("gsm8k", "GSM8K", 5, "exact_match", 0.7149, 0.01),))
    (entry,) = known.eval_results(date(2026, 11, 25))
    assert entry == {
        "dataset": {"id": "openai/gsm8k", "task_id": "gsm8k"},
        "value": 71.49,
        "date": "2026-11-25",
        "notes": "tiny.gguf, 5-shot, exact_match, lm-evaluation-harness",
    }
    dataset = known.model_index()[0]["results"][0]["dataset"]
    assert dataset == {
        "name": "GSM8K",
        "type": "openai/gsm8k",
        "config": "main",
        "split": "test",
        "args": {"num_few_shot": 5},
    }


def test_questions_can_be_limited(prepared: job.Prepared, request_: job.Request) -> None:
    few = replace(request_, limit=3, output=None, model_index=None, eval_results=None)
    found = job.run(replace(prepared, request=few, shots={None: (CHOICE,)}))
    assert found.as_json()["n-samples"][CHOICE]["effective"] == 3


def test_refusals_are_one_line(request_: job.Request, tmp_path: Path) -> None:
    refused = {
        "no such folder; create it first": replace(request_, output=tmp_path / "nowhere" / "a.json"),
        "no such folder of tasks": replace(request_, include_path=tmp_path / "nowhere"),
        "no task 'nothing'": replace(request_, tasks=("nothing",)),
    }
    for words, request in refused.items():
        with pytest.raises((EngineError, OutputError), match=words) as caught:
            job.prepare(request)
        assert "\n" not in str(caught.value)


def test_ctrl_c_ends_it_in_one_line_and_writes_nothing(
    prepared: job.Prepared, request_: job.Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "results.json"
    monkeypatch.setattr(harness, "score", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted, match="interrupted; nothing is written"):
        job.run(replace(prepared, request=replace(request_, output=output)))
    assert not output.exists()
