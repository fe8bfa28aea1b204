"""SentencePiece's BPE encoder in small: the reference where a folder has tokenizer.model and nothing else.

In: pieces and a text. Out: ids. Source: SentencePiece's src/bpe_model.cc and normalizer.cc, as
transformers' LlamaTokenizer calls it (control tokens are cut out of the text first).
"""

import heapq
import re
from collections.abc import Mapping

from gguf import TokenType

from .errors import TokenizerError
from .sentencepiece_file import SentencePieceModel

SPACE = "▁"


def encode(model: SentencePieceModel, cut_first: Mapping[str, int], text: str) -> list[int] | None:
    """Return the ids of a text, without bos; None for a model that normalizes text by a table of its own.

    `cut_first` holds the tokens that are found in the text before everything else. Each stretch between them
    gets a space in front when the model adds one. Raises TokenizerError where a byte has no piece.
    """
    if model.has_charsmap or model.remove_extra_whitespaces or not model.escape_whitespaces:
        return None
    id_of = {piece.text: i for i, piece in enumerate(model.pieces)}
    score_of = {
        piece.text: piece.score for piece in model.pieces if piece.type in (TokenType.NORMAL, TokenType.USER_DEFINED)
    }
    longest_first = sorted(cut_first, key=len, reverse=True)
    stretches = re.split(f"({'|'.join(map(re.escape, longest_first))})", text) if cut_first else [text]
    ids: list[int] = []
    for stretch in filter(None, stretches):
        if stretch in cut_first:
            ids.append(cut_first[stretch])
            continue
        escaped = stretch.replace(" ", SPACE)
        for symbol in join_pairs(list(SPACE + escaped if model.add_dummy_prefix else escaped), score_of):
            parts = [symbol] if symbol in score_of else [f"<0x{byte:02X}>" for byte in symbol.encode()]
            if missing := [part for part in parts if part not in id_of]:
                raise TokenizerError(f"tokenizer.model has no piece {missing[0]}, which {symbol!r} needs")
            ids += [id_of[part] for part in parts]
    return ids


def join_pairs(symbols: list[str], score_of: Mapping[str, float]) -> list[str]:
    """Join neighbours while any two make a piece: the best score first, of equal ones the leftmost."""
    following = [*range(1, len(symbols)), -1]
    before = list(range(-1, len(symbols) - 1))
    queue: list[tuple[float, int, int, str]] = []

    def offer(left: int, right: int) -> None:
        joined = symbols[left] + symbols[right] if left >= 0 and right >= 0 else ""
        if joined in score_of:
            heapq.heappush(queue, (-score_of[joined], left, right, joined))

    for left in range(len(symbols) - 1):
        offer(left, left + 1)
    while queue:
        _, left, right, joined = heapq.heappop(queue)
        if following[left] != right or symbols[left] + symbols[right] != joined or not symbols[left]:
            continue
        symbols[left], symbols[right] = joined, ""
        following[left] = following[right]
        if following[right] >= 0:
            before[following[right]] = left
        following[right] = -1
        offer(before[left], left)
        offer(left, following[left])
    return [symbol for symbol in symbols if symbol]
