"""--tensor-type as text, and types for rows of odd length."""

import pytest
from gguf import GGMLQuantizationType
from moe_gguf.formats.errors import PlanError
from moe_gguf.models.tensor_types import parse_tensor_type_option
from moe_gguf.quantize.fallback import fitting_type

T = GGMLQuantizationType


@pytest.mark.parametrize("text", ["attn_v", "=q8_0", "attn_v=", "attn_(=q8_0", "attn_v=q9_9"])
def test_broken_tensor_type_options(text: str) -> None:
    with pytest.raises(PlanError):
        parse_tensor_type_option(text)


def test_tensor_type_options_are_lower_case_patterns() -> None:
    assert parse_tensor_type_option(r"BLK\.1=Q8_0") == (r"blk\.1", T.Q8_0)
    assert parse_tensor_type_option("a=b=bf16"[2:]) == ("b", T.BF16)


def test_rows_that_fit_nothing_become_half_precision() -> None:
    assert fitting_type("t", 100, T.Q4_K) is T.F16
    assert fitting_type("t", 100, T.Q8_0) is T.F16
    assert fitting_type("t", 32, T.Q4_K) is T.Q5_0
