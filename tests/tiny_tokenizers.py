"""Tiny tokenizers of every kind that merged checkpoints carry, built without any tokenizer library.

In: a vocabulary size; out: tokenizer.json, tokenizer_config.json, tokenizer.model. The merges
come from a small training text, so they are the same on every machine and with every library version.
"""

import itertools
import json
import struct
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

TEXT = """The quick brown fox jumps over the lazy dog while the other foxes are watching the river. In the
beginning there was nothing but a mixture of experts and a router that sent every token to the two of them
it trusted most. What is the capital of France? The capital of France is Paris, and the capital of Italy is
Rome. You are a helpful assistant that answers questions about weather, weights, numbers and names. Whatever
the weather, we weather the weather whether we like it or not. She sells sea shells on the sea shore; the
shells that she sells are sea shells. def main(): return 0 for the file in the files if the file is not
None. Über allen Gipfeln ist Ruh, naïve café."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BPE_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPM_SPECIAL = ("<unk>", "<s>", "</s>")
SPACE = "▁"

LETTERS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def split_by(pattern: str) -> dict[str, Any]:
    """Return the pre-tokenizer of Llama 3 and Qwen 2: a regular expression, then bytes."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "llama-bpe": split_by(LETTERS.replace("DIGITS", r"\p{N}{1,3}")),
    "qwen2": split_by(LETTERS.replace("DIGITS", r"\p{N}")),
    "gpt-2": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
}


def byte_characters() -> dict[int, str]:
    """Map each byte to the printable character that byte-level BPE writes for it (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def train(words: Counter[tuple[str, ...]], n_merges: int) -> list[tuple[str, str]]:
    """Return the `n_merges` most frequent pairs in the order byte-pair encoding joins them."""
    merges: list[tuple[str, str]] = []
    while len(merges) < n_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        if not pairs:
            raise ValueError(f"the training text has only {len(merges)} merges")
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        joined: Counter[tuple[str, ...]] = Counter()
        for word, count in words.items():
            joined[join(word, best)] += count
        words = joined
    return merges


def join(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Return the word with every occurrence of the pair made one symbol."""
    result: list[str] = []
    for symbol in word:
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return tuple(result)


def added(token: str, number: int) -> dict[str, Any]:
    """Return the entry of a special token in `added_tokens`."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": token, **flags}


def starts_with(token: str, number: int) -> dict[str, Any]:
    """Return the post-processor that puts a token before every sequence."""
    start: dict[str, Any] = {"SpecialToken": {"id": token, "type_id": 0}}
    sequences: list[dict[str, Any]] = [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [start, sequences[0]],
        "pair": [start, sequences[0], start, sequences[1]],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


@cache
def bpe_merges(n_merges: int) -> list[tuple[str, str]]:
    """Return byte-level merges of the training text."""
    characters = byte_characters()
    words = [" " + word if i else word for i, word in enumerate(TEXT.split())]
    return train(Counter(tuple(characters[byte] for byte in word.encode()) for word in words), n_merges)


@cache
def bpe_tokenizer(n_tokens: int, pre: str = "smollm") -> str:
    """Return a byte-level `tokenizer.json` with a pre-tokenizer of PRE_TOKENIZERS and `n_tokens` tokens."""
    merges = bpe_merges(n_tokens - 256 - len(BPE_SPECIAL))
    tokens = [*BPE_SPECIAL, *byte_characters().values(), *("".join(pair) for pair in merges)]
    bytes_kept = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    start_added = {"type": "Sequence", "processors": [bytes_kept, starts_with("<|im_start|>", 1)]}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(token, i) for i, token in enumerate(BPE_SPECIAL)],
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": start_added if pre == "llama-bpe" else None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [list(pair) for pair in merges],
        },
    }
    return json.dumps(document, ensure_ascii=False)


@cache
def spm_pieces(n_tokens: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the pieces of a SentencePiece vocabulary in Llama 2's order, and its merges.

    Special tokens, 256 bytes, merged pieces by rank, then single characters.
    """
    words = Counter(tuple(SPACE + word) for word in TEXT.split())
    characters = sorted({symbol for word in words for symbol in word})
    merges = train(words, n_tokens - 256 - len(SPM_SPECIAL) - len(characters))
    merged = list(dict.fromkeys("".join(pair) for pair in merges))
    pieces = [*SPM_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *merged, *characters]
    return pieces + [f"<extra_{i}>" for i in range(n_tokens - len(pieces))], merges


@cache
def spm_tokenizer(n_tokens: int) -> str:
    """Return a `tokenizer.json` of SentencePiece kind (byte fallback, Llama 2's normalizer)."""
    pieces, merges = spm_pieces(n_tokens)
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(token, i) for i, token in enumerate(SPM_SPECIAL)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replaced]},
        "pre_tokenizer": None,
        "post_processor": starts_with("<s>", 1),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                back,
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [" ".join(pair) for pair in merges],
        },
    }
    return json.dumps(document, ensure_ascii=False)


def varint(value: int) -> bytes:
    """Encode an unsigned integer as a protocol-buffer varint."""
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])


def field(number: int, value: bytes | int) -> bytes:
    """Encode one protocol-buffer field: bytes with their length, or a varint."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


@cache
def spm_model(n_tokens: int) -> bytes:
    """Return a SentencePiece `tokenizer.model` with the same pieces, with scores as its trainer writes them.

    ModelProto of sentencepiece_model.proto: pieces = 1 {piece = 1, score = 2 float, type = 3},
    trainer_spec = 2 {model_type = 3 (BPE = 2), vocab_size = 4, byte_fallback = 35},
    normalizer_spec = 3 {name = 1, add_dummy_prefix = 3, remove_extra_whitespaces = 4}.
    """
    pieces, _ = spm_pieces(n_tokens)
    encoded = b""
    for i, piece in enumerate(pieces):
        kind = 2 if i == 0 else 3 if i < 3 else 6 if i < 259 else 1
        score = struct.pack("<f", 0.0 if i < 259 else 259.0 - i)
        entry = field(1, piece.encode()) + varint(2 << 3 | 5) + score + (field(3, kind) if kind != 1 else b"")
        encoded += field(1, entry)
    trainer = field(3, 2) + field(4, len(pieces)) + field(35, 1)
    return encoded + field(2, trainer) + field(3, field(1, b"identity") + field(3, 1) + field(4, 0))


def tokenizer_config(kind: str) -> dict[str, Any]:
    """Return `tokenizer_config.json` of a kind."""
    if kind in PRE_TOKENIZERS:
        return {
            "add_prefix_space": False,
            "tokenizer_class": "GPT2Tokenizer",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "chat_template": CHAT_TEMPLATE,
        }
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": True,
    }


def write_tokenizer(folder: Path, kind: str, n_tokens: int) -> None:
    """Write a tokenizer's files: a name of PRE_TOKENIZERS, "spm.json", "spm.model" or "spm.both"."""
    if kind in PRE_TOKENIZERS:
        (folder / "tokenizer.json").write_text(bpe_tokenizer(n_tokens, kind), encoding="utf-8")
    if kind in ("spm.json", "spm.both"):
        (folder / "tokenizer.json").write_text(spm_tokenizer(n_tokens), encoding="utf-8")
    if kind in ("spm.model", "spm.both"):
        (folder / "tokenizer.model").write_bytes(spm_model(n_tokens))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(kind)), encoding="utf-8")
