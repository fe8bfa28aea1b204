"""A base model's tokenizer, for prompts: a checkpoint folder and a text come in, token ids go out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..formats.byte_level_files import tokenizer_of_vocab
from ..formats.errors import TokenizerError
from ..formats.sentencepiece_encoder import encode
from ..formats.sentencepiece_file import read_sentencepiece
from ..formats.weight_files import read_json

Tokenize = Callable[[str], list[int]]


def prompt_tokenizer(folder: Path) -> Tokenize:
    """Return how mergekit tokenizes a prompt: the beginning-of-sequence token, if there is one, and the text.

    From tokenizer.json, tokenizer.model, or vocab.json with merges.txt. Raises TokenizerError when the folder has none.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        return _fast(folder, path.read_text(encoding="utf-8"), path)
    if (folder / "tokenizer.model").is_file():
        return _sentencepiece(folder)
    made = tokenizer_of_vocab(folder)
    if made is not None:
        return _fast(folder, json.dumps(made), folder / "vocab.json")
    has = "only vocab.json of a class that is not known here" if (folder / "vocab.json").is_file() else "no tokenizer"
    raise TokenizerError(
        f"{folder}: {has}, and prompts need one; save it with transformers (AutoTokenizer, save_pretrained), or use "
        "gate_mode: random"
    )


def _fast(folder: Path, text: str, path: Path) -> Tokenize:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain Exception
        raise TokenizerError(f"{path}: not a tokenizer: {error}") from error
    bos = _bos_text(folder) or ""
    return lambda prompt: tokenizer.encode(bos + prompt, add_special_tokens=False).ids


def _sentencepiece(folder: Path) -> Tokenize:
    from gguf.constants import TokenType

    model = read_sentencepiece(folder / "tokenizer.model")
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    found = {piece.text: i for i, piece in enumerate(model.pieces) if piece.type in special} | _added(folder)
    said = _bos_text(folder)
    bos = said if said is not None else "<s>" if "<s>" in found else ""

    def tokenize(prompt: str) -> list[int]:
        ids = encode(model, found, bos + prompt)
        if ids is None:
            raise TokenizerError(
                f"{folder}: tokenizer.model normalizes text by a table of its own; save a tokenizer.json with "
                "transformers (AutoTokenizer, save_pretrained)"
            )
        return ids

    return tokenize


def _added(folder: Path) -> dict[str, int]:
    """Return the tokens that are added to a tokenizer.model, by text."""
    found: dict[str, int] = {}
    if (path := folder / "added_tokens.json").is_file():
        found |= {text: value for text, value in read_json(path).items() if type(value) is int}
    if (path := folder / "tokenizer_config.json").is_file():
        decoder: Any = read_json(path).get("added_tokens_decoder")
        for token_id, token in (decoder if isinstance(decoder, dict) else {}).items():
            if isinstance(token, dict) and isinstance(token.get("content"), str) and str(token_id).isdecimal():
                found[token["content"]] = int(token_id)
    return found


def _bos_text(folder: Path) -> str | None:
    """Return the beginning-of-sequence token that a folder's files name; None when they do not."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            token = read_json(folder / name).get("bos_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                return token
    return None
