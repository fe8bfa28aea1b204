"""Tensors captured while llama.cpp computes, against each other and against the final logits."""

import itertools
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
from moe_gguf.formats.errors import EngineError
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.losses import all_logits
from moe_gguf.runner.model import Model, tokenize
from moe_gguf.runner.tap import capture, collect

from ..loaded_models import ONE_THREAD
from .tiny_gguf import N_EMBD, N_EXPERT, N_LAYER, tiny_tensors

TEXT = "the cat and the hat in a land that had a thin can and an ant then the chin had a tan"


@pytest.mark.parametrize("n_tokens", [1, 32, 70])
def test_the_routers_choice_is_that_of_its_probabilities(tiny: Model, n_tokens: int) -> None:
    tokens = (tokenize(tiny, TEXT) * 3)[:n_tokens]
    found = capture(
        tiny, ONE_THREAD, tokens, lambda name: name.startswith(("ffn_moe_topk", "ffn_moe_probs", "ffn_norm"))
    )
    for layer in range(N_LAYER):
        topk, probabilities = found[f"ffn_moe_topk-{layer}"], found[f"ffn_moe_probs-{layer}"]
        assert (topk.shape, topk.dtype) == ((n_tokens, 2), np.int32)
        assert probabilities.shape == (n_tokens, N_EXPERT)
        assert (topk == np.argsort(-probabilities, axis=1)[:, :2]).all()
        gate = tiny_tensors()[f"blk.{layer}.ffn_gate_inp.weight"]
        scores = found[f"ffn_norm-{layer}"] @ gate.T
        softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(probabilities, softmax, atol=1e-4)


def test_what_routers_are_multiplied_by(tiny: Model) -> None:
    tokens = tokenize(tiny, TEXT)[:20]
    entered = capture(tiny, ONE_THREAD, tokens, lambda name: name.startswith("ffn_norm-"))
    found: dict[str, np.ndarray] = {}
    collect(tiny, ONE_THREAD, [tokens], lambda name: name.startswith("ffn_moe_logits-"), found.__setitem__, None, True)
    for layer in range(N_LAYER):
        np.testing.assert_array_equal(found[f"ffn_moe_logits-{layer}"], entered[f"ffn_norm-{layer}"])
    with pytest.raises(
        EngineError, match=r"l_out-1 of llama.cpp's graph of this model is no product of a matrix \(ADD"
    ):
        collect(tiny, ONE_THREAD, [tokens], lambda name: name == "l_out-1", found.__setitem__, None, True)


def test_tapping_does_not_change_the_logits(tiny: Model) -> None:
    tokens = tokenize(tiny, TEXT)
    found = capture(tiny, ONE_THREAD, tokens, lambda name: name in ("result_output", "l_out-1"))
    with Engine(tiny, ONE_THREAD) as engine:
        plain = all_logits(engine, 0, tokens)
    np.testing.assert_array_equal(found["result_output"], plain)
    assert found["l_out-1"].shape == (len(tokens), N_EMBD)


def test_batches_are_handed_over_in_order_and_apart(tiny: Model) -> None:
    tokens = tokenize(tiny, TEXT)
    seen: list[tuple[str, int]] = []
    collect(
        tiny,
        replace(ONE_THREAD, n_ubatch=8),
        [tokens[:5], tokens[:20]],
        lambda name: name.startswith("l_out"),
        lambda name, array: seen.append((name, len(array))),
    )
    graphs = [5, 8, 8, 4]
    assert seen == [(f"l_out-{layer}", length) for length in graphs for layer in range(N_LAYER)]


def test_what_the_listener_raises_comes_out(tiny: Model) -> None:
    def fail(name: str, _: np.ndarray) -> None:
        raise ValueError(name)

    with pytest.raises(ValueError, match="ffn_norm-1"):
        collect(tiny, ONE_THREAD, [[1, 2, 3]], lambda name: name == "ffn_norm-1", fail)


def test_what_the_listener_returns_takes_the_tensors_place(tiny: Model) -> None:
    seen: dict[str, np.ndarray] = {}

    def erase(name: str, array: np.ndarray) -> np.ndarray | None:
        seen[name] = array
        return np.zeros_like(array) if name == "ffn_norm-1" else None

    collect(tiny, ONE_THREAD, [tokenize(tiny, TEXT)[:9]], lambda name: name in ("ffn_norm-1", "ffn_moe_out-1"), erase)
    assert np.abs(seen["ffn_norm-1"]).max() > 0
    assert (seen["ffn_moe_out-1"] == 0).all()


@pytest.mark.parametrize(("name", "width"), [("ffn_norm-0", 3), ("ffn_moe_topk-0", 2)])
def test_a_tensor_with_gaps_or_of_another_size_is_not_replaced(tiny: Model, name: str, width: int) -> None:
    with pytest.raises(EngineError, match="cannot be replaced"):
        collect(tiny, ONE_THREAD, [[1, 2, 3, 4]], name.__eq__, lambda _, array: array[:, :width].copy())


def test_ctrl_c_stops_it_wherever_it_comes(tiny: Model) -> None:
    tokens = tokenize(tiny, TEXT)
    for wait in (0.01, 0.03, 0.05, 0.07, 0.09):
        pressed = threading.Timer(wait, signal.raise_signal, [signal.SIGINT])
        pressed.start()
        with pytest.raises(KeyboardInterrupt):
            collect(tiny, ONE_THREAD, itertools.repeat(tokens, 5000), lambda name: True, lambda name, array: None)
        pressed.join()
    assert len(capture(tiny, ONE_THREAD, tokens, lambda name: name == "result_output")["result_output"]) == len(tokens)
