"""What GGUF stores about a tokenizer, and the checks that keep llama.cpp from aborting on it.

In: tokens, types, scores, merges, special ids. Out: an ordered list of metadata entries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gguf import GGUFValueType, Keys, TokenType

from ...formats.errors import TokenizerError
from ..chat_template import ChatTemplates

ID_KEYS = {
    "bos": Keys.Tokenizer.BOS_ID,
    "eos": Keys.Tokenizer.EOS_ID,
    "unk": Keys.Tokenizer.UNK_ID,
    "sep": Keys.Tokenizer.SEP_ID,
    "pad": Keys.Tokenizer.PAD_ID,
    "mask": Keys.Tokenizer.MASK_ID,
    "eot": Keys.Tokenizer.EOT_ID,
    "eom": Keys.Tokenizer.EOM_ID,
    "prefix": Keys.Tokenizer.PREFIX_ID,
    "suffix": Keys.Tokenizer.SUFFIX_ID,
    "middle": Keys.Tokenizer.MIDDLE_ID,
}
ADD_KEYS = {
    "bos": Keys.Tokenizer.ADD_BOS,
    "eos": Keys.Tokenizer.ADD_EOS,
    "sep": Keys.Tokenizer.ADD_SEP,
}


@dataclass(frozen=True)
class SpecialTokens:
    """Which token plays which part (`ids`: bos, eos, unk, ...), and which are added around a text (`add`)."""

    ids: Mapping[str, int] = field(default_factory=dict)
    add: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF stores it: one token per embedding row, padding included.

    `kind` is how it was read: "sentencepiece" (tokenizer.model), "byte-level" or "byte-fallback"
    (tokenizer.json). `late` holds what llama.cpp sets after everything else (see special_tokens.py).
    """

    kind: str
    model: str
    pre: str
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    n_tokens: int
    scores: tuple[float, ...] | None = None
    merges: tuple[str, ...] = ()
    special: SpecialTokens = SpecialTokens()
    late: SpecialTokens = SpecialTokens()
    add_space_prefix: bool | None = None
    chat: ChatTemplates = field(default_factory=ChatTemplates)
    warnings: tuple[str, ...] = ()

    @property
    def n_vocab(self) -> int:
        """Return the number of embedding rows; `n_tokens` of them are tokens of the source."""
        return len(self.tokens)

    def token_id(self, part: str) -> int | None:
        """Return the id of the token that plays a part ("bos", "eos", "eot", "pad", ...), or None."""
        return self.late.ids.get(part, self.special.ids.get(part))

    def adds(self, part: str) -> bool | None:
        """Say whether "bos", "eos" or "sep" is added to a text; None where llama.cpp's default decides."""
        return self.late.add.get(part, self.special.add.get(part))

    def fields(self) -> list[tuple[str, Any, GGUFValueType]]:
        """Return (key, value, type) for every `tokenizer.*` entry, in the order of llama.cpp's converter.

        Source: llama.cpp conversion/llama.py `LlamaModel.set_vocab`, gguf-py `SpecialVocab.add_to_gguf`.
        """
        entries: dict[str, tuple[Any, GGUFValueType]] = {}
        if self.add_space_prefix is not None:
            entries[Keys.Tokenizer.ADD_PREFIX] = (self.add_space_prefix, GGUFValueType.BOOL)
        entries[Keys.Tokenizer.MODEL] = (self.model, GGUFValueType.STRING)
        entries[Keys.Tokenizer.PRE] = (self.pre, GGUFValueType.STRING)
        entries[Keys.Tokenizer.LIST] = (list(self.tokens), GGUFValueType.ARRAY)
        if self.scores is not None:
            entries[Keys.Tokenizer.SCORES] = (list(self.scores), GGUFValueType.ARRAY)
        entries[Keys.Tokenizer.TOKEN_TYPE] = (list(self.token_types), GGUFValueType.ARRAY)
        if self.merges:
            entries[Keys.Tokenizer.MERGES] = (list(self.merges), GGUFValueType.ARRAY)
        entries |= _special_entries(self.special)
        entries |= _chat_entries(self.chat)
        entries |= _special_entries(self.late)
        return [(key, value, kind) for key, (value, kind) in entries.items()]


def _special_entries(special: SpecialTokens) -> dict[str, tuple[Any, GGUFValueType]]:
    ids = {ID_KEYS[part]: (i, GGUFValueType.UINT32) for part, i in special.ids.items() if part in ID_KEYS}
    add = {ADD_KEYS[part]: (on, GGUFValueType.BOOL) for part, on in special.add.items() if part in ADD_KEYS}
    return {**ids, **add}


def _chat_entries(chat: ChatTemplates) -> dict[str, tuple[Any, GGUFValueType]]:
    entries: dict[str, tuple[Any, GGUFValueType]] = {
        Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name): (template, GGUFValueType.STRING)
        for name, template in chat.named.items()
    }
    if chat.named:
        entries[Keys.Tokenizer.CHAT_TEMPLATES] = (list(chat.named), GGUFValueType.ARRAY)
    if chat.default is not None:
        entries[Keys.Tokenizer.CHAT_TEMPLATE] = (chat.default, GGUFValueType.STRING)
    return entries


def padded(
    tokens: Mapping[int, tuple[str, int, float]], n_vocab: int
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[float, ...]]:
    """Lay (text, type, score) by id out over `n_vocab` rows; rows without a token become unused `[PAD{id}]`.

    Raises TokenizerError when a token has no row, or when two rows would have the same text.
    """
    outside = sorted(token_id for token_id in tokens if token_id >= n_vocab)
    if outside:
        shown = ", ".join(f"{i} {tokens[i][0]!r}" for i in outside[:8]) + (", ..." if len(outside) > 8 else "")
        raise TokenizerError(
            f"the embedding has {n_vocab} rows, {len(outside)} of the tokenizer's tokens have none: {shown}; "
            "use the tokenizer of the model that the embedding comes from, or remove these tokens from its files"
        )
    rows = [tokens.get(i, (f"[PAD{i}]", int(TokenType.UNUSED), -10000.0)) for i in range(n_vocab)]
    texts = tuple(row[0] for row in rows)
    refuse_unwritable(texts)
    return texts, tuple(row[1] for row in rows), tuple(row[2] for row in rows)


def refuse_unwritable(texts: Sequence[str]) -> None:
    """Refuse token texts on which llama.cpp aborts the process or changes a token.

    It reads them as C strings, names empty ones `[EMPTY_{id}]`, and asserts that no two are equal
    (src/llama-vocab.cpp `llama_vocab::impl::load`). Raises TokenizerError.
    """
    seen: dict[str, int] = {}
    for i, text in enumerate(texts):
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise TokenizerError(f"token {i} is not valid Unicode: {text!r}; the tokenizer files are damaged")
        if "\0" in text:
            raise TokenizerError(f"token {i} holds a zero byte, which GGUF readers cut: {text!r}")
        read_as = text or f"[EMPTY_{i}]"
        if (first := seen.setdefault(read_as, i)) != i:
            raise TokenizerError(
                f"tokens {first} and {i} are both {read_as!r}, which llama.cpp cannot load; "
                "remove one of them from the tokenizer files"
            )
