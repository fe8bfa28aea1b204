"""The KV cache's rows and bytes: heads for all layers or per layer, quantized or not, or nothing known."""

from typing import Any

from gguf.constants import GGMLQuantizationType, Keys
from moe_gguf.models.kv_cache import cache_rows, rounded_context

F16, Q8_0 = GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0
SMALL: dict[str, Any] = {Keys.LLM.BLOCK_COUNT: 2, Keys.LLM.EMBEDDING_LENGTH: 256, Keys.Attention.HEAD_COUNT: 4}


def test_contexts_are_rounded_up() -> None:
    assert [rounded_context(n) for n in (1, 256, 257)] == [256, 256, 512]


def test_rows_follow_from_heads() -> None:
    assert cache_rows(SMALL.get).k_rows == (256, 256)
    per_layer = cache_rows((SMALL | {Keys.Attention.HEAD_COUNT_KV: [1, 2]}).get)
    assert (per_layer.k_rows, per_layer.v_rows) == ((64, 128), (64, 128))
    odd = cache_rows((SMALL | {Keys.Attention.KEY_LENGTH: 32, Keys.Attention.KEY_LENGTH_MLA: 8}).get)
    assert (odd.k_rows, odd.v_rows, odd.k_head, odd.v_head) == ((128, 128), (0, 0), 32, 64)


def test_bytes_are_those_of_the_types() -> None:
    assert cache_rows(SMALL.get).layer_bytes(300, F16, Q8_0) == [512 * (256 * 2 + 256 * 34 // 32)] * 2


def test_headers_that_say_nothing_need_no_cache() -> None:
    assert cache_rows({}.get).layer_bytes(256, F16, F16) == []
    assert cache_rows((SMALL | {Keys.Attention.HEAD_COUNT_KV: "many"}).get).k_rows == (0, 0)
