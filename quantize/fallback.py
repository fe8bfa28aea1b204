"""What becomes of a tensor whose rows do not divide into a type's blocks: the next type that they fit."""

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..formats.errors import PlanError
from ..models.tensor_types import row_fits

_T = GGMLQuantizationType

# Types with blocks of more than 32 weights, and the nearest type with blocks of 32.
_FALLBACKS = {
    "IQ1_S": _T.IQ4_NL,
    "IQ1_M": _T.IQ4_NL,
    "IQ2_XXS": _T.IQ4_NL,
    "IQ2_XS": _T.IQ4_NL,
    "IQ2_S": _T.IQ4_NL,
    "IQ3_XXS": _T.IQ4_NL,
    "IQ3_S": _T.IQ4_NL,
    "IQ4_XS": _T.IQ4_NL,
    "Q2_0": _T.Q4_0,
    "Q2_K": _T.Q4_0,
    "Q3_K": _T.Q4_0,
    "TQ1_0": _T.Q4_0,
    "TQ2_0": _T.Q4_0,
    "Q4_K": _T.Q5_0,
    "Q5_K": _T.Q5_1,
    "Q6_K": _T.Q8_0,
}


def fitting_type(name: str, row_length: int, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    """Return the wanted type, or what llama.cpp takes for rows that it does not fit; F16 when nothing fits.

    Raises PlanError for types that have no replacement.
    """
    if row_fits(row_length, wanted):
        return wanted
    block_size = GGML_QUANT_SIZES[wanted][0]
    if wanted.name not in _FALLBACKS and block_size > 32:
        raise PlanError(
            f"tensor {name}: rows of {row_length} weights do not divide into {wanted.name}'s blocks of "
            f"{block_size}, and nothing replaces that type; choose another one for it by --tensor-type"
        )
    replacement = _FALLBACKS.get(wanted.name, wanted)
    return replacement if row_fits(row_length, replacement) else _T.F16
