"""The types of a plain conversion: `--outtype` decides each tensor's type as llama.cpp's converter does."""

from collections.abc import Mapping

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, Keys, LlamaFileType

from ..formats.gguf_fields import Field
from ..formats.gguf_layout import TensorEntry
from ..writer.plan import Plan, PlannedTensor

OUTTYPES: Mapping[str, LlamaFileType] = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
}
ALWAYS_F32 = ("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight")


def resolve_outtype(plan: Plan, outtype: str) -> str:
    """Return the outtype that "auto" stands for: the 16-bit type of the first matrix that has one, else f16."""
    if outtype != "auto":
        return outtype
    for tensor in plan.tensors:
        if len(tensor.shape) > 1 and tensor.source_type in ("BF16", "F16"):
            return tensor.source_type.lower()
    return "f16"


def stored_type(tensor: PlannedTensor, outtype: str) -> GGMLQuantizationType:
    """Return the type of one tensor: vectors, norms and routers stay F32, odd rows fall back to F16.

    Source: ModelBase.prepare_tensors in llama.cpp's conversion/base.py.
    """
    if len(tensor.shape) == 1 or tensor.name.endswith(ALWAYS_F32) or not tensor.name.endswith(".weight"):
        return GGMLQuantizationType.F32
    qtype = GGMLQuantizationType[outtype.upper()]
    if tensor.row_length % GGML_QUANT_SIZES[qtype][0]:
        return GGMLQuantizationType.F16
    return qtype


def choose_entries(plan: Plan, outtype: str) -> tuple[TensorEntry, ...]:
    """Return what the header of a plain conversion says of each tensor; `outtype` is not "auto"."""
    return tuple(TensorEntry(tensor.name, tensor.shape, stored_type(tensor, outtype)) for tensor in plan.tensors)


def file_type_field(plan: Plan, outtype: str) -> dict[str, Field]:
    """Return general.file_type for an outtype."""
    field = plan.fields[Keys.General.FILE_TYPE]
    return {Keys.General.FILE_TYPE: Field(int(OUTTYPES[outtype]), field.type)}
