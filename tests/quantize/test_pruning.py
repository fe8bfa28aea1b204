"""The order of tensors, and layers left out."""

import pytest
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st
from moe_gguf.formats.errors import PlanError
from moe_gguf.quantize.pruning import parse_layers, prune, writing_order

T = GGMLQuantizationType


@given(st.sets(st.integers(0, 30), min_size=2), st.data())
def test_pruning_leaves_layers_without_gaps(layers: set[int], data: st.DataObject) -> None:
    names = writing_order(["output.weight", *(f"blk.{i}.{part}.weight" for i in range(31) for part in ("a", "b"))])
    kept = sorted(set(range(31)) - layers)
    if not kept:
        return
    renamed, n_left = prune(names, data.draw(st.permutations(sorted(layers))))
    assert n_left == len(kept)
    assert renamed["output.weight"] == "output.weight"
    assert [renamed[f"blk.{i}.a.weight"] for i in range(n_left)] == [f"blk.{i}.a.weight" for i in kept]


def test_layers_to_prune_are_numbers() -> None:
    assert parse_layers("3,1,3") == (1, 3)
    for text in ("", "1,,2", "-1", "a"):
        with pytest.raises(PlanError):
            parse_layers(text)
