"""Small text and JSON files of a tokenizer, read with suspicion.

In: a path. Out: text, or a JSON object; whatever is broken, huge or of another shape is a TokenizerError.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..formats.errors import TokenizerError

MAX_JSON_BYTES = 256 << 20  # Gemma's tokenizer.json, the largest in circulation, has 33 MB


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that does not exist reads as an empty one. Raises TokenizerError."""
    if not path.is_file():
        return {}
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error or 'nested too deeply'}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds a JSON {type(value).__name__}, an object is expected")
    return value


def read_text(path: Path) -> str:
    """Read a UTF-8 file of a sane size. Raises TokenizerError."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise TokenizerError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MB, no tokenizer file is")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror or error}") from error


def typed(mapping: Mapping[str, Any], key: str, kind: type, where: object, default: Any) -> Any:
    """Return mapping[key] when it has the type, the default when it is absent or null.

    Raises TokenizerError for another type.
    """
    value = mapping.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TokenizerError(f"{where}: {key!r} is {shortly(value)}, {kind.__name__} expected")
    return value


def shortly(value: Any) -> str:
    """Return a JSON value as a text of at most 40 characters, for messages."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
