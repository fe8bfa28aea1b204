"""What mixes know of a model."""

import pytest
from gguf import GGMLQuantizationType
from moe_gguf.formats.errors import PlanError
from moe_gguf.quantize.facts import facts_of

T = GGMLQuantizationType


def test_facts_of_a_model_come_from_its_first_layer() -> None:
    metadata = {"general.architecture": "llama", "llama.block_count": 80, "llama.attention.head_count": [64, 1]}
    facts = facts_of({**metadata, "llama.attention.head_count_kv": [8, 1]}, ["output.weight"])
    assert (facts.n_gqa, facts.seventy_b, facts.tied, facts.n_expert) == (8, True, False, 0)
    assert facts_of(metadata, []).n_gqa == 1
    assert not facts_of({**metadata, "llama.expert_count": 8}, []).seventy_b
    for broken in ({}, {"general.architecture": "llama"}):
        with pytest.raises(PlanError):
            facts_of(broken, [])
