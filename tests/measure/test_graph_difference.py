"""Routing changed while llama.cpp computes, against the other graph's own logits; and differences against formulas."""

from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.measure.graph_difference import (
    Difference,
    asked_logits,
    asked_otherwise,
    compare,
    describe_graph_difference,
    measure,
)
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.losses import all_logits
from moe_gguf.runner.model import Model, tokenize

from ..loaded_models import ONE_THREAD
from ..runner.tiny_gguf import N_EXPERT, N_FF, Fields, Tensors, write_tiny

TEXT = "the cat and the hat in a land that had a thin can and an ant then the chin had a tan"


def asking(path: Path, **fields: object) -> Path:
    """Write a tiny `llama` whose metadata asks for something."""

    def change(metadata: Fields, _: Tensors) -> None:
        metadata |= {f"llama.{key}": value for key, value in fields.items()}

    return write_tiny(path, change)


def as_deepseek(metadata: Fields, tensors: Tensors) -> None:
    """Make a `deepseek` of the tiny `llama`, whose shared experts add nothing, and ask it to renormalize."""
    metadata["general.architecture"] = "deepseek"
    for key in [key for key in metadata if key.startswith("llama.")]:
        metadata[key.replace("llama.", "deepseek.")] = metadata.pop(key)
    numbers = {"leading_dense_block_count": 0, "expert_feed_forward_length": N_FF, "expert_shared_count": 1}
    metadata |= {f"deepseek.{key}": value for key, value in numbers.items()}
    metadata["deepseek.expert_weights_norm"] = True
    for name in [name for name in tensors if "_exps" in name]:
        tensors[name.replace("_exps", "_shexp")] = np.zeros_like(tensors[name][0])


def logits_of(path: Path, asked: bool) -> np.ndarray:
    """Return the logits of TEXT, as llama.cpp computes them or as the file asks, over several graphs."""
    with Model(path, ONE_THREAD) as model:
        tokens = tokenize(model, TEXT)
        assert len(tokens) > ONE_THREAD.n_ubatch
        if asked:
            return asked_logits(model, ONE_THREAD, tokens)
        with Engine(model, ONE_THREAD) as engine:
            return all_logits(engine, 0, tokens)


def test_a_deepseek_that_is_made_to_renormalize_is_the_llama_and_the_other_way_round(tmp_path: Path) -> None:
    llama = asking(tmp_path / "llama.gguf", expert_weights_norm=False)
    deepseek = write_tiny(tmp_path / "deepseek.gguf", as_deepseek)
    np.testing.assert_allclose(logits_of(deepseek, asked=True), logits_of(llama, asked=False), atol=1e-4)
    np.testing.assert_allclose(logits_of(llama, asked=True), logits_of(deepseek, asked=False), atol=1e-4)
    assert np.abs(logits_of(llama, asked=False) - logits_of(deepseek, asked=False)).max() > 0.1


def test_the_difference_is_measured_on_the_file(tmp_path: Path) -> None:
    path = asking(tmp_path / "llama.gguf", expert_weights_norm=False)
    with Model(path, ONE_THREAD) as model:
        measured = measure(model, ONE_THREAD, tokenize(model, TEXT))
    assert measured == compare(logits_of(path, asked=False), logits_of(path, asked=True))
    line = describe_graph_difference(path)
    assert line and "\n" not in line
    assert "renormalizing the weights of the 2 of 4 chosen experts" in line


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({}, None),
        ({"expert_weights_norm": True}, None),
        ({"expert_weights_norm": False}, False),
        ({"expert_weights_norm": False, "expert_used_count": N_EXPERT}, None),
        ({"expert_weights_norm": 3}, None),
    ],
)
def test_only_files_that_ask_otherwise_are_measured(
    fields: dict[str, object], asked: bool | None, tmp_path: Path
) -> None:
    path = asking(tmp_path / "tiny.gguf", **fields)
    assert asked_otherwise(read_gguf(path)) is asked
    assert (describe_graph_difference(path) is None) == (asked is None)


def test_differences_are_what_their_formulas_say() -> None:
    logits = np.array([[0, 0], [3, 4]], np.float32)
    asked = np.array([[np.log(3), 0], [3, 4]], np.float32)
    found = compare(logits, asked)
    rms = np.log(3) / np.sqrt(np.log(3) ** 2 + 25)
    kl = (0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)) / 2
    assert (found.rms, found.kl) == pytest.approx((rms, kl), rel=1e-6)
    assert compare(asked, asked) == Difference(0.0, 0.0, 1.0)
    assert compare(np.roll(asked, 1, axis=1), asked).same_top == 0.0
