"""The metadata of a quantized file: the source's fields come in, those that llama.cpp's quantizer writes go out.

Key by key and in its order (src/llama-quant.cpp), so that whole files can be compared.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, LlamaFileType
from gguf.constants import GGUFValueType, Keys

from ..formats.gguf_fields import Field
from ..models.tensor_types import Shaped
from .file_types import FileType
from .overrides import KvOverride, apply_kv_overrides
from .pruning import writing_order

# File types that llama.cpp guesses from the most frequent tensor type, where the names alone do not tell.
_GUESSES = {"F32": "ALL_F32", "Q3_K": "MOSTLY_Q3_K_M", "Q4_K": "MOSTLY_Q4_K_M", "Q5_K": "MOSTLY_Q5_K_M"}


def quantized_metadata(
    fields: Mapping[str, Field],
    file_type: FileType,
    tensors: Iterable[Shaped],
    *,
    kv_overrides: Iterable[KvOverride] = (),
    n_layer_left: int | None = None,
) -> dict[str, Field]:
    """Return the fields of the quantized file.

    `tensors` are the source's. `kv_overrides` are the user's, then the importance matrix's own. `n_layer_left` is
    the number of layers after pruning. Split keys are left out; those of a shard are made with its layout.
    """
    overrides = tuple(kv_overrides)
    number = file_type.ftype
    if file_type.qtype is None:
        number = _copied_file_type(apply_kv_overrides(fields, overrides), tensors)
    result = dict(fields)
    _set(result, Keys.General.QUANTIZATION_VERSION, GGML_QUANT_VERSION)
    _set(result, Keys.General.FILE_TYPE, number)
    for key in (
        Keys.Split.LLM_KV_SPLIT_NO,
        Keys.Split.LLM_KV_SPLIT_COUNT,
        Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT,
    ):
        result.pop(key, None)
    result = apply_kv_overrides(result, overrides)
    if n_layer_left is not None:
        architecture = fields[Keys.General.ARCHITECTURE].value
        _set(result, Keys.LLM.BLOCK_COUNT.format(arch=architecture), n_layer_left)
    return result


def _set(fields: dict[str, Field], key: str, value: int) -> None:
    fields.pop(key, None)
    fields[key] = Field(value, GGUFValueType.UINT32)


def _copied_file_type(fields: Mapping[str, Field], tensors: Iterable[Shaped]) -> int:
    """Return the source's file type; without one llama.cpp's guess, marked as such."""
    if given := fields.get(Keys.General.FILE_TYPE):
        return int(given.value)
    by_name = {tensor.name: tensor.qtype for tensor in tensors}
    seen: Counter[GGMLQuantizationType] = Counter()
    most, most_seen = GGMLQuantizationType.F32, 0
    for name in writing_order(by_name):
        qtype = by_name[name]
        seen[qtype] += 1
        if seen[qtype] > most_seen:
            most, most_seen = qtype, seen[qtype]
    guess = LlamaFileType.__members__.get(_GUESSES.get(most.name, f"MOSTLY_{most.name}"))
    return int(guess or LlamaFileType.ALL_F32) | int(LlamaFileType.GUESSED)
