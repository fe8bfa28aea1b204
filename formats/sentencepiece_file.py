"""tokenizer.model, SentencePiece's protocol buffer, read without trusting a byte of it.

In: the file. Out: `SentencePieceModel`. Layout: sentencepiece_model.proto of SentencePiece,

    ModelProto      1 pieces*  2 trainer_spec  3 normalizer_spec
    pieces          1 piece (text)  2 score (float)  3 type (1 when absent)
    trainer_spec    3 model_type (1 unigram, 2 bpe, 3 word, 4 char; 1 when absent)
    normalizer_spec 2 precompiled_charsmap  3 add_dummy_prefix  4 remove_extra_whitespaces
                    5 escape_whitespaces (the last three true when absent)
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gguf import TokenType

from .errors import TokenizerError

MAX_BYTES = 64 << 20  # Gemma's, the largest in circulation, has 4 MB
BPE = 2
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Piece:
    """One piece; its type has the same numbers in SentencePiece and in GGUF."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    """The pieces in order of id, and how a text is normalized before it is cut into them."""

    pieces: tuple[Piece, ...]
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    has_charsmap: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a tokenizer.model of BPE type. Raises TokenizerError for damage, and for other types."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TokenizerError(f"{path} is larger than {MAX_BYTES >> 20} MB, no tokenizer.model is")
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror or error}") from error
    if data.startswith(b"version https://git-lfs"):
        raise TokenizerError(f"{path} is a Git LFS pointer, not the file; run `git lfs pull` in its folder")
    try:
        return _model(memoryview(data))
    except _DamagedError as error:
        raise TokenizerError(f"{path} is not a SentencePiece model or is damaged: {error}") from error


class _DamagedError(ValueError):
    """What is wrong with the bytes; becomes a TokenizerError that names the file."""


def _model(data: memoryview) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, int | memoryview] = {}
    normalizer: dict[int, int | memoryview] = {}
    for number, value in _message(data):
        if number == 1:
            pieces.append(_piece(_submessage(value), len(pieces)))
        elif number == 2:
            trainer |= dict(_message(_submessage(value)))
        elif number == 3:
            normalizer |= dict(_message(_submessage(value)))
    if not pieces:
        raise _DamagedError("it has no pieces")
    model_type = trainer.get(3, 1)
    if model_type != BPE:
        name = MODEL_TYPES.get(model_type if isinstance(model_type, int) else 0, str(model_type))
        raise TokenizerError(
            f"tokenizer.model is a SentencePiece model of type {name!r}; for llama models llama.cpp cuts text "
            "as type 'bpe' does, and would give other tokens"
        )
    return SentencePieceModel(
        tuple(pieces),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
        has_charsmap=len(_submessage(normalizer.get(2, memoryview(b"")))) > 0,
    )


def _piece(data: memoryview, index: int) -> Piece:
    fields = dict(_message(data))
    kind = fields.get(3, int(TokenType.NORMAL))
    score = fields.get(2, 0)
    if not isinstance(kind, int) or not int(TokenType.NORMAL) <= kind <= int(TokenType.BYTE):
        raise _DamagedError(f"piece {index} has an unknown type")
    if not isinstance(score, int) or not math.isfinite(value := struct.unpack("<f", struct.pack("<I", score))[0]):
        raise _DamagedError(f"piece {index} has no finite score")
    try:
        text = bytes(_submessage(fields.get(1, memoryview(b"")))).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _DamagedError(f"piece {index} is not UTF-8") from error
    return Piece(text, value, kind)


def _submessage(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _DamagedError("a number stands where bytes are expected")
    return value


def _message(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of one message; fixed-width values come as unsigned integers."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire_type == BYTES:
            length, at = _varint(data, at)
        elif wire_type in (FIXED32, FIXED64):
            length = 4 if wire_type == FIXED32 else 8
        else:
            raise _DamagedError(f"unknown wire type {wire_type} at byte {at}")
        if length > len(data) - at:
            raise _DamagedError(f"a field of {length} bytes at byte {at} ends beyond its message")
        value, at = data[at : at + length], at + length
        yield number, value if wire_type == BYTES else int.from_bytes(value, "little")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _DamagedError("it ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _DamagedError(f"a number at byte {at} is longer than 64 bits")
