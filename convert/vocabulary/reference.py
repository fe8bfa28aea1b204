"""The source's own tokenizer, through the `tokenizers` library: what llama.cpp's ids are compared with.

In: tokenizer.json. Out: a `tokenizers.Tokenizer`; every way in which loading can fail is a TokenizerError.
"""

import json
from collections.abc import Mapping
from typing import Any

from ...formats.errors import TokenizerError


def load_reference(tokenizer: Mapping[str, Any], where: object) -> Any:
    """Load a tokenizer.json mapping into the `tokenizers` library. Raises TokenizerError."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(tokenizer))
    except (Exception, _panic()) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TokenizerError(f"{where} cannot be loaded as a tokenizer: {first_line}") from error


def _panic() -> type[BaseException]:
    """Return the type of a panic in the library's Rust code: not an Exception, but no reason to stop us."""
    try:
        from pyo3_runtime import PanicException  # pyright: ignore[reportMissingImports]
    except ImportError:
        return TokenizerError
    return PanicException
