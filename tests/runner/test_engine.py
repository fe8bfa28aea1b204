"""The engine against llama-cpp-python's own loop, against itself cold, and after being cancelled anywhere."""

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_gguf.formats.errors import EngineError, GgufError
from moe_gguf.runner.engine import Cancelled, Engine, Feed, batches, shared_prefix
from moe_gguf.runner.generation import advance, begin, generate, pieces_of, speed
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.losses import all_logits
from moe_gguf.runner.model import Model, detokenize, tokenize
from moe_gguf.runner.sampling import Sampler, SamplingOptions
from moe_gguf.runner.tap import Tap

from ..loaded_models import ONE_THREAD

GREEDY = SamplingOptions(temp=0)
STORY = "the cat and the hat in a land that had a thin can and an ant then the chin had a tan "


def tokens_of(engine: Engine, prompt: Sequence[int], sampling: SamplingOptions, count: int) -> list[int]:
    """Generate `count` tokens; the model's wish to end is ignored."""
    sampling = replace(sampling, ignore_eos=True)
    return [piece.token for piece in generate(engine, prompt, sampling, n_predict=count)]


def llama_tokens(path: Path, prompt: Sequence[int], count: int, seed: int, **sampling: Any) -> list[int]:
    """Generate with llama-cpp-python's own loop, in the same batches."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(path), n_ctx=512, n_batch=128, n_ubatch=32, n_threads=1, n_threads_batch=1, seed=seed, verbose=False,
        flash_attn=False, use_extra_bufts=False,
    )  # fmt: skip
    stream = model.generate(list(prompt), **sampling)
    found = [next(stream) for _ in range(count)]
    model.close()
    return found


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (GREEDY, {"temp": 0.0}),
        (SamplingOptions(seed=11), {"temp": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}),
        (
            SamplingOptions(seed=5, temp=1.3, top_k=0, top_p=0.7, min_p=0.0, typical_p=0.9),
            {"temp": 1.3, "top_k": 0, "top_p": 0.7, "min_p": 0.0, "typical_p": 0.9},
        ),
        (SamplingOptions(seed=7, temp=1, mirostat=2), {"temp": 1.0, "mirostat_mode": 2}),
        (SamplingOptions(seed=9, temp=1, mirostat=1), {"temp": 1.0, "mirostat_mode": 1}),
    ],
    ids=["greedy", "default", "typical", "mirostat2", "mirostat1"],
)
def test_tokens_are_llama_cpp_pythons(
    smollm2: Model, smollm2_path: Path, ours: SamplingOptions, theirs: dict[str, Any]
) -> None:
    prompt = tokenize(smollm2, "Once upon a time there was a")
    with Engine(smollm2, ONE_THREAD) as engine:
        found = [piece.token for piece in generate(engine, prompt, ours, n_predict=24)]
    expected = llama_tokens(smollm2_path, prompt, 24, ours.seed or 0, **theirs)
    assert found == expected[: len(found)]


def test_sequences_in_one_batch_are_as_alone(tiny: Model) -> None:
    prompts = [tokenize(tiny, STORY[start : start + 30 + start]) for start in (0, 7, 20, 33)]
    with Engine(tiny, ONE_THREAD) as engine:
        alone = [tokens_of(engine, prompt, GREEDY, 12) for prompt in prompts]
        greedy = replace(GREEDY, ignore_eos=True)
        together = [begin(engine, prompt, greedy, sequence=i, n_predict=12) for i, prompt in enumerate(prompts)]
        while any(generation.finish is None for generation in together):
            advance(engine, together)
    assert [generation.tokens for generation in together] == alone


def test_sequences_may_end_at_different_times_and_others_take_their_place(tiny: Model) -> None:
    prompt = tokenize(tiny, STORY)
    greedy = replace(GREEDY, ignore_eos=True)
    with Engine(tiny, ONE_THREAD) as engine:
        expected = tokens_of(engine, prompt, GREEDY, 20)
        short = begin(engine, prompt, greedy, sequence=1, n_predict=3)
        long = begin(engine, prompt, greedy, sequence=2, n_predict=20)
        for _ in range(3):
            assert len(advance(engine, [short, long])) == 2
        assert short.finish == "length" and len(advance(engine, [short, long])) == 1
        late = begin(engine, prompt, greedy, sequence=1, n_predict=20)
        while late.finish is None:
            advance(engine, [long, late])
    assert (short.tokens, long.tokens, late.tokens) == (expected[:3], expected, expected)


def test_a_reused_prefix_gives_the_logits_of_a_cold_run(smollm2: Model) -> None:
    first = tokenize(smollm2, "The capital of France is a city that")
    longer = first + tokenize(smollm2, " lies on a river and has many bridges.", add_special=False)
    with Engine(smollm2, ONE_THREAD) as warm, Engine(smollm2, ONE_THREAD) as cold:
        tokens_of(warm, first, GREEDY, 5)
        assert warm.reuse(0, longer) == len(first)
        again = all_logits(warm, 0, longer[len(first) :])
        fresh = all_logits(cold, 0, longer)[len(first) :]
    np.testing.assert_allclose(again, fresh, atol=0.02)
    assert (again.argmax(axis=1) == fresh.argmax(axis=1)).all()


def test_only_new_tokens_are_decoded(tiny: Model) -> None:
    prompt = tokenize(tiny, STORY)
    with Engine(tiny, ONE_THREAD) as engine:
        first = begin(engine, prompt, GREEDY, n_predict=4)
        list(pieces_of(engine, first))
        second = begin(engine, prompt + first.tokens[:2], GREEDY, n_predict=4)
        assert (first.n_reused, second.n_reused) == (0, len(prompt) + 1)
        list(pieces_of(engine, second))
        assert begin(engine, prompt, GREEDY).n_reused == len(prompt) - 1
        assert begin(engine, [*prompt[:4], 99], GREEDY).n_reused == 4
        assert speed(second).n_reused == len(prompt) + 1


def cancel_anywhere(model: Model, rounds: int) -> None:
    """Cancel at random moments of prompt and answer; each time the answer must go on as if nothing had been."""
    dice = random.Random(3)
    prompt = tokenize(model, STORY * 3)
    greedy = replace(GREEDY, ignore_eos=True)
    cancelled = 0
    with Engine(model, ONE_THREAD) as engine:
        expected = tokens_of(engine, prompt, GREEDY, 12)
        for _ in range(rounds):
            engine.forget(0)
            generation = begin(engine, prompt, greedy, n_predict=12)
            timer = threading.Timer(dice.uniform(0, 0.06), engine.cancel)
            timer.start()
            while generation.finish is None:
                try:
                    advance(engine, [generation])
                except Cancelled:
                    cancelled += 1
            timer.join()
            engine.resume()
            assert generation.tokens == expected
    assert cancelled


def test_cancelling_anywhere_leaves_a_usable_engine(tiny: Model) -> None:
    cancel_anywhere(tiny, 100)


@pytest.mark.slow
def test_cancelling_anywhere_a_thousand_times(tiny: Model) -> None:
    cancel_anywhere(tiny, 1000)


def test_cancelling_stops_inside_a_prompt(tiny: Model) -> None:
    prompt = tokenize(tiny, STORY * 4)[:128]
    seen: list[int] = []

    def stop_in_the_third_graph(_: str, array: np.ndarray) -> None:
        seen.append(len(array))
        if len(seen) == 3:
            engine.cancel()

    tap = Tap(lambda name: name == "l_out-0", stop_in_the_third_graph)
    with Engine(tiny, ONE_THREAD, tap.callback) as engine:
        tap.n_tokens = 32
        with pytest.raises(Cancelled):
            engine.step([Feed(0, prompt, Sampler(tiny, GREEDY))])
        assert len(engine.cached[0]) == 64
        assert engine.reuse(0, prompt) == 64
        assert len(engine.step([Feed(0, prompt[64:])])) == 1


def test_a_cancel_before_a_step_is_honoured_once(tiny: Model) -> None:
    with Engine(tiny, ONE_THREAD) as engine:
        engine.cancel()
        with pytest.raises(Cancelled):
            engine.step([Feed(0, [1, 2, 3])])
        engine.step([Feed(0, [1, 2, 3])])
        assert engine.cached[0] == [1, 2, 3]


def test_a_full_context_is_one_clear_line_and_not_the_end(tiny: Model) -> None:
    options = replace(ONE_THREAD, n_ctx=256)
    prompt = tokenize(tiny, STORY)
    with Engine(tiny, options) as engine:
        generation = begin(engine, prompt, replace(GREEDY, ignore_eos=True))
        pieces = list(pieces_of(engine, generation))
        assert pieces[-1].finish == "context"
        assert len(prompt) + len(generation.tokens) == engine.n_ctx + 1
        with pytest.raises(EngineError, match="context of 256 tokens is full"):
            engine.step([Feed(1, prompt)])
        engine.forget(0)
        assert len(tokens_of(engine, prompt, GREEDY, 5)) == 5
        with pytest.raises(EngineError, match="the prompt has 300 tokens, the context 256"):
            begin(engine, [5] * 300, GREEDY)
        with pytest.raises(EngineError, match="prompt is empty"):
            begin(engine, [], GREEDY)
        with pytest.raises(EngineError, match="token 9999 is not in the vocabulary"):
            begin(engine, [9999], GREEDY)


def test_engines_share_a_model(tiny: Model) -> None:
    prompt = tokenize(tiny, STORY)
    with Engine(tiny, ONE_THREAD) as one, Engine(tiny, ONE_THREAD) as other:
        first = tokens_of(one, prompt, GREEDY, 8)
        assert tokens_of(other, prompt, GREEDY, 8) == first
        assert tokens_of(one, prompt[:9], GREEDY, 8) == tokens_of(other, prompt[:9], GREEDY, 8)


def test_logprobs_are_those_of_the_softmax(tiny: Model) -> None:
    prompt = tokenize(tiny, STORY)
    with Engine(tiny, ONE_THREAD) as engine:
        pieces = list(generate(engine, prompt, replace(GREEDY, ignore_eos=True), n_predict=5, n_logprobs=3))
        engine.forget(0)
        answer = [piece.token for piece in pieces]
        logits = all_logits(engine, 0, prompt + answer)[len(prompt) - 1 : -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for piece, row in zip(pieces, expected, strict=True):
        assert piece.logprob is not None
        assert piece.logprob.logprob == pytest.approx(row[piece.token], abs=0.02)
        assert [token for token, _ in piece.logprob.top] == np.argsort(-row)[:3].tolist()
        assert piece.logprob.top[0] == (piece.token, piece.logprob.logprob)


def test_fewer_experts_per_token_change_the_answer_as_the_file_would(tiny: Model, tiny_path: Path) -> None:
    prompt = tokenize(tiny, STORY)
    options = replace(ONE_THREAD, n_expert_used=1)
    with Engine(tiny, ONE_THREAD) as engine:
        two = all_logits(engine, 0, prompt)
    with Model(tiny_path, options) as model, Engine(model, options) as engine:
        one = all_logits(engine, 0, prompt)
    assert np.abs(one - two).max() > 0.01
    with pytest.raises(EngineError, match="cannot use 5 of its 4 experts"):
        Model(tiny_path, replace(ONE_THREAD, n_expert_used=5))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (replace(ONE_THREAD, cache_type_k="q9_9"), "'q9_9' is not a type for the KV cache"),
        (replace(ONE_THREAD, devices=("CUDA7",)), "there is no device 'CUDA7'"),
        (replace(ONE_THREAD, tensor_overrides=(("x", "GPU"),)), "there is no device 'GPU'"),
    ],
)
def test_impossible_options_are_one_line(tiny_path: Path, options: LoadOptions, match: str) -> None:
    with pytest.raises(EngineError, match=match), Model(tiny_path, options) as model:
        Engine(model, options)


def test_a_context_that_no_machine_has_is_one_line(tiny: Model) -> None:
    with pytest.raises(EngineError, match=r"a context of 4000000000 tokens needs 1024\.00 GB"):
        Engine(tiny, replace(ONE_THREAD, n_ctx=4_000_000_000))


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="no such file"):
        Model(tmp_path / "none.gguf", ONE_THREAD)


def test_text_survives_tokens(tiny: Model, smollm2: Model) -> None:
    text = "the cät in a \U0001f600 hat\n\n 12"
    assert detokenize(smollm2, tokenize(smollm2, text)) == text
    assert detokenize(tiny, tokenize(tiny, text, add_special=False)).strip() == text


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 16))
@settings(max_examples=60)
def test_batches_hold_every_token_once_and_sample_last(lengths: list[int], n_batch: int) -> None:
    feeds = [Feed(i, list(range(length)), object()) for i, length in enumerate(lengths)]  # pyright: ignore[reportArgumentType]
    found: list[list[int]] = [[] for _ in feeds]
    for parts in batches(feeds, n_batch):
        assert 0 < sum(len(part.tokens) for part in parts) <= n_batch
        for part in parts:
            found[part.feed] += part.tokens
            assert (part.sampler is not None) == (len(found[part.feed]) == lengths[part.feed])
    assert found == [list(feed.tokens) for feed in feeds]


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_shared_prefix(one: list[int], other: list[int]) -> None:
    length = shared_prefix(one, other)
    assert one[:length] == other[:length]
    assert one[length : length + 1] != other[length : length + 1] or length == len(one) == len(other)
