"""Gates: mergekit's formulas on known numbers, degenerate layers, files; and routers swapped in a finished GGUF."""

from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.errors import CheckpointError, GgufError, OutputError, RecipeError
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.merge.gates import (
    Gates,
    check_gates,
    condition_numbers,
    describe_degenerate,
    from_hidden,
    load_gates,
    prompted_gates,
    random_gates,
    save_gates,
)
from moe_gguf.merge.open import open_recipe
from moe_gguf.merge.recipe import Expert, ModelReference, Recipe
from moe_gguf.merge.regate import read_routers, regate

from .tiny_gguf import write_gguf_of

STATES = {"a": np.arange(12.0).reshape(2, 3, 2), "b": np.ones((2, 1, 2)), "c": -np.ones((2, 2, 2))}


def expert(name: str, positive: tuple[str, ...], negative: tuple[str, ...] = ()) -> Expert:
    return Expert(ModelReference(name), name, positive, negative)


def test_hidden_is_the_last_token_of_each_prompt() -> None:
    gates = prompted_gates([expert("x", ("a", "b"), ("c",))], from_hidden(STATES.__getitem__, average=False))
    last = (STATES["a"][:, -1] + STATES["b"][:, -1]) / 2 - STATES["c"][:, -1]
    np.testing.assert_allclose(gates.routers[:, 0], last / np.linalg.norm(last, axis=1, keepdims=True), rtol=1e-6)


def test_hidden_avg_is_the_mean_over_tokens() -> None:
    gates = prompted_gates([expert("x", ("a",))], from_hidden(STATES.__getitem__, average=True))
    mean = STATES["a"].mean(axis=1)
    np.testing.assert_allclose(gates.routers[:, 0], mean / np.linalg.norm(mean, axis=1, keepdims=True), rtol=1e-6)


def test_shared_experts_have_gates_of_their_own() -> None:
    represent = from_hidden(STATES.__getitem__, average=False)
    gates = prompted_gates([expert("x", ("a",))], represent, [expert("s", ("b",))])
    assert gates.routers.shape == (2, 1, 2) and gates.shared is not None and gates.shared.shape == (2, 1, 2)


def test_random_gates_follow_the_seed() -> None:
    def drawn(mode: str, seed: int) -> np.ndarray:
        experts = tuple(expert(name, ()) for name in "ab")
        recipe = Recipe("r", Path(), ModelReference("m"), experts, gate_mode=mode, seed=seed)
        return random_gates(recipe, 3, 400).routers

    assert np.array_equal(drawn("random", 1), drawn("random", 1))
    assert not np.array_equal(drawn("random", 1), drawn("random", 2))
    assert 0.9 < drawn("random", 1).std() < 1.1
    assert 0.045 < np.abs(drawn("uniform_random", 1)).max() <= 0.05


def test_degenerate_layers_are_named() -> None:
    good, bad = np.eye(2, 4, dtype=np.float32), np.array([[1, 0, 0, 0], [1, 0.01, 0, 0]], np.float32)
    gates = Gates(np.stack([good, bad]))
    np.testing.assert_allclose(condition_numbers(gates)[0], 1)
    assert condition_numbers(gates)[1] > 100
    assert "layers 1 are degenerate" in str(describe_degenerate(gates))
    assert describe_degenerate(Gates(good[None])) is None
    assert "every layer" in str(describe_degenerate(Gates(bad[None])))


def test_gates_are_saved_and_read_back(tmp_path: Path) -> None:
    gates = Gates(
        np.random.default_rng(0).standard_normal((3, 2, 8)).astype(np.float32), np.ones((3, 1, 8), np.float32)
    )
    save_gates(tmp_path / "gates", gates, {"recipe": "r"})
    again = load_gates(tmp_path / "gates")
    assert np.array_equal(again.routers, gates.routers) and again.shared is not None
    assert np.array_equal(again.shared, np.ones((3, 1, 8)))
    (tmp_path / "broken").write_bytes(b"no gates")
    with pytest.raises(CheckpointError):
        load_gates(tmp_path / "broken")


def test_gates_of_another_model_are_refused() -> None:
    gates = Gates(np.zeros((2, 3, 8), np.float32))
    with pytest.raises(RecipeError, match=r"gates are \[2, 3, 8\], the mixture needs \[2, 4, 8\]"):
        check_gates(gates, 2, 4, 8, 0, "r")
    with pytest.raises(RecipeError, match="no gates for the 1 shared experts"):
        check_gates(gates, 2, 3, 8, 1, "r")
    with pytest.raises(RecipeError, match="not all finite"):
        check_gates(Gates(np.full((2, 3, 8), np.nan, np.float32)), 2, 3, 8, 0, "r")


def test_regate_changes_the_routers_and_nothing_else(tmp_path: Path) -> None:
    path = write_gguf_of(tmp_path, "mixtral-mistral")
    file, before = read_gguf(path), path.read_bytes()
    gates = Gates(np.random.default_rng(1).standard_normal((2, 3, 64)).astype(np.float32))
    done: list[int] = []
    (out,) = regate(file, gates, tmp_path / "out.gguf", advance=done.append)
    after = out.read_bytes()
    assert np.array_equal(read_routers(read_gguf(out)).routers, gates.routers)
    routers = [tensor for name, tensor in file.tensors.items() if "ffn_gate_inp" in name]
    touched = np.zeros(len(before), bool)
    for tensor in routers:
        touched[tensor.offset : tensor.offset + tensor.n_bytes] = True
    differs = np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)
    assert len(routers) == 2 and differs.any() and not (differs & ~touched).any()
    assert sum(done) == len(before)
    regate(read_gguf(out), read_routers(file), tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == before


def test_regate_refuses_what_it_must(tmp_path: Path) -> None:
    path = write_gguf_of(tmp_path, "mixtral-mistral")
    file, gates = read_gguf(path), Gates(np.ones((2, 3, 64), np.float32))
    with pytest.raises(OutputError, match="the output is the input"):
        regate(file, gates, path, force=True)
    with pytest.raises(RecipeError, match="the mixture needs"):
        regate(file, Gates(np.ones((2, 4, 64), np.float32)), tmp_path / "out.gguf")
    (tmp_path / "there.gguf").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        regate(file, gates, tmp_path / "there.gguf")
    with pytest.raises(OutputError, match="no such folder"):
        regate(file, gates, tmp_path / "nowhere" / "out.gguf")
    dense = write_gguf_of(tmp_path, "mixtral-mistral", dense=True)
    with pytest.raises(GgufError, match="not a mixture of experts"):
        regate(read_gguf(dense), gates, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*.partial"))


def test_gates_that_are_missing_are_asked_for(tmp_path: Path) -> None:
    from moe_gguf.merge.recipe import read_recipe

    from .cases import CASES, write_case

    recipe = read_recipe(write_case(tmp_path, CASES["mixtral-mistral"]))
    with pytest.raises(RecipeError, match="gate_mode hidden needs gates"):
        open_recipe(recipe)
