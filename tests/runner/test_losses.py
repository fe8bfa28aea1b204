"""Losses against llama-cpp-python's logits, and the verdict on finished files."""

from pathlib import Path

import numpy as np
import pytest
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.losses import token_losses
from moe_gguf.runner.model import Model, tokenize
from moe_gguf.runner.verify import verify_gguf

from ..loaded_models import ONE_THREAD
from .tiny_gguf import Fields, Tensors, write_tiny

TEXT = "the cat and the hat in a land that had a thin can and an ant then the chin had a tan"


@pytest.mark.parametrize("n_ctx", [11, 40, 500])
def test_losses_are_those_of_llama_cpps_logits(tiny: Model, tiny_path: Path, n_ctx: int) -> None:
    import llama_cpp

    tokens = tokenize(tiny, TEXT)
    with Engine(tiny, ONE_THREAD) as engine:
        losses = token_losses(engine, tokens, n_ctx)
    oracle = llama_cpp.Llama(str(tiny_path), n_ctx=512, n_threads=1, logits_all=True, verbose=False)
    expected: list[float] = []
    for start in range(0, len(tokens), n_ctx):
        window = tokens[start : start + n_ctx]
        oracle.reset()
        oracle.eval(window)
        rows = np.asarray(oracle.scores[: len(window)], np.float64)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        expected += [-rows[i, token] for i, token in enumerate(window[1:])]
    oracle.close()
    np.testing.assert_allclose(losses, expected, atol=0.02)


def test_one_token_has_no_loss(tiny: Model) -> None:
    with Engine(tiny, ONE_THREAD) as engine:
        assert token_losses(engine, [3], 10).shape == (0,)


def test_a_real_model_finds_english_likelier_than_noise(smollm2: Model) -> None:
    english = tokenize(smollm2, "The capital of France is Paris, and the capital of Italy is Rome.")
    with Engine(smollm2, ONE_THREAD) as engine:
        assert token_losses(engine, english, 64).mean() < 3 < token_losses(engine, english[::-1], 64).mean()


def test_a_good_file_has_no_problems(tiny_path: Path, tiny: Model) -> None:
    assert verify_gguf(tiny_path) == []
    expected = tokenize(tiny, "the cat", add_special=False)
    assert verify_gguf(tiny_path, "the cat", expected) == []


def test_other_tokens_are_told(tiny_path: Path, tiny: Model) -> None:
    expected = tokenize(tiny, "the cat", add_special=False)
    expected[1] += 1
    (problem,) = verify_gguf(tiny_path, "the cat", expected)
    assert "tokenizes the probe text otherwise" in problem and "from token 1" in problem


def test_broken_weights_are_told(tmp_path: Path) -> None:
    def change(_: Fields, tensors: Tensors) -> None:
        tensors["blk.1.attn_v.weight"][3, 5] = np.nan

    (problem,) = verify_gguf(write_tiny(tmp_path / "nan.gguf", change), "the cat")
    assert "logits are not finite" in problem


def test_a_file_that_does_not_load_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    (problem,) = verify_gguf(tmp_path / "x.gguf")
    assert "x.gguf" in problem
