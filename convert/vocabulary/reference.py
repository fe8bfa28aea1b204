"""The source's own tokenizer, through the `tokenizers` library: what llama.cpp's ids are compared with.

In: tokenizer.json. Out: a `tokenizers.Tokenizer`, and what it makes of a text; each way in which that can
fail is a TokenizerError.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...formats.errors import TokenizerError


def load_reference(tokenizer: Mapping[str, Any], where: object) -> Any:
    """Load a tokenizer.json mapping into the `tokenizers` library. Raises TokenizerError."""
    from tokenizers import Tokenizer

    with _refusals(f"{where} cannot be loaded as a tokenizer"):
        return Tokenizer.from_str(json.dumps(tokenizer))


def encode(reference: Any, text: str, *, add_special_tokens: bool) -> list[int]:
    """Return the ids of a text. Raises TokenizerError."""
    with _refusals("the tokenizer fails on a test text"):
        return list(reference.encode(text, add_special_tokens=add_special_tokens).ids)


def pieces_of(reference: Any, text: str) -> list[str] | None:
    """Return the pieces that the pre-tokenizer cuts a text into; None without one. Raises TokenizerError."""
    if reference.pre_tokenizer is None:
        return None
    with _refusals("the pre-tokenizer fails on a test text"):
        return [piece for piece, _ in reference.pre_tokenizer.pre_tokenize_str(text)]


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turn the library's errors into TokenizerError; a panic of its Rust code is not even an Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TokenizerError(f"{what}: {first_line}") from error
