"""A checkpoint folder's tokenizer files go in; what GGUF stores under `tokenizer.*` comes out, checked."""

from .comparison import compare_tokenizers, tokenizer_differences
from .probe import PROBE_TEXT, probe_text, probe_tokens
from .reading import read_vocabulary
from .vocabulary import Vocabulary

__all__ = [
    "PROBE_TEXT",
    "Vocabulary",
    "compare_tokenizers",
    "probe_text",
    "probe_tokens",
    "read_vocabulary",
    "tokenizer_differences",
]
