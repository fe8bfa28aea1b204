"""Whether a file's metadata is what its source gives: the fields of both plans come in, problems go out.

What describes a model to people (general.name, general.tags, ...) may be added or left out by whoever published a file;
what decides how it runs (hyper-parameters, tokenizer, chat template) may not.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gguf.constants import GGML_QUANT_VERSION, Keys

from ..formats.gguf_fields import Field, pack_value
from ..writer.gguf_source import SPLIT_KEYS
from .problems import Kind, Problem

QUANTIZE = "quantize."
DECIDES = frozenset((Keys.General.ARCHITECTURE, Keys.General.ALIGNMENT, Keys.General.TYPE))
DESCRIBES = frozenset(
    value for key, value in vars(Keys.General).items() if not key.startswith("_") and value not in DECIDES
)
# general.base_model.{id}.name and its kin are templates in the package.
NUMBERED = re.compile(r"general\.(base_model|dataset)\.(count|\d+\.[a-z_]+)")


def metadata_problems(theirs: Mapping[str, Field], ours: Mapping[str, Field]) -> Iterator[Problem]:
    """Yield the fields that a file has otherwise than its source."""
    own = {Keys.General.FILE_TYPE, Keys.General.QUANTIZATION_VERSION, *SPLIT_KEYS}
    version = theirs.get(Keys.General.QUANTIZATION_VERSION)
    if version is not None and version.value != GGML_QUANT_VERSION:
        message = f"{Keys.General.QUANTIZATION_VERSION} is {version.value}, not {GGML_QUANT_VERSION}"
        yield Problem(Kind.METADATA, message)
    for key in (*ours, *(key for key in theirs if key not in ours)):
        if key in own or key.startswith(QUANTIZE):
            continue
        describes = key in DESCRIBES or NUMBERED.fullmatch(key) is not None
        if key not in theirs:
            if not describes:
                yield Problem(Kind.METADATA, f"{key} is missing, which the source has")
        elif key not in ours:
            if not describes:
                yield Problem(Kind.METADATA, f"{_short(key)} is there, which the source has not")
        elif difference := _difference(theirs[key], ours[key]):
            yield Problem(Kind.DESCRIPTION if describes else Kind.METADATA, f"{key}{difference}")


def _difference(one: Field, other: Field) -> str:
    """Return in words how a field differs from the source's, "" when it does not."""
    if (one.type, one.item_type) != (other.type, other.item_type):
        return f" is of type {one.type.name}, not {other.type.name}"
    # A checkpoint's 1e-05 is a float32 in the file; vocabularies are long, so that packing them is the second question.
    if one.value == other.value or pack_value(one.value, one.type, one.item_type) == pack_value(
        other.value, other.type, other.item_type
    ):
        return ""
    if isinstance(one.value, (list, tuple)) and isinstance(other.value, (list, tuple)):
        pairs = enumerate(zip(one.value, other.value, strict=False))
        at = next((at for at, (a, b) in pairs if a != b), min(len(one.value), len(other.value)))
        if len(one.value) != len(other.value):
            return f" has {len(one.value)} items, the source's {len(other.value)}; item {at} is the first that differs"
        return f", item {at} is {_short(one.value[at])}, not {_short(other.value[at])}"
    if isinstance(one.value, str) and len(one.value) > 60:
        at = next((i for i, (a, b) in enumerate(zip(one.value, str(other.value), strict=False)) if a != b), 0)
        return f" differs from character {at} on: {_short(one.value[at:])}, not {_short(str(other.value)[at:])}"
    return f" is {_short(one.value)}, not {_short(other.value)}"


def _short(value: Any) -> str:
    return f"{value!r:.60}"
