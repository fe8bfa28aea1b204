"""`--override-kv KEY=TYPE:VALUE`: the options come in as text, typed changes to a file's metadata go out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gguf.constants import GGUFValueType, Keys

from ..formats.errors import PlanError
from ..formats.gguf_fields import Field

# llama.cpp keeps keys and strings of overrides in arrays of 128 bytes, one of them the final zero.
LONGEST_OVERRIDE = 127


@dataclass(frozen=True)
class KvOverride:
    """One metadata key and its new value: int, float, bool or str."""

    key: str
    value: int | float | bool | str


def parse_kv_override(text: str) -> KvOverride:
    """Parse KEY=TYPE:VALUE where TYPE is int, float, bool (true or false) or str.

    Raises PlanError where llama.cpp's string_parse_kv_override (common/common.cpp) fails, and for numbers
    that it would silently read as zero.
    """
    key, equals, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    if key == Keys.General.ALIGNMENT:
        raise PlanError(f"metadata override {text!r}: the alignment says where the tensors lie, it cannot change")
    if not (key and equals and colon) or kind not in ("int", "float", "bool", "str"):
        raise PlanError(f"metadata override {text!r} is not KEY=TYPE:VALUE with TYPE int, float, bool or str")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise PlanError(f"metadata override {text!a} is not UTF-8 text")
    if len(key.encode()) > LONGEST_OVERRIDE or len(value.encode()) > LONGEST_OVERRIDE:
        raise PlanError(f"metadata override {text!r}: key and value cannot exceed {LONGEST_OVERRIDE} bytes")
    if kind == "str":
        return KvOverride(key, value)
    if kind == "bool":
        if value not in ("true", "false"):
            raise PlanError(f"metadata override {text!r}: a bool is true or false")
        return KvOverride(key, value == "true")
    try:
        # Python reads 1_000, llama.cpp would stop at the underscore.
        number = int(value.replace("_", "?")) if kind == "int" else float(value.replace("_", "?"))
    except ValueError:
        raise PlanError(f"metadata override {text!r}: {value!r} is not a number of type {kind}") from None
    if isinstance(number, int) and abs(number) >= 2**32:
        raise PlanError(f"metadata override {text!r}: the value does not fit into 32 bits")
    return KvOverride(key, number)


def override_field(override: KvOverride) -> Field:
    """Return the field that llama.cpp's quantizer writes: integers become the absolute value as uint32."""
    value = override.value
    if isinstance(value, bool):
        return Field(value, GGUFValueType.BOOL)
    if isinstance(value, int):
        return Field(abs(value), GGUFValueType.UINT32)
    if isinstance(value, float):
        return Field(value, GGUFValueType.FLOAT32)
    return Field(value, GGUFValueType.STRING)


def apply_kv_overrides(fields: Mapping[str, Field], overrides: Iterable[KvOverride]) -> dict[str, Field]:
    """Return the metadata with the overrides applied, in llama.cpp's order: a set key moves to the end."""
    changed = dict(fields)
    for override in overrides:
        changed.pop(override.key, None)
        changed[override.key] = override_field(override)
    return changed
