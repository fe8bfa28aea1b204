"""vocab.json with merges.txt, as the tokenizer.json that transformers makes of them for the tokenizers we know.

In: a folder. Out: a tokenizer.json as a mapping, or None where the files or the class are others.
"""

import json
from pathlib import Path
from typing import Any

from .errors import TokenizerError
from .weight_files import read_json

# How text is cut before bytes are merged. Source: tokenization_qwen2.py and tokenization_gpt2.py of transformers 5.
QWEN2_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast")


def tokenizer_of_vocab(folder: Path) -> dict[str, Any] | None:
    """Return the tokenizer.json that a folder's vocab.json and merges.txt stand for.

    None without these files, or for a class that cuts text otherwise than GPT-2's and Qwen2's do. Raises
    TokenizerError for broken files.
    """
    vocab_path, merges_path, config_path = (
        folder / name for name in ("vocab.json", "merges.txt", "tokenizer_config.json")
    )
    if not vocab_path.is_file() or not merges_path.is_file():
        return None
    config = read_json(config_path) if config_path.is_file() else {}
    name = config.get("tokenizer_class")
    if name not in CLASSES:
        return None
    try:
        vocab = json.loads(vocab_path.read_text(encoding="utf-8"))
        lines = merges_path.read_text(encoding="utf-8").splitlines()
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{vocab_path} or merges.txt cannot be read: {error}") from None
    if not isinstance(vocab, dict):
        raise TokenizerError(f"{vocab_path} is not a JSON object")
    prefix = config.get("add_prefix_space") is True
    cuts: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}
    if str(name).startswith("Qwen2"):
        split = {"type": "Split", "pattern": {"Regex": QWEN2_CUTS}, "behavior": "Isolated", "invert": False}
        cuts = {"type": "Sequence", "pretokenizers": [split, {**cuts, "use_regex": False}]}
    return {
        "version": "1.0",
        "added_tokens": _added_tokens(folder, config),
        "normalizer": {"type": "NFC"} if str(name).startswith("Qwen2") else None,
        "pre_tokenizer": cuts,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [line for line in lines if line.strip() and not line.startswith("#version")],
        },
    }


def _added_tokens(folder: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the added tokens of tokenizer_config.json and added_tokens.json, in ascending order of id."""
    found: dict[int, dict[str, Any]] = {}
    path = folder / "added_tokens.json"
    for text, token_id in (read_json(path) if path.is_file() else {}).items():
        if type(token_id) is int:
            found[token_id] = {"content": text, "special": False}
    decoder = config.get("added_tokens_decoder")
    for token_id, token in (decoder if isinstance(decoder, dict) else {}).items():
        if str(token_id).isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str):
            found[int(token_id)] = token
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return [
        {"id": token_id, "content": token["content"], **{flag: token.get(flag) is True for flag in flags}}
        for token_id, token in sorted(found.items())
    ]
