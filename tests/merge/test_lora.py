"""LoRA adapters folded in while streaming, compared with PEFT's merge_and_unload; and adapters that do not fit."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_gguf.formats.checkpoint import open_tensors
from moe_gguf.formats.errors import RecipeError
from moe_gguf.formats.floats import widen
from moe_gguf.formats.safetensors import SafetensorsFile
from moe_gguf.merge.lora import change, open_lora
from moe_gguf.merge.open import open_recipe
from moe_gguf.merge.recipe import Recipe, read_recipe

from ..checkpoints import write_safetensors
from .cases import LORAS
from .tiny_models import Dense, write_dense, write_lora

GOLDEN = Path(__file__).parent / "golden" / "loras.safetensors"
CLASSIC = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def recipe_with(folder: Path, base: Path, lora: Path) -> Recipe:
    path = folder / "recipe.yml"
    experts = [{"source_model": str(base)}, {"source_model": f"{base}+{lora}"}]
    path.write_text(json.dumps({"base_model": str(base), "gate_mode": "random", "experts": experts}))
    return read_recipe(path)


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_expert_is_what_peft_merges(tmp_path: Path, name: str) -> None:
    dtype, adapter = LORAS[name]
    dense = Dense(dtype=dtype)
    base = write_dense(tmp_path / "base", dense)
    lora = write_lora(tmp_path / "lora", dense, 5, **adapter)
    source = open_recipe(recipe_with(tmp_path, base, lora)).source
    golden, dense_source = SafetensorsFile(GOLDEN), open_tensors(base)
    for part, w in CLASSIC.items():
        hf_name = f"model.layers.1.mlp.{part}.weight"
        info = golden.tensors[f"{name}/{hf_name}"]
        expected = golden.read_rows(info.name, 0, info.n_rows)
        merged = source.read_rows(f"model.layers.1.block_sparse_moe.experts.1.{w}.weight", 0, info.n_rows)
        assert merged.dtype == expected.dtype
        # A matrix product may sum in another order elsewhere: a rounding apart, never more, and seldom.
        difference = np.abs(widen(merged) - widen(expected))
        assert difference.max() <= 2.0 ** {"F32": -21, "F16": -10, "BF16": -7}[dtype] * np.abs(widen(expected)).max()
        assert (difference == 0).mean() > (0.99 if dtype != "F32" else 0.5)
        assert (merged != dense_source.read_rows(hf_name, 0, info.n_rows)).mean() > 0.5


@settings(max_examples=40, deadline=None)
@given(start=st.integers(0, 95), length=st.integers(1, 96))
def test_rows_do_not_depend_on_the_range_asked_for(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int
) -> None:
    folder = tmp_path_factory.mktemp("lora")
    dense = Dense(n_layer=1)
    base = open_tensors(write_dense(folder / "base", dense))
    lora = open_lora(write_lora(folder / "lora", dense, 3, rank=3), base)
    name, stop = "model.layers.0.mlp.up_proj.weight", min(start + length, 96)
    assert np.array_equal(change(lora, name, start, stop), change(lora, name, 0, 96)[start:stop])


def test_a_model_with_and_without_its_lora_are_two_experts(tmp_path: Path) -> None:
    dense = Dense()
    base, lora = write_dense(tmp_path / "base", dense), write_lora(tmp_path / "lora", dense, 5)
    recipe = recipe_with(tmp_path, base, lora)
    both = open_recipe(recipe).source
    assert not np.array_equal(
        both.read_rows("model.layers.0.block_sparse_moe.experts.0.w1.weight", 0, 96),
        both.read_rows("model.layers.0.block_sparse_moe.experts.1.w1.weight", 0, 96),
    )
    assert any("adapter_model" in path for path in both.identity())


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"peft_type": "LOHA"}, "of type 'LOHA'; only LORA"),
        ({"use_dora": True}, "uses use_dora, which is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "which changes the base too"),
        ({"r": 9}, "do not fit the rank 9"),
        ({"lora_alpha": None}, "lora_alpha of .* is None, not a number"),
    ],
)
def test_adapters_that_cannot_be_folded_in(tmp_path: Path, adapter: dict, message: str) -> None:
    dense = Dense()
    base = open_tensors(write_dense(tmp_path / "base", dense))
    with pytest.raises(RecipeError, match=message):
        open_lora(write_lora(tmp_path / "lora", dense, 5, **adapter), base)


def rewritten(lora: Path, rename: Callable[[str], str], extra: tuple[str, ...] = ()) -> Path:
    """Give an adapter's tensors other names, and add some."""
    path = lora / "adapter_model.safetensors"
    file = SafetensorsFile(path)
    tensors = {
        rename(name): (info.dtype, info.shape, file.read_rows(name, 0, info.n_rows).tobytes())
        for name, info in file.tensors.items()
    }
    write_safetensors(path, tensors | {name: ("F32", (2,), bytes(8)) for name in extra})
    return lora


def test_an_adapter_named_default_is_the_same(tmp_path: Path) -> None:
    dense = Dense()
    base = open_tensors(write_dense(tmp_path / "base", dense))
    plain = open_lora(write_lora(tmp_path / "plain", dense, 5), base)
    lora = write_lora(tmp_path / "named", dense, 5)
    named = open_lora(rewritten(lora, lambda name: name.replace(".weight", ".default.weight")), base)
    assert set(named.factors) == set(plain.factors)
    weight = next(iter(plain.factors))
    assert np.array_equal(change(named, weight, 0, 9), change(plain, weight, 0, 9))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector", "is of DoRA"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_B.bias", "is of lora_bias"),
        ("base_model.model.model.layers.0.mlp.up_proj.modules_to_save.weight", "replaces a whole weight of an expert"),
    ],
)
def test_what_would_be_lost_is_refused(tmp_path: Path, extra: str, words: str) -> None:
    dense = Dense()
    base = open_tensors(write_dense(tmp_path / "base", dense))
    lora = rewritten(write_lora(tmp_path / "lora", dense, 5), str, (extra,))
    with pytest.raises(RecipeError, match=words):
        open_lora(lora, base)


def test_a_lora_for_another_base_is_told(tmp_path: Path) -> None:
    base = open_tensors(write_dense(tmp_path / "base", Dense()))
    with pytest.raises(RecipeError, match=r"a LoRA for another base: it changes .*gate_proj.weight as \[128, 64\]"):
        open_lora(write_lora(tmp_path / "wide", Dense(n_ff=128), 5), base)
    with pytest.raises(RecipeError, match=r"it changes model.layers.2.* which the model does not have"):
        open_lora(write_lora(tmp_path / "deep", Dense(n_layer=3), 5), base)


def test_a_folder_that_is_no_adapter(tmp_path: Path) -> None:
    base = open_tensors(write_dense(tmp_path / "base", Dense()))
    with pytest.raises(RecipeError, match=r"no adapter_config\.json"):
        open_lora(tmp_path / "base", base)
