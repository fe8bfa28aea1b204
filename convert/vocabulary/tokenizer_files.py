"""A folder's tokenizer files, parsed and shape-checked: JSON that is broken or hostile ends here.

In: a checkpoint folder. Out: `TokenizerFiles`, and the added tokens that the files agree on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...formats.byte_level_files import tokenizer_of_vocab
from ...formats.errors import CheckpointError, TokenizerError
from ..tokenizer_json import read_object, shortly, typed

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
        tokenizer=read_object(tokenizer_path) if tokenizer_path.is_file() else _of_vocab(folder),
        tokenizer_config=read_object(folder / "tokenizer_config.json"),
        added_tokens=read_object(folder / "added_tokens.json"),
        config=read_object(folder / "config.json"),
    )


def _of_vocab(folder: Path) -> Mapping[str, Any] | None:
    """Return what vocab.json and merges.txt stand for, where neither of the other files is there."""
    try:
        return None if (folder / "tokenizer.model").is_file() else tokenizer_of_vocab(folder)
    except CheckpointError as error:
        raise TokenizerError(str(error)) from None


def steps(part: Any, inner: str) -> list[Mapping[str, Any]]:
    """Return a normalizer, pre-tokenizer or decoder as its steps in order; Sequences hold theirs under `inner`."""
    flat: list[Mapping[str, Any]] = []
    waiting = [part]
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict):
            listed = step.get(inner)
            if step.get("type") == "Sequence" and isinstance(listed, list):
                waiting += reversed(listed)
            else:
                flat.append(step)
    return flat


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
        raise TokenizerError(f"{path}: an added token is {shortly(entry)}, an object is expected")
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
        raise TokenizerError(f"{path}: the token {text!r} has the id {shortly(value)}, a number is expected")
    return value
