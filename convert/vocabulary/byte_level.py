"""Byte-level BPE tokenizers (GPT-2, SmolLM, Llama 3, Qwen, DeepSeek, ...): tokenizer.json to GGUF's "gpt2".

In: tokenizer.json. Out: tokens, types and merges as llama.cpp's converter writes them
(conversion/base.py `get_vocab_base`, `_set_vocab_gpt2`).
"""

from collections.abc import Mapping
from typing import Any

from gguf import TokenType

from ...formats.errors import TokenizerError
from ..tokenizer_json import typed
from .tokenizer_files import AddedToken, TokenizerFiles, checked_id, steps

LOOKS_SPECIAL = frozenset(("<pad>", "<mask>", "<2mass>", "[@BOS@]"))
SPACE = "▁"


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Say whether a tokenizer.json is a BPE over bytes written as printable characters."""
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or model.get("byte_fallback") is True:
        return False
    parts = steps(tokenizer.get("pre_tokenizer"), "pretokenizers") + steps(tokenizer.get("decoder"), "decoders")
    return any(part.get("type") == "ByteLevel" for part in parts)


def read_model_vocab(files: TokenizerFiles) -> dict[str, int]:
    """Return the trained vocabulary of tokenizer.json, text to id. Raises TokenizerError on a shared id."""
    path = files.folder / "tokenizer.json"
    model = typed(files.tokenizer or {}, "model", dict, path, {})
    vocab = typed(model, "vocab", dict, path, {})
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(affix):
            raise TokenizerError(f"{path}: the model has {affix!r} {model[affix]!r}, which GGUF cannot express")
    owner: dict[int, str] = {}
    for text, value in vocab.items():
        token_id = checked_id(value, text, path)
        if (first := owner.setdefault(token_id, text)) != text:
            raise TokenizerError(f"{path}: the tokens {first!r} and {text!r} have the same id, {token_id}")
    return vocab


def read_merges(files: TokenizerFiles, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the merges in order of rank. Raises TokenizerError for one whose parts or result are no tokens."""
    path = files.folder / "tokenizer.json"
    model = typed(files.tokenizer or {}, "model", dict, path, {})
    merges: list[tuple[str, str]] = []
    for rank, entry in enumerate(typed(model, "merges", list, path, [])):
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) and p for p in pair):
            raise TokenizerError(f"{path}: merge {rank} is not a pair of texts")
        left, right = pair
        for text in (left, right, left + right):
            if text not in vocab:
                raise TokenizerError(f"{path}: merge {rank}, {left!r} + {right!r}, needs {text!r}, which is no token")
        merges.append((left, right))
    return merges


def byte_level_rows(vocab: Mapping[str, int], added: Mapping[int, AddedToken]) -> dict[int, tuple[str, int, float]]:
    """Return (text, type, score) by id; scores play no part in this kind."""
    rows = {token_id: (text, int(TokenType.NORMAL), 0.0) for text, token_id in vocab.items()}
    return rows | {token_id: (*added_row(token), 0.0) for token_id, token in added.items()}


def added_row(token: AddedToken) -> tuple[str, int]:
    """Return an added token's text and type; a plain one is matched before spaces are escaped."""
    if token.special or looks_special(token.content):
        return token.content, int(TokenType.CONTROL)
    return token.content.replace(SPACE, " "), int(TokenType.USER_DEFINED)


def looks_special(text: str) -> bool:
    """Say whether a token is a control token by its looks, whatever its flag says (as llama.cpp does)."""
    return (
        text in LOOKS_SPECIAL
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def gguf_merges(merges: list[tuple[str, str]]) -> tuple[str, ...]:
    """Write merges as GGUF has them, "left right"; a space inside a part becomes Ġ as in llama.cpp."""
    return tuple(" ".join(part.replace(" ", "Ġ") for part in pair) for pair in merges)
