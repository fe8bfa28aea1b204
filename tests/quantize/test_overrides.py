"""--override-kv as text: what is understood, what is refused."""

import pytest
from gguf.constants import GGUFValueType
from hypothesis import given
from hypothesis import strategies as st
from moe_gguf.formats.errors import PlanError
from moe_gguf.formats.gguf_fields import Field
from moe_gguf.quantize.overrides import KvOverride, apply_kv_overrides, parse_kv_override


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("llama.expert_used_count=int:3", "llama.expert_used_count", 3),
        ("a=int:-7", "a", -7),
        ("a=float:1e-3", "a", 0.001),
        ("a=bool:true", "a", True),
        ("a=bool:false", "a", False),
        ("a=str:b=c:d", "a", "b=c:d"),
        ("a=str:", "a", ""),
    ],
)
def test_what_is_understood(text: str, key: str, value: object) -> None:
    override = parse_kv_override(text)
    assert override == KvOverride(key, value)  # type: ignore[arg-type]
    assert type(override.value) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a=3",
        "=int:3",
        "a=u32:3",
        "a=int:x",
        "a=int:",
        "a=int:4294967296",
        "a=int:1_000",
        "a=float:x",
        "a=bool:True",
        "a=str:" + 128 * "x",
        128 * "k" + "=int:1",
        "a=str:" + 64 * "ä",
        "general.alignment=int:64",
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_kv_override(text)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_nothing_else_than_a_plan_error(text: str) -> None:
    try:
        parse_kv_override(text)
    except PlanError:
        return


def test_a_changed_key_moves_to_the_end() -> None:
    fields = {key: Field(key, GGUFValueType.STRING) for key in ("a", "b", "c")}
    changed = apply_kv_overrides(fields, [KvOverride("a", -1), KvOverride("d", 0.5)])
    assert list(changed) == ["b", "c", "a", "d"]
    assert changed["a"] == Field(1, GGUFValueType.UINT32)
    assert list(fields) == ["a", "b", "c"]
