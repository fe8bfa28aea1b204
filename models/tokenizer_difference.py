"""How two tokenizers can differ: what comparing their files finds, and what a merge or a conversion makes of it."""

from dataclasses import dataclass
from enum import StrEnum


class DifferenceKind(StrEnum):
    """What differs; OTHER_TOKENS is the worst, since the same id then means two things."""

    UNREADABLE = "a tokenizer that cannot be read"
    OTHER_TOKENS = "other tokens at the same ids"
    MORE_TOKENS = "ids beyond the base's"
    FEWER_TOKENS = "ids that are missing"
    CUTTING = "how text is cut and joined into tokens"
    SPECIAL = "the parts that tokens play"
    TEMPLATE = "the chat template"


@dataclass(frozen=True)
class TokenizerDifference:
    """One difference between a tokenizer and its base's, said in words about "it" and "the base"."""

    kind: DifferenceKind
    text: str
