"""A folder's tokenizer files, parsed and shape-checked: JSON that is broken or hostile ends here.

In: a checkpoint folder. Out: `TokenizerFiles`, and the added tokens that the files agree on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...formats.errors import TokenizerError

MAX_JSON_BYTES = 256 << 20  # Gemma's tokenizer.json, the largest in circulation, has 33 MB
MAX_ID = 1 << 24


@dataclass(frozen=True)
class AddedToken:
    """A token outside the trained vocabulary, matched in the text before everything else."""

    content: str
    special: bool = False
    stripping: bool = False  # it swallows spaces next to it, or matches whole words only
    origin: str = ""


@dataclass(frozen=True)
class TokenizerFiles:
    """The JSON files of a folder as mappings (empty where a file is missing), unread beyond their shape."""

    folder: Path
    tokenizer: Mapping[str, Any] | None
    tokenizer_config: Mapping[str, Any]
    added_tokens: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def sentencepiece(self) -> Path | None:
        """Return the path of tokenizer.model, or None."""
        path = self.folder / "tokenizer.model"
        return path if path.is_file() else None


def read_files(folder: Path) -> TokenizerFiles:
    """Read tokenizer.json, tokenizer_config.json, added_tokens.json and config.json, those that exist.

    Raises TokenizerError for a file that is not readable, not JSON, not an object, or too large.
    """
    if not folder.is_dir():
        raise TokenizerError(f"{folder} is not a folder; the tokenizer is read from a checkpoint's folder")
    tokenizer_path = folder / "tokenizer.json"
    return TokenizerFiles(
        folder=folder,
        tokenizer=read_object(tokenizer_path) if tokenizer_path.is_file() else None,
        tokenizer_config=read_object(folder / "tokenizer_config.json"),
        added_tokens=read_object(folder / "added_tokens.json"),
        config=read_object(folder / "config.json"),
    )


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
        raise TokenizerError(f"{where}: {key!r} is {_shortly(value)}, {kind.__name__} expected")
    return value


def collect_added_tokens(files: TokenizerFiles) -> dict[int, AddedToken]:
    """Return the added tokens by id from all three files that list them, in ascending order of id.

    Raises TokenizerError when two files give an id two texts, or a text two ids.
    """
    found: dict[int, AddedToken] = {}
    owner: dict[str, int] = {}
    for token_id, token in [*_from_tokenizer(files), *_from_config(files), *_from_added_tokens(files)]:
        known = found.setdefault(token_id, token)
        if known.content != token.content:
            raise TokenizerError(
                f"{files.folder}: token {token_id} is {known.content!r} in {known.origin} and "
                f"{token.content!r} in {token.origin}; keep one of them"
            )
        if (first := owner.setdefault(token.content, token_id)) != token_id:
            raise TokenizerError(
                f"{files.folder}: the token {token.content!r} has two ids, {first} in "
                f"{found[first].origin} and {token_id} in {token.origin}; keep one of them"
            )
    return dict(sorted(found.items()))


def _from_tokenizer(files: TokenizerFiles) -> list[tuple[int, AddedToken]]:
    path = files.folder / "tokenizer.json"
    listed = typed(files.tokenizer or {}, "added_tokens", list, path, [])
    return [_added_token(entry, None, path) for entry in listed]


def _from_config(files: TokenizerFiles) -> list[tuple[int, AddedToken]]:
    path = files.folder / "tokenizer_config.json"
    listed = typed(files.tokenizer_config, "added_tokens_decoder", dict, path, {})
    return [_added_token(entry, token_id, path) for token_id, entry in listed.items()]


def _from_added_tokens(files: TokenizerFiles) -> list[tuple[int, AddedToken]]:
    path = files.folder / "added_tokens.json"
    return [_added_token({"content": text}, token_id, path) for text, token_id in files.added_tokens.items()]


def _added_token(entry: Any, token_id: Any, path: Path) -> tuple[int, AddedToken]:
    if not isinstance(entry, dict):
        raise TokenizerError(f"{path}: an added token is {_shortly(entry)}, an object is expected")
    content = typed(entry, "content", str, path, None)
    if content is None:
        raise TokenizerError(f"{path}: an added token has no 'content'")
    stripping = any(entry.get(flag) is True for flag in ("lstrip", "rstrip", "single_word"))
    token = AddedToken(content, entry.get("special") is True, stripping, path.name)
    return checked_id(entry.get("id") if token_id is None else token_id, content, path), token


def checked_id(value: Any, text: str, path: Path) -> int:
    """Return a token id given as a number or as digits. Raises TokenizerError for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_ID:
        raise TokenizerError(f"{path}: the token {text!r} has the id {_shortly(value)}, a number is expected")
    return value


def _shortly(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
