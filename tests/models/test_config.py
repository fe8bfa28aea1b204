"""config.json of every spelling becomes the same numbers; impossible ones are refused by the key's name."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_gguf.formats.errors import CheckpointError
from moe_gguf.models.config import read_config
from moe_gguf.models.model_config import ModelConfig

from .. import checkpoints
from ..checkpoints import Tiny

MIXTRAL = checkpoints.config(Tiny())
QWEN = MIXTRAL | {"architectures": ["Qwen2MoeForCausalLM"]}


def changed(**keys: Any) -> dict[str, Any]:
    """Return a Mixtral's config with keys changed; None removes one."""
    return {key: value for key, value in (MIXTRAL | keys).items() if value is not None}


def test_the_numbers_of_a_mixtral() -> None:
    config = read_config(MIXTRAL)
    assert config == ModelConfig(
        hf_architecture="MixtralForCausalLM",
        n_layer=2,
        n_embd=64,
        n_ff=96,
        n_head=4,
        n_head_kv=2,
        n_vocab=512,
        head_dim=None,
        n_ctx=256,
        rms_norm_eps=1e-5,
        rope={"rope_theta": 10000.0},
        tie_word_embeddings=False,
        n_expert=4,
        n_expert_used=2,
        n_ff_expert=None,
        n_ff_shared=None,
        n_expert_shared=0,
        n_layer_dense=0,
    )
    assert config.n_embd_head == 16 and config.stated_head_dim is None


@pytest.mark.parametrize(
    ("config", "attribute", "value"),
    [
        (changed(num_local_experts=None, num_experts=8), "n_expert", 8),
        (changed(num_local_experts=None, n_routed_experts=16), "n_expert", 16),
        (changed(num_local_experts=None, num_experts_per_tok=None), "n_expert", 8),
        (changed(architectures=["LlamaForCausalLM"]), "n_expert", 0),
        (changed(num_experts_per_tok=None), "n_expert_used", 2),
        (changed(num_attention_heads=8, num_key_value_heads=None), "n_head_kv", 8),
        (MIXTRAL | {"num_key_value_heads": None}, "n_head_kv", 4),
        (changed(head_dim=32), "n_embd_head", 32),
        (changed(architectures=["LlamaForCausalLM"]), "stated_head_dim", 16),
        (changed(max_position_embeddings=None), "n_ctx", 131072),
        (changed(rms_norm_eps=None), "rms_norm_eps", 1e-5),
        (changed(hidden_act="swish"), "n_embd", 64),
        (QWEN | {"shared_expert_intermediate_size": 24}, "n_ff_shared", 24),
        (QWEN | {"moe_intermediate_size": 48}, "n_ff_expert", 48),
        (changed(moe_intermediate_size=48), "n_ff_exp", 96),
        (QWEN | {"norm_topk_prob": True}, "norm_topk_prob", True),
        (changed(rope_theta=None), "rope", {"rope_theta": 1e6}),
        (changed(rope_theta=1000000), "rope", {"rope_theta": 1e6}),
        (changed(rope_theta=None, rope_parameters={"rope_theta": 5e5}), "rope", {"rope_theta": 5e5}),
        (
            changed(rope_scaling={"type": "linear", "factor": 2.0}),
            "rope",
            {"type": "linear", "rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        ),
        (
            changed(rope_theta=None, rope_parameters={"full_attention": {"rope_theta": 7.0, "rope_type": "default"}}),
            "rope",
            {"rope_theta": 7.0, "rope_type": "default"},
        ),
        (
            changed(rope_scaling={"rope_type": "yarn"}, original_max_position_embeddings=4096),
            "rope",
            {"rope_type": "yarn", "original_max_position_embeddings": 4096, "rope_theta": 10000.0},
        ),
    ],
)
def test_every_spelling_is_understood(config: dict[str, Any], attribute: str, value: Any) -> None:
    assert getattr(read_config(config), attribute) == value


def test_old_and_new_transformers_say_the_same() -> None:
    old, new = (read_config(checkpoints.config(Tiny(spelling=spelling))) for spelling in ("old", "new"))
    assert {**vars(old), "rope": {}} == {**vars(new), "rope": {}}
    assert old.rope["rope_theta"] == new.rope["rope_theta"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (changed(hidden_size=None), "hidden_size is missing"),
        (changed(num_hidden_layers=0), "num_hidden_layers is 0, not a whole number of at least 1"),
        (changed(vocab_size=-5), "vocab_size is -5"),
        (changed(num_attention_heads="4"), "num_attention_heads is '4'"),
        (changed(num_attention_heads=4.0), "num_attention_heads is 4.0"),
        (changed(num_attention_heads=True), "num_attention_heads is True"),
        (changed(intermediate_size=2**31), "intermediate_size is 2147483648"),
        (changed(num_attention_heads=4, num_key_value_heads=3), "not a multiple of num_key_value_heads 3"),
        (changed(hidden_size=66), "not a multiple of num_attention_heads"),
        (changed(head_dim=15), "cannot be rotated in pairs"),
        (changed(num_experts_per_tok=5), "more than the 4 experts"),
        (changed(hidden_act="gelu"), "hidden_act is 'gelu'"),
        (changed(architectures=[]), "architectures is []"),
        (changed(architectures="MixtralForCausalLM"), "architectures is 'MixtralForCausalLM'"),
        (changed(rms_norm_eps=0), "rms_norm_eps is 0, not a positive number"),
        (changed(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
        (changed(rms_norm_eps=1e-300), "that float32 can hold"),
        (changed(rope_theta=10**400), "rope_theta is an enormous integer"),
        (changed(rope_theta="10000"), "rope_theta is '10000'"),
        (changed(rope_scaling=[1]), "rope_parameters is [1], not an object"),
    ],
)
def test_impossible_configs_are_refused_by_the_key(config: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_config(config, "Model/config.json")
    assert words in str(caught.value) and str(caught.value).startswith("Model/config.json: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = [*MIXTRAL, "rope_parameters", "rope_scaling", "head_dim", "num_experts", "n_shared_experts", "norm_topk_prob"]


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_any_value_is_read_or_refused(changes: dict[str, Any]) -> None:
    try:
        config = read_config(MIXTRAL | changes)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert config.n_embd_head > 0 and config.n_head % config.n_head_kv == 0
