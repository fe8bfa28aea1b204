"""Merges compared with real mergekit-moe's: every tensor's bytes, config.json, and gates (goldens: tests/oracles)."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moe_gguf.formats.checkpoint import Checkpoint
from moe_gguf.formats.source import TensorSource
from moe_gguf.merge.gates import Gates
from moe_gguf.merge.open import open_recipe
from moe_gguf.merge.recipe import read_recipe

from .cases import CASES, gates_of, write_case
from .tiny_gguf import convert

GOLDEN = Path(__file__).parent / "golden"
MERGES: dict[str, Any] = json.loads((GOLDEN / "mergekit.json").read_text())
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# What transformers writes of its own accord, or spells in another way than the base did.
UNSAID = {
    "transformers_version",
    "dtype",
    "rope_parameters",
    "attention_dropout",
    "initializer_range",
    "use_cache",
    "pad_token_id",
    "router_jitter_noise",
    "layer_types",
    "attention_bias",
    "mlp_bias",
    "pretraining_tp",
    "output_hidden_states",
    "return_dict",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "id2label",
    "label2id",
    "problem_type",
    "output_attentions",
    "num_local_experts",
    "max_window_layers",
}


def opened(folder: Path, name: str, layout: str) -> Checkpoint:
    case = CASES[name]
    every = gates_of(case)
    recipe = read_recipe(write_case(folder, case))
    n_shared = len(recipe.shared_experts)
    gates = Gates(every[:, : case.n_expert], every[:, case.n_expert : case.n_expert + n_shared] if n_shared else None)
    return open_recipe(recipe, gates, layout=layout)


def rows_of(source: TensorSource, name: str, step: int) -> bytes:
    """Return a tensor's bytes, read `step` rows at a time."""
    n_rows = source.tensors[name].n_rows
    slabs = [source.read_rows(name, start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
    return b"".join(slab.tobytes() for slab in slabs)


def described(source: TensorSource, names: list[str], shape: tuple[int, ...], step: int = 37) -> list[Any]:
    data = b"".join(rows_of(source, name, step) for name in names)
    return [DTYPES[source.tensors[names[0]].dtype], list(shape), hashlib.sha256(data).hexdigest()[:16]]


def is_fused(name: str) -> bool:
    return any(tensor.endswith("gate_up_proj") for tensor in MERGES[name]["tensors"])


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_mergekits(tmp_path: Path, name: str) -> None:
    source = opened(tmp_path, name, "fused" if is_fused(name) else "classic").source
    golden = MERGES[name]["tensors"]
    assert sorted(source.tensors) == sorted(golden)
    for tensor, expected in golden.items():
        assert described(source, [tensor], source.tensors[tensor].shape) == expected, tensor


@pytest.mark.parametrize("name", [name for name in CASES if is_fused(name)])
def test_classic_names_hold_the_same_rows(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    source = opened(tmp_path, name, "classic").source
    golden = MERGES[name]["tensors"]
    is_mixtral = any("block_sparse_moe" in tensor for tensor in source.tensors)
    experts = "block_sparse_moe.experts" if is_mixtral else "mlp.experts"
    gate, up, down = ("w1", "w3", "w2") if is_mixtral else ("gate_proj", "up_proj", "down_proj")
    for layer in range(case.base.n_layer):
        prefix = f"model.layers.{layer}."
        every = range(case.n_expert)
        gate_up = [f"{prefix}{experts}.{e}.{part}.weight" for e in every for part in (gate, up)]
        downs = [f"{prefix}{experts}.{e}.{down}.weight" for e in every]
        fused = golden[f"{prefix}mlp.experts.gate_up_proj"]
        assert described(source, gate_up, tuple(fused[1])) == fused
        fused = golden[f"{prefix}mlp.experts.down_proj"]
        assert described(source, downs, tuple(fused[1])) == fused
        router = "block_sparse_moe.gate.weight" if is_mixtral else "mlp.gate.weight"
        shape = source.tensors[prefix + router].shape
        assert described(source, [prefix + router], shape) == golden[f"{prefix}mlp.gate.weight"]


@pytest.mark.parametrize("name", CASES)
def test_config_says_what_mergekits_says(tmp_path: Path, name: str) -> None:
    config = opened(tmp_path, name, "classic").config
    golden = MERGES[name]["config"]
    for key in golden.keys() - UNSAID:
        assert config.get(key) == golden[key], key
    assert config.get("torch_dtype") == golden.get("dtype")
    assert config["rope_theta"] == golden["rope_parameters"]["rope_theta"]
    assert (config.get("rope_scaling") or {"rope_type": "default"})["rope_type"] == golden["rope_parameters"][
        "rope_type"
    ]
    if "num_local_experts" in golden:
        assert golden["num_local_experts"] in (config.get("num_local_experts"), config.get("num_experts"))


@pytest.mark.parametrize("name", ["mixtral-mistral", "mixtral-llama-f16"])
def test_cheap_embed_gates_are_mergekits(tmp_path: Path, name: str) -> None:
    path = write_case(tmp_path, CASES[name])
    recipe = json.loads(path.read_text()) | {"gate_mode": "cheap_embed", "dtype": "float32"}
    path.write_text(json.dumps(recipe))
    source = open_recipe(read_recipe(path)).source
    golden = np.array(json.loads((GOLDEN / "gates.json").read_text())[name])
    for layer in range(2):
        router = source.read_rows(f"model.layers.{layer}.block_sparse_moe.gate.weight", 0, 3)
        np.testing.assert_allclose(router, golden, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if is_fused(name)])
def test_both_layouts_become_the_same_gguf(tmp_path: Path, name: str) -> None:
    classic = convert(opened(tmp_path, name, "classic"), tmp_path / "classic.gguf", "bf16")
    fused = convert(opened(tmp_path, name, "fused"), tmp_path / "fused.gguf", "bf16")
    assert classic.read_bytes() == fused.read_bytes()
