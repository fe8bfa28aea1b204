"""llama.cpp's file types: a name that users know comes in, its number and base tensor type go out.

The names are those of llama.cpp's `llama-quantize` (tools/quantize/quantize.cpp), any case, aliases included.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from ..formats.errors import PlanError


@dataclass(frozen=True)
class FileType:
    """A mix's name, number and base tensor type; `qtype` is None for COPY, which keeps all types."""

    name: str
    ftype: int
    qtype: GGMLQuantizationType | None
    description: str
    aliases: tuple[str, ...] = ()
    needs_imatrix: bool = False

    @property
    def bits_per_weight(self) -> float | None:
        """Return the bits per weight of the base tensor type; a whole file differs by its mixture."""
        if self.qtype is None:
            return None
        block_size, type_size = GGML_QUANT_SIZES[self.qtype]
        return 8 * type_size / block_size


# Name, base tensor type, description; the numbers follow from the names in gguf's LlamaFileType.
_NAMES: Sequence[tuple[str, str, str]] = (
    ("F32", "F32", "single precision"),
    ("F16", "F16", "half precision"),
    ("BF16", "BF16", "bfloat16, the precision most checkpoints have"),
    ("Q8_0", "Q8_0", "8 bits, blocks of 32; nearly lossless"),
    ("Q6_K", "Q6_K", "K-quant, all tensors alike"),
    ("Q5_K_M", "Q5_K", "K-quant mixture, sensitive tensors Q6_K"),
    ("Q5_K_S", "Q5_K", "K-quant, output Q6_K"),
    ("Q5_1", "Q5_1", "blocks of 32 with a minimum"),
    ("Q5_0", "Q5_0", "blocks of 32"),
    ("Q4_K_M", "Q4_K", "K-quant mixture, sensitive tensors Q6_K; the usual choice"),
    ("Q4_K_S", "Q4_K", "K-quant mixture, first layers Q5_K"),
    ("Q4_1", "Q4_1", "blocks of 32 with a minimum"),
    ("Q4_0", "Q4_0", "blocks of 32"),
    ("IQ4_NL", "IQ4_NL", "non-linear levels, blocks of 32"),
    ("IQ4_XS", "IQ4_XS", "non-linear levels, blocks of 256"),
    ("MXFP4_MOE", "MXFP4", "experts MXFP4, everything else Q8_0"),
    ("Q3_K_L", "Q3_K", "K-quant mixture, sensitive tensors Q5_K"),
    ("Q3_K_M", "Q3_K", "K-quant mixture, sensitive tensors Q4_K and Q5_K"),
    ("Q3_K_S", "Q3_K", "K-quant, output Q6_K"),
    ("IQ3_M", "IQ3_S", "codebook mixture, sensitive tensors Q4_K"),
    ("IQ3_S", "IQ3_S", "codebook, output Q6_K"),
    ("IQ3_XS", "IQ3_S", "codebook mixture with IQ3_XXS"),
    ("IQ3_XXS", "IQ3_XXS", "codebook mixture with IQ2_S"),
    ("Q2_K", "Q2_K", "K-quant mixture, sensitive tensors Q3_K and Q4_K"),
    ("Q2_K_S", "Q2_K", "K-quant, first layers Q4_K"),
    ("IQ2_M", "IQ2_S", "codebook mixture with IQ3_S"),
    ("IQ2_S", "IQ2_XS", "codebook mixture with IQ3_S"),
    ("IQ2_XS", "IQ2_XS", "codebook mixture with Q2_K"),
    ("IQ2_XXS", "IQ2_XXS", "codebook mixture with Q2_K"),
    ("Q2_0", "Q2_0", "2 bits, blocks of 64"),
    ("TQ2_0", "TQ2_0", "for models trained with ternary weights"),
    ("IQ1_M", "IQ1_M", "codebook mixture with IQ2_XXS"),
    ("TQ1_0", "TQ1_0", "for models trained with ternary weights, packed tighter"),
    ("IQ1_S", "IQ1_S", "codebook mixture with IQ2_XXS"),
    ("Q1_0", "Q1_0", "for models trained with binary weights, blocks of 128"),
)

_ALIASES = {"Q3_K_M": ("Q3_K",), "Q4_K_M": ("Q4_K",), "Q5_K_M": ("Q5_K",)}

# File types some tensor of which llama.cpp refuses to write without an importance matrix.
_NEED_IMATRIX = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}


def _file_types() -> tuple[FileType, ...]:
    """Return the file types whose tensor type the installed gguf package can describe."""
    known = GGMLQuantizationType.__members__
    numbers = {member.name.split("_", 1)[1]: member.value for member in LlamaFileType if "_" in member.name}
    return tuple(
        FileType(
            name=name,
            ftype=numbers[name],
            qtype=known[qtype],
            description=description,
            aliases=_ALIASES.get(name, ()),
            needs_imatrix=name in _NEED_IMATRIX,
        )
        for name, qtype, description in _NAMES
        if qtype in known and name in numbers
    )


COPY = FileType("COPY", int(LlamaFileType.ALL_F32), None, "copies every tensor as it is")
FILE_TYPES: tuple[FileType, ...] = (*_file_types(), COPY)


def parse_file_type(name: str) -> FileType:
    """Find the file type called `name` (any case, aliases too).

    Raises PlanError with the closest names when there is none.
    """
    by_name = {alias: each for each in FILE_TYPES for alias in (each.name, *each.aliases)}
    wanted = name.strip().upper()
    if wanted in by_name:
        return by_name[wanted]
    if wanted in {row[0] for row in _NAMES}:
        raise PlanError(f"the installed gguf package does not know the tensor type of {wanted}; upgrade gguf")
    close = difflib.get_close_matches(wanted, by_name, n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"known are {', '.join(by_name)}"
    raise PlanError(f"there is no file type {name!r}; {hint}")
