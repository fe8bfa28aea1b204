"""tokenizer.json of SentencePiece kind (Llama 2, Mistral as transformers saves them) to GGUF's "llama".

In: trained vocabulary, merges, added tokens. Out: tokens and types, and the scores that the file lost.

llama.cpp's tokenizer joins, again and again, the neighbours whose joined text has the best score; the file
knows merges by rank. A piece made by an earlier merge therefore gets a better score: 0, -1, -2, ... in the
order in which merges first make the pieces, then the single characters, as SentencePiece's trainer numbers
them. llama.cpp's own converter writes -1000 for all, and its tokens come out wrong.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from gguf import TokenType

from .byte_level import added_row
from .sentencepiece import ADDED_SCORE, BYTE_TOKENS
from .tokenizer_files import AddedToken, steps

SPACE = "▁"
Merges = list[tuple[str, str]]


def is_byte_fallback(tokenizer: Mapping[str, Any]) -> bool:
    """Say whether a tokenizer.json is a BPE over characters that falls back to bytes."""
    model = tokenizer.get("model")
    return isinstance(model, dict) and model.get("type", "BPE") == "BPE" and model.get("byte_fallback") is True


def byte_fallback_rows(
    vocab: Mapping[str, int], merges: Merges, added: Mapping[int, AddedToken], unknown: str | None
) -> dict[int, tuple[str, int, float]]:
    """Return (text, type, score) by id, scores rebuilt from the ranks of the merges."""
    outside = _BYTES | {token.content for token in added.values()}
    scores = scores_from_merges([text for text in vocab if text not in outside], vocab, merges)
    rows: dict[int, tuple[str, int, float]] = {}
    for text, token_id in vocab.items():
        if text in _BYTES:
            rows[token_id] = (text, int(TokenType.BYTE), 0.0)
        else:
            rows[token_id] = (text, int(TokenType.NORMAL), scores.get(text, ADDED_SCORE))
    for token_id, token in added.items():
        if token.content not in _BYTES:
            rows[token_id] = (*added_row(token), ADDED_SCORE)
    for token_id, (text, _, score) in rows.items():
        if text == unknown:
            rows[token_id] = (text, int(TokenType.UNKNOWN), score)
    return rows


_BYTES = frozenset(BYTE_TOKENS)


def scores_from_merges(texts: Iterable[str], id_of: Mapping[str, int], merges: Merges) -> dict[str, float]:
    """Return a score for each text: by the first merge that makes it, then the rest in order of id."""
    made = dict.fromkeys(left + right for left, right in merges)
    order = [*made, *sorted((text for text in texts if text not in made), key=lambda text: id_of[text])]
    return {text: 0.0 - rank for rank, text in enumerate(order)}


def merge_warnings(vocab: Mapping[str, int], merges: Merges) -> tuple[str, ...]:
    """Warn where scores cannot say what the merges say.

    llama.cpp joins any two neighbours whose joined text is a token; the file only joins pairs it lists, and
    may join two pairs that make one token at ranks apart.
    """
    known = set(merges)
    unlisted = [
        text
        for text in {left + right for left, right in merges}
        if any((pair not in known) for pair in _splits(text, vocab))
    ]
    apart = _made_apart(merges)
    problems = {"pairs that make them are not merged": unlisted, "merges that make them lie apart": apart}
    return tuple(
        f"{len(texts)} tokens ({', '.join(map(repr, sorted(texts)[:4]))}) may be formed in other places by "
        f"llama.cpp, since {why} in tokenizer.json"
        for why, texts in problems.items()
        if texts
    )


def _splits(text: str, vocab: Mapping[str, int]) -> Iterable[tuple[str, str]]:
    for at in range(1, len(text)):
        if text[:at] in vocab and text[at:] in vocab:
            yield text[:at], text[at:]


def _made_apart(merges: Merges) -> list[str]:
    last: str | None = None
    done: set[str] = set()
    apart: dict[str, None] = {}
    for left, right in merges:
        text = left + right
        if text != last and text in done:
            apart[text] = None
        done.add(text)
        last = text
    return list(apart)


def space_prefix(tokenizer: Mapping[str, Any], merges: Merges) -> tuple[bool, tuple[str, ...]]:
    """Say whether a space goes before a text, and warn of what llama.cpp does not do to a text.

    Prepend (a normalizer) and Metaspace "always" do; Metaspace "first" does at the very start only.
    """
    before = steps(tokenizer.get("normalizer"), "normalizers")
    before += steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    prefix = False
    warnings: list[str] = []
    for step in before:
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == SPACE:
            prefix = True
        elif kind == "Metaspace":
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            prefix = prefix or scheme != "never"
            if scheme == "first":
                warnings.append(
                    "the tokenizer puts a space before the start of a text only, llama.cpp also after control tokens"
                )
            if step.get("split", True) is True and any(SPACE in right or SPACE in left[1:] for left, right in merges):
                warnings.append("the tokenizer cuts text at spaces, llama.cpp does not: runs of spaces differ")
        elif not _harmless(step):
            warnings.append(f"the tokenizer changes or cuts text by {kind}, llama.cpp does not: some text differs")
    return prefix, tuple(warnings)


def _harmless(step: Mapping[str, Any]) -> bool:
    """Say whether a step only writes spaces as ▁, or splits where no token crosses."""
    pattern = step.get("pattern")
    on_space = isinstance(pattern, dict) and pattern.get("String") in (" ", SPACE)
    return on_space and (
        (step.get("type") == "Replace" and step.get("content") == SPACE)
        or (step.get("type") == "Split" and step.get("behavior") == "MergedWithPrevious")
    )
