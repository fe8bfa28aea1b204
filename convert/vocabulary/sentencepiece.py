"""SentencePiece vocabularies (Llama 2, Mistral): tokenizer.model to GGUF's "llama".

In: the model and the added tokens. Out: tokens, scores and types as llama.cpp's converter writes them
(conversion/base.py `_create_vocab_sentencepiece`).
"""

from collections.abc import Mapping

from gguf import TokenType

from ...formats.errors import TokenizerError
from ...formats.sentencepiece_file import SentencePieceModel
from .byte_level import added_row
from .tokenizer_files import AddedToken

ADDED_SCORE = -1000.0
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))


def sentencepiece_rows(
    model: SentencePieceModel, added: Mapping[int, AddedToken]
) -> tuple[dict[int, tuple[str, int, float]], tuple[str, ...]]:
    """Return (text, type, score) by id, and warnings.

    Added tokens replace pieces. Those that only tokenizer.json lists count beyond the pieces alone, where
    llama.cpp does not see them.
    """
    # llama.cpp's converter writes user-defined pieces as normal ones: matched up front, as it would otherwise,
    # they would be followed by a space that SentencePiece does not add.
    as_normal = {int(TokenType.USER_DEFINED): int(TokenType.NORMAL)}
    rows = {i: (piece.text, as_normal.get(piece.type, piece.type), piece.score) for i, piece in enumerate(model.pieces)}
    replaced: list[str] = []
    for token_id, token in added.items():
        if token_id in rows and token.origin == "tokenizer.json":
            continue
        if token_id in rows and rows[token_id][0] != token.content:
            replaced.append(f"{rows[token_id][0]!r} by {token.content!r}")
        rows[token_id] = (*_row(token), ADDED_SCORE)
    warnings = _normalization_warnings(model)
    if replaced:
        warnings += (f"tokenizer_config.json replaces pieces of tokenizer.model: {', '.join(replaced[:8])}",)
    return rows, warnings


def _row(token: AddedToken) -> tuple[str, int]:
    if token.origin == "added_tokens.json":
        return token.content, int(TokenType.USER_DEFINED)
    return added_row(token)


def _normalization_warnings(model: SentencePieceModel) -> tuple[str, ...]:
    """Name what this model does to a text and llama.cpp's "llama" tokenizer does not."""
    odd = {
        "normalizes characters": model.has_charsmap,
        "joins runs of spaces": model.remove_extra_whitespaces,
        "keeps spaces as they are": not model.escape_whitespaces,
    }
    return tuple(f"tokenizer.model {what}, llama.cpp does not: such text differs" for what, on in odd.items() if on)


def require_bytes(rows: Mapping[int, tuple[str, int, float]], where: object) -> None:
    """Refuse a vocabulary without a token for every byte: llama.cpp stops on the first unknown character."""
    texts = {text for text, _, _ in rows.values()}
    missing = [text for text in BYTE_TOKENS if text not in texts]
    if missing:
        raise TokenizerError(
            f"{where} has no token for {len(missing)} of 256 bytes ({missing[0]}, ...); llama.cpp needs byte "
            "tokens for characters outside the vocabulary"
        )
