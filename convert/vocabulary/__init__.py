"""A checkpoint folder's tokenizer files go in; what GGUF stores under `tokenizer.*` comes out, checked."""

from .reading import read_vocabulary
from .vocabulary import Vocabulary

__all__ = ["Vocabulary", "read_vocabulary"]
