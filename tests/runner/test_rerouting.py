"""A mixture run with other routers, against files that have them and against its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.errors import EngineError
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.losses import logit_blocks, token_losses
from moe_gguf.runner.model import Model, tokenize
from moe_gguf.runner.rerouting import Route, by_routers, enter_routers, rerouted, rerouted_losses, to_expert
from moe_gguf.runner.tap import decode_each

from ..loaded_models import ONE_THREAD
from .tiny_gguf import N_EMBD, N_EXPERT, N_LAYER, Fields, Tensors, tiny_tensors, write_tiny

TEXT = "the cat and the hat in a land that had a thin can and an ant then the chin had a tan"
ROUTER = "blk.{layer}.ffn_gate_inp.weight"
OPTIONS = replace(ONE_THREAD, n_ctx=64)


def own_routers() -> np.ndarray:
    """Return the tiny model's routers."""
    return np.stack([tiny_tensors()[ROUTER.format(layer=layer)] for layer in range(N_LAYER)])


def losses_of(path: Path, tokens: list[int]) -> np.ndarray:
    """Return the losses of a file as it is."""
    with Model(path, OPTIONS) as model, Engine(model, OPTIONS) as engine:
        return token_losses(engine, tokens, 64)


def test_its_own_routers_change_nothing(tiny: Model, tiny_path: Path) -> None:
    tokens = tokenize(tiny, TEXT) * 3
    found = rerouted_losses(tiny, OPTIONS, tokens, by_routers(own_routers()))
    np.testing.assert_allclose(found, losses_of(tiny_path, tokens), atol=1e-4)


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_other_routers_are_those_of_a_file_that_has_them(tiny: Model, tmp_path: Path, factor: float) -> None:
    tokens = tokenize(tiny, TEXT) * 3
    routers = np.random.default_rng(5).standard_normal((N_LAYER, N_EXPERT, N_EMBD)).astype(np.float32)
    changed = {ROUTER.format(layer=i): np.float32(factor) * router for i, router in enumerate(routers)}
    other = write_tiny(tmp_path / "other.gguf", lambda _, tensors: tensors.update(changed))
    found = rerouted_losses(tiny, OPTIONS, tokens, by_routers(routers, factor))
    np.testing.assert_allclose(found, losses_of(other, tokens), atol=1e-4)
    assert np.abs(found - losses_of(tiny.path, tokens)).max() > 0.1


@pytest.mark.parametrize("expert", range(N_EXPERT))
def test_one_expert_alone_is_a_mixture_of_copies_of_it(tiny: Model, tmp_path: Path, expert: int) -> None:
    tokens = tokenize(tiny, TEXT)
    copies = {
        name: np.stack([tensor[expert]] * N_EXPERT) for name, tensor in tiny_tensors().items() if "_exps." in name
    }
    alone = write_tiny(tmp_path / "alone.gguf", lambda _, tensors: tensors.update(copies))
    found = rerouted_losses(tiny, OPTIONS, tokens, to_expert(expert, N_EXPERT))
    np.testing.assert_allclose(found, losses_of(alone, tokens), atol=1e-3)


def test_every_place_comes_with_the_token_after_it(tiny: Model) -> None:
    tokens = tokenize(tiny, TEXT)
    windows = [tokens[:40], tokens[:1], tokens[5:20]]
    seen: list[tuple[int, list[int]]] = []
    with rerouted(tiny, replace(OPTIONS, n_ubatch=16), by_routers(own_routers())) as engine:
        for window in windows:
            engine.forget(0)
            for start, logits in logit_blocks(engine, 0, window):
                seen.append((len(logits), window[start + 1 : start + 1 + len(logits)]))
    assert [length for length, _ in seen] == [16, 16, 8, 1, 15]
    assert [following for _, following in seen] == [tokens[1:17], tokens[17:33], tokens[33:40], [], tokens[6:20]]


def test_routers_see_what_enters_them(tiny: Model) -> None:
    shapes: list[tuple[int, tuple[int, ...]]] = []

    def watch(route: Route) -> Route:
        def watched(layer: int, x: np.ndarray) -> np.ndarray:
            shapes.append((layer, x.shape))
            return route(layer, x)

        return watched

    rerouted_losses(tiny, OPTIONS, tokenize(tiny, TEXT)[:20], watch(by_routers(own_routers())))
    assert shapes == [(layer, (20, N_EMBD)) for layer in range(N_LAYER)]


def as_dbrx(fields: Fields, tensors: Tensors) -> None:
    """Make a DBRX of the tiny llama: its graph does not call what enters a router ffn_norm."""
    fields["general.architecture"] = "dbrx"
    for key in [key for key in fields if key.startswith("llama.")]:
        fields[key.replace("llama.", "dbrx.")] = fields.pop(key)
    fields |= {"dbrx.attention.layer_norm_epsilon": 1e-5, "dbrx.attention.clamp_kqv": 8.0}
    for layer in range(N_LAYER):
        name = f"blk.{layer}.{{}}.weight".format
        tensors[name("attn_qkv")] = np.concatenate([tensors.pop(name(f"attn_{part}")) for part in "qkv"])
        tensors[name("attn_output_norm")] = tensors.pop(name("ffn_norm"))


def test_what_enters_routers_is_found_whatever_a_graph_calls_it(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "dbrx.gguf", as_dbrx)
    with Model(path, OPTIONS) as model:
        tokens = tokenize(model, TEXT)
        found = rerouted_losses(model, OPTIONS, tokens, by_routers(own_routers()))
        others = rerouted_losses(model, OPTIONS, tokens, by_routers(own_routers()[:, ::-1]))
    np.testing.assert_allclose(found, losses_of(path, tokens), atol=1e-4)
    assert np.abs(others - found).max() > 0.1


def test_a_dense_model_has_no_routers(smollm2: Model) -> None:
    with pytest.raises(EngineError, match="no routers"):
        rerouted_losses(smollm2, OPTIONS, [1, 2, 3], to_expert(0, 4))


def test_routers_are_entered_without_the_rest(tiny: Model) -> None:
    tokens = tokenize(tiny, TEXT)
    seen: dict[str, list[np.ndarray]] = {"all": [], "until the last router": []}

    def watching(name: str) -> Route:
        def route(layer: int, x: np.ndarray) -> np.ndarray:
            seen[name].append(x)
            return by_routers(own_routers())(layer, x)

        return route

    with rerouted(tiny, OPTIONS, watching("all")) as engine:
        decode_each(engine, [tokens[:40], tokens[:50]])
    enter_routers(tiny, OPTIONS, [tokens[:40], tokens[:50]], watching("until the last router"), N_LAYER)
    for one, other in zip(*seen.values(), strict=True):
        np.testing.assert_array_equal(one, other)
