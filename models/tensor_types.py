"""Tensor types of GGUF by the names users write, and what types tell about rows of weights."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..formats.errors import PlanError
from ..formats.text_files import read_text_file

# Types that hold plain numbers; every other type packs weights in blocks.
PLAIN_TYPES = frozenset(GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"))


class Shaped(Protocol):
    """What a recipe must know of a tensor; a tensor of a GGUF file has it, and so has `TensorShape`."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def qtype(self) -> GGMLQuantizationType: ...  # noqa: D102


@dataclass(frozen=True)
class TensorShape:
    """A tensor's name, its shape in GGUF's order (row length first) and the type it has in the source."""

    name: str
    shape: tuple[int, ...]
    qtype: GGMLQuantizationType


def parse_tensor_type(name: str) -> GGMLQuantizationType:
    """Find the tensor type called `name`, any case ("q8_0", "Q4_K", "bf16").

    Raises PlanError with the closest names when there is none.
    """
    known = GGMLQuantizationType.__members__
    wanted = name.strip().upper()
    if wanted in known:
        return known[wanted]
    close = difflib.get_close_matches(wanted, known, n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"known are {', '.join(known)}"
    raise PlanError(f"there is no tensor type {name!r}; {hint}")


def is_quantized(qtype: GGMLQuantizationType) -> bool:
    """Tell whether the type packs weights in blocks, as ggml_is_quantized does."""
    return qtype not in PLAIN_TYPES


def row_fits(row_length: int, qtype: GGMLQuantizationType) -> bool:
    """Tell whether rows of `row_length` weights divide into the type's blocks."""
    return row_length % GGML_QUANT_SIZES[qtype][0] == 0


def read_tensor_type_file(path: Path) -> list[tuple[str, GGMLQuantizationType]]:
    """Read a file of PATTERN=TYPE words, between spaces or line breaks, as llama-quantize's --tensor-type-file does.

    Raises PlanError for a word that is none, with its line.
    """
    options = []
    for number, line in enumerate(read_text_file(path).splitlines(), 1):
        for word in line.split():
            try:
                options.append(parse_tensor_type_option(word))
            except PlanError as error:
                raise PlanError(f"{path}, line {number}: {error}") from None
    return options


def parse_tensor_type_option(text: str) -> tuple[str, GGMLQuantizationType]:
    """Parse --tensor-type PATTERN=TYPE; the pattern is an unanchored regular expression, put into lower case.

    Raises PlanError for a broken pattern or an unknown type.
    """
    pattern, equals, type_name = text.partition("=")
    if not (pattern and equals and type_name):
        raise PlanError(f"tensor type {text!r} is not PATTERN=TYPE, e.g. attn_v=q8_0")
    try:
        re.compile(pattern.lower())
    except re.error as error:
        raise PlanError(f"tensor type {text!r}: the pattern is no regular expression: {error}") from None
    return pattern.lower(), parse_tensor_type(type_name)
