"""Refuses type choices that cannot be written, or not without harm: one error that says what to do instead."""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..formats.errors import ImatrixError, PlanError
from ..models.tensor_roles import Role, role_of
from ..models.tensor_types import is_quantized, row_fits
from .choices import TypeChoice

_T = GGMLQuantizationType

# Types made for intermediate results or for numbers: no encoder writes weights as them.
UNWRITABLE_TYPES = frozenset((_T.Q8_1, _T.Q8_K, _T.I8, _T.I16, _T.I32, _T.I64, _T.F64))

# Types whose encoders cannot run without an importance matrix, and those whose result would be garbage.
ENCODER_NEEDS_IMATRIX = frozenset((_T.IQ2_XXS, _T.IQ2_XS, _T.IQ1_S))
GARBAGE_WITHOUT_IMATRIX = frozenset((*ENCODER_NEEDS_IMATRIX, _T.IQ2_S, _T.IQ3_XXS, _T.IQ1_M))


def refuse_unwritable(choices: Iterable[TypeChoice]) -> None:
    """Raise PlanError for types that nothing writes, or whose blocks the rows do not fit."""
    for choice in choices:
        if not choice.converts:
            continue
        name, qtype = choice.name, choice.qtype
        if qtype in UNWRITABLE_TYPES:
            raise PlanError(f"tensor {name}: no weights are written as {qtype.name}; choose another type")
        if choice.source_qtype in UNWRITABLE_TYPES:
            raise PlanError(f"tensor {name} of type {choice.source_qtype.name} cannot be converted; keep its type")
        if not row_fits(choice.shape[0], qtype):
            raise PlanError(
                f"tensor {name}: rows of {choice.shape[0]} weights do not divide into {qtype.name}'s blocks of "
                f"{GGML_QUANT_SIZES[qtype][0]}; choose another type by {choice.reason}"
            )


def refuse_requantizing(choices: Iterable[TypeChoice]) -> None:
    """Raise PlanError when weights that are quantized already would be quantized again."""
    again = [choice for choice in choices if choice.converts and is_quantized(choice.source_qtype)]
    if again:
        raise PlanError(
            f"{len(again)} tensors are quantized already ({again[0].source_name} is "
            f"{again[0].source_qtype.name}); start from a 16-bit file, or lose quality with --allow-requantize"
        )


def refuse_garbage(choices: Sequence[TypeChoice], file_type: str, has_imatrix: bool | AbstractSet[str]) -> None:
    """Raise ImatrixError for very low-bit types without importance data, as llama.cpp does."""
    if has_imatrix is True:
        return
    for choice in choices:
        if not needs_imatrix(choice, file_type):
            continue
        if not has_imatrix:
            raise ImatrixError(
                f"tensor {choice.name} as {choice.qtype.name} would be garbage without an importance matrix; "
                "give one by --imatrix, or choose a larger type"
            )
        if choice.converts and choice.source_name not in has_imatrix:
            raise ImatrixError(
                f"the importance matrix knows nothing of {choice.source_name}, and {choice.qtype.name} would be "
                "garbage without; choose a larger type for it by --tensor-type"
            )


def needs_imatrix(choice: TypeChoice, file_type: str) -> bool:
    """Tell whether a choice needs importance data (llama.cpp's tensor_requires_imatrix, and its encoders)."""
    if choice.kept:
        return False
    if role_of(choice.name) in (Role.TOKEN_EMBD, Role.OUTPUT):
        return choice.converts and choice.qtype in ENCODER_NEEDS_IMATRIX
    if choice.qtype == _T.Q2_K:
        return file_type == "Q2_K_S"
    return choice.qtype in GARBAGE_WITHOUT_IMATRIX
