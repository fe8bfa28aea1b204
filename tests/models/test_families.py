"""Records of families: their defaults are those of transformers, and one that cannot be right fails when it is made."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import MODEL_TENSOR, Keys
from moe_gguf.formats.errors import CheckpointError
from moe_gguf.models.config import read_config
from moe_gguf.models.config_keys import REFUSED, Fixed, Key
from moe_gguf.models.families import FAMILIES
from moe_gguf.models.families.llama import MIXTRAL
from moe_gguf.models.families.qwen import QWEN3_MOE
from moe_gguf.models.family import Experts, Single, by_name
from moe_gguf.models.graphs import GRAPHS, QWEN2, Row

from ..oracles.config_defaults import GOLDEN, NOT_IN_TRANSFORMERS

EXPECTED: dict[str, dict[str, Any]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
ROOT = Path(__file__).parent.parent.parent
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 32,
    "vocab_size": 512,
}


def test_every_family_of_transformers_was_asked_for() -> None:
    assert sorted([*EXPECTED, *NOT_IN_TRANSFORMERS]) == sorted(FAMILIES)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_not_stated_is_what_transformers_takes(name: str) -> None:
    family, expected = FAMILIES[name], EXPECTED[name]
    # a text model within another may leave out its sizes too
    nothing = {"architectures": ["TheirsForConditionalGeneration"], "text_config": {"model_type": family.model_type}}
    config = read_config(nothing)
    ours = {
        key.names[0]: config.rope[key.field] if key.field in config.rope else getattr(config, key.field)
        for key in family.keys
    }
    derived = {"head_dim"} - set(expected)
    assert ours.keys() - derived <= expected.keys()
    if expected.get("head_dim"):
        ours["head_dim"] = config.n_embd_head
    assert {key: value for key, value in ours.items() if key not in derived} == {
        key: expected[key] for key in ours.keys() - derived
    }
    for fixed in family.fixed:
        assert fixed.allows(expected.get(fixed.name)), fixed.name


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_of_a_whole_model_are_never_guessed(name: str) -> None:
    family = FAMILIES[name]
    counts = {key.names[0]: 2 for key in family.keys if key.default is REFUSED} | SIZES
    assert read_config({"architectures": [name], **counts}).n_embd == 64
    for missing in counts:
        with pytest.raises(CheckpointError, match=f"{missing} is missing"):
            read_config({"architectures": [name], **{key: value for key, value in counts.items() if key != missing}})


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_graph_does_not_compute_is_refused_by_its_key(name: str) -> None:
    others = {"hidden_act": "gelu", "partial_rotary_factor": 0.5, "mlp_only_layers": [1], "decoder_sparse_step": 2}
    others |= {"moe_layer_freq": 2, "scoring_func": "sigmoid", "clip_qkv": 8.0}
    family = FAMILIES[name]
    stated = {"architectures": [name], **{key.names[0]: 2 for key in family.keys if key.default is REFUSED}, **SIZES}
    for fixed in family.fixed:
        with pytest.raises(CheckpointError, match=f"{fixed.name} is .*; llama.cpp"):
            read_config(stated | {fixed.name: others[fixed.name]})


ROUTER = MIXTRAL.router[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: replace(MIXTRAL, keys=MIXTRAL.keys[1:]),
        lambda: replace(MIXTRAL, keys=(*MIXTRAL.keys, MIXTRAL.keys[0])),
        lambda: replace(MIXTRAL, router=()),
        lambda: replace(MIXTRAL, graph=QWEN2),
        lambda: replace(MIXTRAL, attention=(*MIXTRAL.attention, MIXTRAL.attention[0])),
        lambda: replace(QWEN3_MOE, graph=MIXTRAL.graph),
        lambda: replace(ROUTER, hf_names=()),
        lambda: replace(ROUTER, hf_names=("model.gate.weight",)),
        lambda: replace(ROUTER, shape=("n_experts", "n_embd")),
        lambda: replace(ROUTER, part=(2, 2)),
        lambda: Single(MODEL_TENSOR.OUTPUT, ("lm_head.{layer}.weight",), ("n_vocab", "n_embd")),
        lambda: Experts(
            MODEL_TENSOR.FFN_UP_EXP, "model.layers.{layer}.up", ("model.layers.{layer}.x",), ("n_ff_exp", "n_embd")
        ),
        lambda: Key("n_layers", ("num_hidden_layers",)),
        lambda: Key("norm_topk_prob", ("norm_topk_prob",), kind="flag"),
        lambda: Row(Keys.LLM.VOCAB_SIZE, "vocab_size"),
        lambda: Row("general.name", "n_vocab"),
        lambda: by_name((MIXTRAL, MIXTRAL)),
    ],
)
def test_a_malformed_record_fails_when_it_is_made(make: Any) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        make()


def test_graphs_are_known_by_name() -> None:
    assert all(GRAPHS[family.name].arch is family.graph.arch for family in FAMILIES.values())


def test_null_is_the_default_of_a_fixed_key() -> None:
    fixed = Fixed("scoring_func", ("softmax",), "")
    assert fixed.allows(None) and fixed.allows("softmax") and not fixed.allows("sigmoid")


def test_the_page_about_new_families_shows_a_real_record() -> None:
    page = (ROOT / "docs" / "new-family.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert block in (ROOT / "models" / "families" / "olmoe.py").read_text(encoding="utf-8")
    known = set()
    for path in (*ROOT.glob("models/*.py"), *ROOT.glob("models/families/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name):
                known.add(node.id)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                known.add(node.name)
            elif isinstance(node, ast.arg):
                known.add(node.arg)
    theirs = {"build_moe_ffn", "llama_model_rope_type", "norm_w", "rope_freqs", "LLAMA_ROPE_TYPE_NORM"}
    named = set(re.findall(r"`([A-Za-z_]+)`", page)) - theirs
    assert named and not named - known, named - known
    for path in re.findall(r"`((?:models|tests)/[\w/]+\.py)`", page):
        assert (ROOT / path).is_file(), path
