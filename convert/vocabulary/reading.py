"""A checkpoint's tokenizer, whatever its kind, as one Vocabulary.

In: a folder with tokenizer.model or tokenizer.json. Out: what GGUF will store, or one line on why it cannot.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from ...formats.errors import TokenizerError
from ...formats.sentencepiece_file import read_sentencepiece
from ..chat_template import read_chat_templates
from ..tokenizer_json import typed
from .byte_fallback import byte_fallback_rows, is_byte_fallback, merge_warnings, space_prefix
from .byte_level import byte_level_rows, gguf_merges, is_byte_level, read_merges, read_model_vocab
from .pre_tokenizer import check_name, name_pre_tokenizer
from .pre_tokenizer_names import ADDS_BOS
from .reference import load_reference
from .sentencepiece import require_bytes, sentencepiece_rows
from .special_tokens import read_late_tokens, read_special_tokens
from .tokenizer_files import AddedToken, TokenizerFiles, collect_added_tokens, read_files
from .vocabulary import SpecialTokens, Vocabulary, padded

SENTENCEPIECE, BYTE_LEVEL, BYTE_FALLBACK = "sentencepiece", "byte-level", "byte-fallback"


@dataclass(frozen=True)
class SourceTokens:
    """The tokens that a folder's files define: (text, type, score) by id, and what was noticed on the way."""

    kind: str
    rows: dict[int, tuple[str, int, float]]
    added: dict[int, AddedToken]
    merges: list[tuple[str, str]]
    add_space_prefix: bool | None
    warnings: tuple[str, ...] = ()


def read_vocabulary(folder: Path, n_vocab: int, *, pre_tokenizer: str | None = None) -> Vocabulary:
    """Read the tokenizer of a checkpoint folder for an embedding of `n_vocab` rows.

    tokenizer.model comes before tokenizer.json, as in llama.cpp. `pre_tokenizer` names llama.cpp's
    pre-tokenizer where it is not recognized. Raises TokenizerError.
    """
    files = read_files(folder)
    source = read_source_tokens(files)
    tokens, token_types, scores = padded(source.rows, n_vocab)
    byte_level = source.kind == BYTE_LEVEL
    if pre_tokenizer is not None and not byte_level:
        raise TokenizerError(f"{folder} has a SentencePiece tokenizer, which has no pre-tokenizer to name")
    pre, named = _pre(files, pre_tokenizer) if byte_level else ("default", ())
    special, found = read_special_tokens(files, source.added, n_vocab)
    if byte_level:
        special = _with_bos_settled(special, pre)
    return Vocabulary(
        kind=source.kind,
        model="gpt2" if byte_level else "llama",
        pre=pre,
        tokens=tokens,
        token_types=token_types,
        n_tokens=len(source.rows),
        scores=None if byte_level else scores,
        merges=gguf_merges(source.merges) if byte_level else (),
        special=special,
        late=read_late_tokens(files, source.added, n_vocab),
        add_space_prefix=source.add_space_prefix,
        chat=read_chat_templates(folder),
        warnings=(*source.warnings, *named, *found),
    )


def _with_bos_settled(special: SpecialTokens, pre: str) -> SpecialTokens:
    """Say that no bos is added where the source adds none, and where it has none to add."""
    adds = special.add.get("bos", False if pre in ADDS_BOS else None)
    if adds and "bos" not in special.ids:
        adds = False
    return special if adds is None else replace(special, add={**special.add, "bos": adds})


def read_source_tokens(files: TokenizerFiles) -> SourceTokens:
    """Read the tokens of whatever kind of tokenizer the files define. Raises TokenizerError."""
    if files.sentencepiece is not None:
        return _sentencepiece(files, files.sentencepiece)
    if files.tokenizer is None:
        has = ", only tekken.json" if (files.folder / "tekken.json").is_file() else ""
        raise TokenizerError(
            f"{files.folder} has neither tokenizer.model nor tokenizer.json{has}; copy one of them from the model "
            "that the experts come from, or save it with transformers"
        )
    if is_byte_fallback(files.tokenizer):
        return _byte_fallback(files)
    if is_byte_level(files.tokenizer):
        return _byte_level(files)
    model = files.tokenizer.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    raise TokenizerError(
        f"{files.folder / 'tokenizer.json'} is of kind {kind!r}; byte-level BPE and BPE with byte fallback are "
        "supported"
    )


def _sentencepiece(files: TokenizerFiles, path: Path) -> SourceTokens:
    model = read_sentencepiece(path)
    added = collect_added_tokens(files)
    rows, warnings = sentencepiece_rows(model, added)
    require_bytes(rows, path)
    prefix = _configured_prefix(files)
    if prefix is None and not model.add_dummy_prefix:
        prefix = False
    return SourceTokens(SENTENCEPIECE, rows, added, [], prefix, (*warnings, *_stripping(added)))


def _byte_level(files: TokenizerFiles) -> SourceTokens:
    vocab = read_model_vocab(files)
    merges = read_merges(files, vocab)
    added = _agreeing(files, vocab)
    warnings = (*_normalizing(files), *_stripping(added))
    return SourceTokens(BYTE_LEVEL, byte_level_rows(vocab, added), added, merges, _configured_prefix(files), warnings)


def _byte_fallback(files: TokenizerFiles) -> SourceTokens:
    tokenizer = files.tokenizer or {}
    vocab = read_model_vocab(files)
    merges = read_merges(files, vocab)
    added = _agreeing(files, vocab)
    unknown = typed(typed(tokenizer, "model", dict, files.folder, {}), "unk_token", str, files.folder, None)
    rows = byte_fallback_rows(vocab, merges, added, unknown)
    require_bytes(rows, files.folder / "tokenizer.json")
    derived, warnings = space_prefix(tokenizer, merges)
    # llama.cpp's default is to add the space: it is written where the files say otherwise or say it themselves.
    prefix = None if derived and _configured_prefix(files) is None else derived
    warnings = (*warnings, *merge_warnings(vocab, merges), *_stripping(added))
    return SourceTokens(BYTE_FALLBACK, rows, added, merges, prefix, warnings)


def _configured_prefix(files: TokenizerFiles) -> bool | None:
    return typed(files.tokenizer_config, "add_prefix_space", bool, files.folder / "tokenizer_config.json", None)


def _pre(files: TokenizerFiles, override: str | None) -> tuple[str, tuple[str, ...]]:
    if override is not None:
        return check_name(override), ()
    tokenizer = files.tokenizer or {}
    return name_pre_tokenizer(tokenizer, load_reference(tokenizer, files.folder / "tokenizer.json"))


def _stripping(added: dict[int, AddedToken]) -> tuple[str, ...]:
    names = [token.content for token in added.values() if token.stripping]
    if not names:
        return ()
    return (
        f"{', '.join(map(repr, names[:4]))}{', ...' if len(names) > 4 else ''}: in the source these tokens swallow "
        "the spaces beside them or match whole words only, in llama.cpp they do not",
    )


def _normalizing(files: TokenizerFiles) -> tuple[str, ...]:
    normalizer = (files.tokenizer or {}).get("normalizer")
    if not isinstance(normalizer, dict) or normalizer.get("type") == "NFC":
        return ()
    return (f"the tokenizer normalizes text by {normalizer.get('type')}, llama.cpp does not: some text differs",)


def _agreeing(files: TokenizerFiles, vocab: dict[str, int]) -> dict[int, AddedToken]:
    """Return the added tokens after checking that they and the trained vocabulary agree on ids."""
    added = collect_added_tokens(files)
    owner = {token_id: text for text, token_id in vocab.items()}
    for token_id, token in added.items():
        if vocab.get(token.content, token_id) != token_id or owner.get(token_id, token.content) != token.content:
            other = owner.get(token_id, f"id {vocab.get(token.content)}")
            raise TokenizerError(
                f"{files.folder}: the added token {token_id} {token.content!r} ({token.origin}) collides with "
                f"{other!r} of the vocabulary; remove one of them"
            )
    return added
