"""Real tokenizers rebuilt from the vocabularies inside GGUF files, checked against llama.cpp, and cut down.

In: the folder `models` of llama.cpp's sources: `ggml-vocab-*.gguf`, and beside each test texts (.inp) and the
ids that the model's own tokenizer gave them (.out, recorded by llama.cpp's convert_hf_to_gguf_update.py). Out:
tests/convert/golden/tokenizers.json with those ids and the part of each vocabulary that the texts need.

    python -m tests.oracles.tokenizers llama.cpp/models
"""

import json
import struct
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFReader, TokenType

NO_FLAGS = ("single_word", "lstrip", "rstrip")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def rebuild_byte_level(gguf_path: Path, folder: Path, pre_tokenizer: Mapping[str, Any], **model: Any) -> None:
    """Write the tokenizer.json (and tokenizer_config.json) that a byte-level vocabulary came from."""
    reader = GGUFReader(gguf_path)
    tokens, types = _field(reader, "tokens"), _field(reader, "token_type")
    normal = {text: i for i, text in enumerate(tokens) if types[i] == TokenType.NORMAL}
    added = [
        {
            "id": i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[i] == TokenType.CONTROL,
        }
        for i, text in enumerate(tokens)
        if types[i] in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]
    # Control tokens that come before the others sit in the trained vocabulary too; later ones do not.
    vocab = normal | {entry["content"]: entry["id"] for entry in added if entry["id"] < max(normal.values())}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            **model,
            "vocab": vocab,
            "merges": _field(reader, "merges"),
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def rebuild_sentencepiece(gguf_path: Path, folder: Path) -> None:
    """Write the tokenizer.model that a SentencePiece vocabulary came from."""
    reader = GGUFReader(gguf_path)
    pieces = zip(*(_field(reader, name) for name in ("tokens", "scores", "token_type")), strict=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model([*pieces]))


def sentencepiece_model(pieces: list[tuple[str, float, int]], *, model_type: int = 2, prefix: int = 1) -> bytes:
    """Return a tokenizer.model of (text, score, type): SentencePiece's sentencepiece_model.proto."""
    data = b""
    for text, score, kind in pieces:
        data += _message(1, _message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
    trainer = _number(3, model_type) + _number(4, len(pieces)) + _number(35, 1)
    trainer += _number(40, 0) + _number(41, 1) + _number(42, 2)
    normalizer = _message(1, b"identity") + _number(3, prefix) + _number(4, 0) + _number(5, 1)
    return data + _message(2, trainer) + _message(3, normalizer)


def rebuild_byte_fallback(gguf_path: Path, folder: Path, **parts: Any) -> None:
    """Write the tokenizer.json that transformers makes of a SentencePiece vocabulary.

    Merges are all pairs of tokens that make a token, by its score (transformers, convert_slow_tokenizer.py).
    """
    reader = GGUFReader(gguf_path)
    tokens, scores, types = (_field(reader, name) for name in ("tokens", "scores", "token_type"))
    id_of = {text: i for i, text in enumerate(tokens)}
    merges: list[tuple[float, int, int, int, int]] = []
    for i, text in enumerate(tokens):
        for at in range(1, len(text)) if types[i] == TokenType.NORMAL else ():
            left, right = id_of.get(text[:at]), id_of.get(text[at:])
            if left is not None and right is not None:
                merges.append((-scores[i], i, left, right, at))
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, "special": True, "normalized": False, **dict.fromkeys(NO_FLAGS, False)}
            for i, text in enumerate(tokens)
            if types[i] in (TokenType.CONTROL, TokenType.UNKNOWN)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        **parts,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": id_of,
            "merges": [f"{tokens[left]} {tokens[right]}" for _, _, left, right, _ in sorted(merges)],
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def _message(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    low = bytearray()
    while value > 0x7F:
        low.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*low, value])


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(f"tokenizer.ggml.{name}")
    assert field is not None
    return field.contents()


GOLDEN = Path(__file__).parent.parent / "convert" / "golden" / "tokenizers.json"
DIGITS = {"type": "Digits", "individual_digits": True}
GPT2 = {**BYTE_LEVEL, "use_regex": True}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _splits(*patterns: str) -> dict[str, Any]:
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return _sequence(*splits, {**BYTE_LEVEL, "use_regex": False})


WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The models' own definitions, as their tokenizer.json files have them.
DEFINITIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt-2": (GPT2, {}),
    "starcoder": (_sequence(DIGITS, GPT2), {}),
    "llama-bpe": (_splits(WORDS.replace("DIGITS", r"\p{N}{1,3}")), {"ignore_merges": True}),
    "qwen2": (_splits(WORDS.replace("DIGITS", r"\p{N}")), {}),
    "deepseek-coder": (
        _sequence(
            *_splits(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")["pretokenizers"][:-1],
            DIGITS,
            {**BYTE_LEVEL, "use_regex": False},
        ),
        {},
    ),
}


def main() -> None:
    """Check every vocabulary in full and write the golden file."""
    models = Path(sys.argv[1])
    golden: dict[str, Any] = {"texts": _texts(models / "ggml-vocab-gpt-2.gguf.inp"), "tokenizers": {}}
    for name, (pre_tokenizer, model) in DEFINITIONS.items():
        path = models / f"ggml-vocab-{name}.gguf"
        assert _texts(path.with_name(path.name + ".inp")) == golden["texts"]
        with tempfile.TemporaryDirectory() as folder:
            rebuild_byte_level(path, Path(folder), pre_tokenizer, **model)
            golden["tokenizers"][name] = _checked(path, Path(folder), golden["texts"])
    path = models / "ggml-vocab-llama-spm.gguf"
    with tempfile.TemporaryDirectory() as folder:
        rebuild_byte_fallback(path, Path(folder))
        golden["tokenizers"]["llama-spm"] = _checked(path, Path(folder), golden["texts"])
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in golden.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _texts(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")


def _checked(gguf_path: Path, folder: Path, texts: list[str]) -> dict[str, Any]:
    """Compare llama.cpp on our vocabulary with the recorded ids; return these and the tokenizer cut down."""
    from moe_gguf.convert.vocabulary import read_vocabulary

    from ..convert.llama_tokens import loaded, tokenize, write_vocabulary

    recorded = gguf_path.with_name(gguf_path.name + ".out").read_text().split("\n")
    expected = [[int(number) for number in line.split()] for line in recorded[: len(texts)]]
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = read_vocabulary(folder, len(document["model"]["vocab"]) + len(document["added_tokens"]))
    write_vocabulary(vocabulary, folder / "full.gguf")
    with loaded(folder / "full.gguf") as vocab:
        same = sum(tokenize(vocab, text) == ids for text, ids in zip(texts, expected, strict=True))
    print(f"{gguf_path.name}: {vocabulary.kind}, {vocabulary.pre}, {same} of {len(texts)} texts")
    return {"tokenizer": cut_down(document, expected), "ids": expected}


def cut_down(document: dict[str, Any], ids: list[list[int]]) -> dict[str, Any]:
    """Keep of a tokenizer.json the tokens with these ids, their parts, the bytes, and a few added tokens.

    A token's parts are those of its merges, and theirs: what is kept is joined in the same order as before.
    """
    model = document["model"]
    pairs: dict[str, list[tuple[str, str]]] = {}
    for left, right in (merge.split(" ") for merge in model["merges"]):
        pairs.setdefault(left + right, []).append((left, right))
    wanted = {i for line in ids for i in line}
    waiting = [text for text, i in model["vocab"].items() if i in wanted]
    added = document["added_tokens"][:8]
    kept: dict[str, None] = {text: None for text in model["vocab"] if text.startswith("<0x")}
    kept |= {token["content"]: None for token in added if token["content"] in model["vocab"]}
    while waiting:
        text = waiting.pop()
        if text not in kept:
            kept[text] = None
            waiting += [part for pair in pairs.get(text, []) for part in pair]
    parts = {part for text in kept for part in text}
    keep = {text: i for text, i in model["vocab"].items() if text in kept or text in parts}
    merges = [m for m in model["merges"] if all(part in keep for part in (*m.split(" "), m.replace(" ", "")))]
    return {**document, "added_tokens": added, "model": {**model, "vocab": keep, "merges": merges}}


if __name__ == "__main__":
    main()
