"""Refusals blame the right thing: config.json and not the experts, the recipe's kind, the model that is another."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moe_gguf.formats.errors import MoeGgufError
from moe_gguf.formats.gguf_file import read_gguf
from safetensors.numpy import load_file, save_file

from ..checkpoints import Tiny, config, stored, tensors, write_checkpoint, write_safetensors
from ..command import convert, moe_gguf
from ..merge.cases import Case, write_case
from ..merge.tiny_models import Dense, write_dense
from ..oracles.llamacpp_converter import describe

ONE = Tiny(n_layer=1)


def refused(checkpoint: Path, target: Path) -> str:
    """Return the one line that a conversion ends with."""
    outcome = convert(checkpoint, target)
    assert outcome.status == 1 and outcome.stderr.count("\n") == 1, outcome.stderr
    assert not target.exists()
    return outcome.stderr


@pytest.mark.parametrize(
    ("tiny", "key", "value", "words"),
    [
        (
            ONE,
            "intermediate_size",
            48,
            ("so have all experts of layer 0", "(intermediate_size, hidden_size)", "correct it"),
        ),
        (Tiny(n_layer=1, layout="fused"), "intermediate_size", 48, ("asks for [4, 96, 64]", "intermediate_size")),
        (Tiny(n_layer=1, layout="granitemoe"), "intermediate_size", 48, ("asks for", "intermediate_size")),
        (Tiny(n_layer=1, layout="olmoe", n_head_kv=4), "intermediate_size", 48, ("so have all experts",)),
        (ONE, "num_key_value_heads", 1, ("k_proj", "(num_key_value_heads, head_dim, hidden_size)")),
        (
            Tiny(n_layer=1, layout="granitemoeshared"),
            "shared_intermediate_size",
            7,
            ("(shared_intermediate_size, hidden_size)",),
        ),
        (ONE, "hidden_act", "gelu", ("hidden_act is 'gelu'",)),
        (Tiny(n_layer=1, layout="olmoe", n_head_kv=4), "clip_qkv", 8.0, ("clip_qkv is 8.0; llama.cpp",)),
        (ONE, "rope_scaling", {"rope_type": "longrope", "factor": 2.0}, ("rope_type 'longrope' is not supported",)),
        (ONE, "rope_scaling", {"rope_type": "llama3", "factor": 2.0}, ("without original_max_position_embeddings",)),
    ],
)
def test_a_wrong_config_is_blamed_by_its_key(
    tiny: Tiny, key: str, value: Any, words: tuple[str, ...], tmp_path: Path
) -> None:
    line = refused(write_checkpoint(tmp_path / "it", tiny, **{key: value}), tmp_path / "out.gguf")
    assert all(word in line for word in words) and "merge again" not in line, line


def test_a_wrong_moe_intermediate_size_is_not_the_experts_fault(tmp_path: Path) -> None:
    assert (
        moe_gguf("merge", _random(write_case(tmp_path, Case(Dense("qwen3")))), "-o", tmp_path / "merged", "-q").status
        == 0
    )
    path = tmp_path / "merged" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"moe_intermediate_size": 32}))
    line = refused(tmp_path / "merged", tmp_path / "out.gguf")
    assert "moe_intermediate_size" in line and "correct it" in line
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mlp_only_layers": [0]}))
    assert "mlp_only_layers is [0]; llama.cpp's graph has experts in every layer" in refused(
        path.parent, tmp_path / "o.gguf"
    )


def test_one_expert_of_another_shape_is_still_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "it", ONE)
    every = tensors(ONE)
    name = "model.layers.0.block_sparse_moe.experts.2.w1.weight"
    write_safetensors(folder / "model.safetensors", every | {name: stored(np.zeros((48, 64), np.float32), "BF16")})
    assert "expert 2 of layer 0 has another shape" in refused(folder, tmp_path / "out.gguf")


def _random(path: Path, **fields: Any) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gate_mode": "random"} | fields))
    return path


def nested(folder: Path, tiny: Tiny, prefix: str, head: str, **text: Any) -> Path:
    """Write a dense model as the text model of a multimodal one, with a vision tower beside it."""
    write_checkpoint(folder, tiny)
    own = config(tiny)
    inner = {key: value for key, value in own.items() if key not in ("architectures", "tie_word_embeddings")} | text
    whole = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "text_config": inner}
    (folder / "config.json").write_text(json.dumps(whole | {"tie_word_embeddings": tiny.tied}))
    renamed = {
        head if name == "lm_head.weight" else prefix + name.removeprefix("model."): tensor
        for name, tensor in tensors(tiny).items()
    }
    tower = {"model.vision_tower.conv.weight": stored(np.ones((4, 4), np.float32), "BF16")}
    write_safetensors(folder / "model.safetensors", renamed | tower)
    return folder


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("language_model.model.", "language_model.lm_head.weight"),
        ("model.language_model.", "lm_head.weight"),
        ("model.text_model.", "lm_head.weight"),
    ],
)
@pytest.mark.parametrize("layout", ["dense", "classic"])
def test_the_text_model_of_a_multimodal_one_is_read(prefix: str, head: str, layout: str, tmp_path: Path) -> None:
    tiny = Tiny(n_layer=1, layout=layout)
    plain, inner = tmp_path / "plain.gguf", tmp_path / "inner.gguf"
    assert convert(write_checkpoint(tmp_path / "it", tiny), plain).status == 0
    outcome = moe_gguf("convert", nested(tmp_path / "x" / "it", tiny, prefix, head), "-o", inner, "--json")
    assert outcome.status == 0, outcome.stderr
    assert json.loads(outcome.stdout)["ignored"] == {
        "model.vision_tower.conv.weight": "of another part than the text model"
    }
    assert describe(inner) == describe(plain)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": {"model_type": "ministral3"}},
            ("Mistral3ForConditionalGeneration is a multimodal model", "(ministral3)", "MixtralForCausalLM"),
        ),
        (
            {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"},
            ("Gemma3ForCausalLM (model type gemma3_text)",),
        ),
        (
            {"architectures": ["BertModel"], "model_type": "bert", "num_attention_heads": None},
            ("BertModel (model type bert)",),
        ),
    ],
)
def test_another_family_is_named_before_its_keys(
    overrides: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "it", ONE)
    (folder / "config.json").write_text(json.dumps(overrides))
    line = refused(folder, tmp_path / "out.gguf")
    assert all(word in line for word in (*words, "supported are")), line


def test_a_base_of_another_family_is_named_before_its_keys(tmp_path: Path) -> None:
    path = _random(write_case(tmp_path, Case(Dense())))
    for config_of, words in (
        ({"model_type": "mistral3", "text_config": {"hidden_size": 64}}, "a multimodal model (mistral3)"),
        ({"model_type": "gpt2", "n_embd": 64}, "a model of type gpt2; mixtures are made of llama, mistral"),
    ):
        (tmp_path / "base" / "config.json").write_text(json.dumps(config_of))
        outcome = moe_gguf("convert", path, "-o", tmp_path / "out.gguf", "-q")
        assert outcome.status == 1 and words in outcome.stderr, outcome.stderr


def test_the_model_of_another_architecture_is_named(tmp_path: Path) -> None:
    path = _random(write_case(tmp_path, Case(Dense())))
    write_dense(tmp_path / "expert-1", Dense("qwen2", seed=11))
    line = moe_gguf("convert", path, "-o", tmp_path / "out.gguf", "-q").stderr
    assert f"the base {tmp_path / 'base'} is llama, {tmp_path / 'expert-1'} is qwen2" in line


def test_a_shared_expert_that_is_needed_is_asked_for_with_how(tmp_path: Path) -> None:
    path = _random(write_case(tmp_path, Case(Dense("qwen2"))))
    line = moe_gguf("convert", path, "-o", tmp_path / "out.gguf", "-q").stderr
    assert "qwen2_moe takes 1; add shared_experts: with one entry" in line and "positive_prompts" in line


@pytest.mark.parametrize(
    "content", [{"merge_method": "ties", "models": []}, {"slices": []}, {"models": [{"model": "a"}]}]
)
def test_a_recipe_for_mergekit_yaml_is_called_that(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.yml").write_text(json.dumps(content | {"base_model": "base", "dtype": "bfloat16"}))
    line = moe_gguf("convert", tmp_path / "recipe.yml", "-o", tmp_path / "out.gguf", "-q").stderr
    assert "recipes for mergekit-yaml" in line and "experts" in line


def test_what_mergekit_moe_ignores_is_ignored_and_said(tmp_path: Path) -> None:
    path = _random(write_case(tmp_path, Case(Dense())), merge_method="linear", tokenizer_source="union")
    outcome = moe_gguf("merge", path, "--check")
    said = outcome.stdout + outcome.stderr
    assert outcome.status == 0 and "merge_method means nothing to a mixture" in said and "tokenizer_source" in said


def test_shards_joined_by_cat_are_called_that(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "it", ONE)
    assert moe_gguf("convert", source, "-o", tmp_path / "a.gguf", "--split-max-size", "100K", "-q").status == 0
    shards = sorted(tmp_path.glob("a-*.gguf"))
    assert len(shards) > 1
    for name in ("joined.gguf", shards[0].name):
        joined = b"".join(shard.read_bytes() for shard in shards)
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / name).write_bytes(joined)
        with pytest.raises(MoeGgufError, match=r"shards joined by cat.*gguf-split --merge"):
            read_gguf(tmp_path / "x" / name)


def test_a_weight_that_f16_cannot_hold_is_not_the_merges_fault(tmp_path: Path) -> None:
    path = _random(write_case(tmp_path, Case(Dense(dtype="F32"))), dtype="float16")
    weights = tmp_path / "base" / "model.safetensors"
    save_file(load_file(weights) | {"model.norm.weight": np.full(64, 1e6, np.float32)}, weights)
    line = moe_gguf("convert", path, "-o", tmp_path / "out.gguf", "-q").stderr
    assert "model.norm.weight" in line and "65504" in line and "dtype: bfloat16" in line and "merge again" not in line
    checkpoint = write_checkpoint(tmp_path / "it", Tiny(n_layer=1, dtype="F16"))
    broken = tensors(Tiny(n_layer=1, dtype="F16")) | {
        "model.norm.weight": stored(np.full(64, np.inf, np.float32), "F16")
    }
    write_safetensors(checkpoint / "model.safetensors", broken)
    assert "save it as BF16" in refused(checkpoint, tmp_path / "other.gguf")
