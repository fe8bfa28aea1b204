"""What differs between two tokenizers, of whatever formats: a merge's or an expert's, and its base's.

In: two checkpoint folders. Out: one difference for each thing that differs, none when they give the same tokens.
"""

import filecmp
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf import TokenType

from ...formats.checkpoint import ADDITIONAL_TEMPLATES, TOKENIZER_FILES
from ...formats.errors import TokenizerError
from ...formats.words import count
from ...models.tokenizer_difference import DifferenceKind, TokenizerDifference
from ..chat_template import read_chat_templates
from ..tokenizer_json import read_object, read_text
from .pre_tokenizer import patterns_of
from .reading import BYTE_LEVEL, SENTENCEPIECE, SourceTokens, read_source_tokens
from .special_tokens import PARTS, content_of, read_special_tokens
from .tokenizer_files import TokenizerFiles, read_files, steps

SHOWN = 6


def compare_tokenizers(folder: Path, base: Path) -> list[str]:
    """Return how the tokenizer of `folder` differs from that of `base`, nothing if they give the same tokens.

    Raises TokenizerError when one of them cannot be read.
    """
    differences = tokenizer_differences(folder, base)
    for difference in differences:
        if difference.kind is DifferenceKind.UNREADABLE:
            raise TokenizerError(difference.text)
    return [difference.text for difference in differences]


def tokenizer_differences(folder: Path, base: Path) -> list[TokenizerDifference]:
    """Return how the tokenizer of `folder` differs from that of `base`, the worst first.

    tokenizer.json, tokenizer.model, or vocab.json with merges.txt are compared with each other by the tokens they
    define. Ids are shown with what they stand for on both sides.
    """
    if _identical(folder, base):
        return []
    differences: list[TokenizerDifference] = []
    for compare in (_compare_tokens, _compare_templates):
        try:
            differences += [TokenizerDifference(kind, text) for kind, text in compare(folder, base)]
        except TokenizerError as error:
            differences.append(TokenizerDifference(DifferenceKind.UNREADABLE, str(error)))
    return differences


Found = Iterator[tuple[DifferenceKind, str]]


def _identical(folder: Path, base: Path) -> bool:
    """Say whether both folders have the very same files, as most experts of one base have."""
    pairs = [(folder / name, base / name) for name in TOKENIZER_FILES]
    if any(mine.is_file() != theirs.is_file() for mine, theirs in pairs):
        return False
    same = all(filecmp.cmp(mine, theirs, shallow=False) for mine, theirs in pairs if mine.is_file())
    named = any((one / ADDITIONAL_TEMPLATES).is_dir() for one in (folder, base))
    return same and not named and _configured_ids(folder) == _configured_ids(base)


def _configured_ids(folder: Path) -> dict[str, Any] | None:
    try:
        config = read_object(folder / "config.json")
    except TokenizerError:
        return None
    return {key: value for key, value in config.items() if key.endswith("_token_id") or key == "text_config"}


def _compare_tokens(folder: Path, base: Path) -> Found:
    files, base_files = _read(folder), _read(base)
    tokens, base_tokens = read_source_tokens(files), read_source_tokens(base_files)
    yield from _token_differences(tokens, base_tokens)
    if tokens.kind == base_tokens.kind:
        yield from _cutting_differences(files, base_files, tokens)
        if tokens.merges != base_tokens.merges:
            yield DifferenceKind.CUTTING, _merge_difference(tokens.merges, base_tokens.merges)
        if tokens.kind == SENTENCEPIECE and (n_other := _other_scores(tokens, base_tokens)):
            yield DifferenceKind.CUTTING, f"{count(n_other, 'piece')} of tokenizer.model {_have(n_other)} other scores"
    if _space_differs(tokens, base_tokens) or _byte_level_space_differs(files, base_files):
        yield DifferenceKind.CUTTING, "one of them puts a space before a text, the other does not"
    yield from _special_differences(files, base_files, tokens, base_tokens)


def _space_differs(tokens: SourceTokens, base: SourceTokens) -> bool:
    """Say whether only one of them puts a space before a text: of kind "llama" unless told, byte-level if told."""
    if BYTE_LEVEL in (tokens.kind, base.kind):
        return {tokens.add_space_prefix, base.add_space_prefix} == {True, False}
    return (tokens.add_space_prefix is False) != (base.add_space_prefix is False)


def _byte_level_space_differs(files: TokenizerFiles, base: TokenizerFiles) -> bool:
    """Say whether only one of two pre-tokenizers puts a space before a text, which tokenizer.json alone may say."""
    said = [
        {step.get("add_prefix_space") is True for step in steps(document.get("pre_tokenizer"), "pretokenizers")}
        for document in (files.tokenizer or {}, base.tokenizer or {})
        if patterns_of(document.get("pre_tokenizer")) is not None
    ]
    return len(said) == 2 and (True in said[0]) != (True in said[1])


def _compare_templates(folder: Path, base: Path) -> Found:
    mine, theirs = read_chat_templates(folder), read_chat_templates(base)
    if mine == theirs:
        return
    if mine.default is None and theirs.default is not None:
        yield DifferenceKind.TEMPLATE, "it has no chat template, the base has one"
    elif theirs.default is None and mine.default is not None:
        yield DifferenceKind.TEMPLATE, "it has a chat template, the base has none"
    else:
        yield DifferenceKind.TEMPLATE, "the chat template differs"


def _read(folder: Path) -> TokenizerFiles:
    """Read a folder's files; special_tokens_map.json and vocab.json with merges.txt stand in for what they lack."""
    files = read_files(folder)
    named = {f"{part}_token": text for part, text in _mapped_texts(folder).items()}
    files = replace(files, tokenizer_config={**named, **files.tokenizer_config})
    vocab = folder / "vocab.json"
    if files.tokenizer is not None or files.sentencepiece is not None or not vocab.is_file():
        return files
    lines = read_text(folder / "merges.txt").splitlines() if (folder / "merges.txt").is_file() else []
    merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    model = {"type": "BPE", "vocab": read_object(vocab), "merges": merges}
    return replace(files, tokenizer={"model": model, "decoder": {"type": "ByteLevel"}})


def _mapped_texts(folder: Path) -> dict[str, str]:
    mapped = read_object(folder / "special_tokens_map.json")
    texts = {part: content_of(mapped.get(f"{part}_token")) for part in PARTS}
    return {part: text for part, text in texts.items() if text}


def _token_differences(tokens: SourceTokens, base: SourceTokens) -> Found:
    texts = {i: row[0] for i, row in tokens.rows.items()}
    base_texts = {i: row[0] for i, row in base.rows.items()}
    id_of, base_id_of = ({text: i for i, text in each.items()} for each in (texts, base_texts))
    other = [i for i in sorted(texts.keys() & base_texts.keys()) if texts[i] != base_texts[i]]
    more, fewer = sorted(texts.keys() - base_texts.keys()), sorted(base_texts.keys() - texts.keys())
    if other:
        what = "ids stand" if len(other) > 1 else "id stands"
        shown = _first(other, lambda i: f"{i} for {_with_home(texts[i], i, base_id_of)}, there for {base_texts[i]!r}")
        yield DifferenceKind.OTHER_TOKENS, f"{len(other)} {what} for other tokens than in the base: {shown}"
    if more:
        shown = _first(more, lambda i: f"{i} {_with_home(texts[i], i, base_id_of)}")
        yield DifferenceKind.MORE_TOKENS, f"{count(len(more), 'token')} that the base has not: {shown}"
    if fewer:
        shown = _first(fewer, lambda i: f"{i} {_with_home(base_texts[i], i, id_of, 'here')}")
        are = "is" if len(fewer) == 1 else "are"
        yield DifferenceKind.FEWER_TOKENS, f"{count(len(fewer), 'token')} of the base {are} missing: {shown}"


def _with_home(text: str, token_id: int, other_side: Mapping[str, int], side: str = "in the base") -> str:
    """Return a token, with its id on the other side when it has another one there."""
    home = other_side.get(text)
    return repr(text) if home in (None, token_id) else f"{text!r} ({side} {home})"


def _first(ids: list[int], show: Callable[[int], str]) -> str:
    more = f"; and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return "; ".join(map(show, ids[:SHOWN])) + more


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _merge_difference(merges: list[tuple[str, str]], base: list[tuple[str, str]]) -> str:
    if len(merges) != len(base):
        return f"it has {count(len(merges), 'merge')}, the base {len(base)}"
    rank = next(rank for rank, pair in enumerate(zip(merges, base, strict=True)) if pair[0] != pair[1])
    return f"it has other merges than the base, from merge {rank} on: {merges[rank]}, there {base[rank]}"


def _other_scores(tokens: SourceTokens, base: SourceTokens) -> int:
    """Count the trained pieces whose scores differ; added tokens take no part in joining."""
    return sum(
        row[2] != base.rows[i][2]
        for i, row in tokens.rows.items()
        if i in base.rows
        and i not in tokens.added
        and i not in base.added
        and row[:2] == base.rows[i][:2]
        and row[1] == TokenType.NORMAL
    )


def _cutting_differences(files: TokenizerFiles, base: TokenizerFiles, tokens: SourceTokens) -> Found:
    """Compare what is done to a text before it becomes tokens; only tokenizer.json spells it out."""
    mine, theirs = files.tokenizer, base.tokenizer
    if mine is None or theirs is None or "pre_tokenizer" not in mine or "pre_tokenizer" not in theirs:
        return
    patterns = patterns_of(mine.get("pre_tokenizer"))
    same_patterns = patterns is not None and patterns == patterns_of(theirs.get("pre_tokenizer"))
    same = same_patterns if tokens.kind == BYTE_LEVEL else False
    if not same and mine.get("pre_tokenizer") != theirs.get("pre_tokenizer"):
        yield (
            DifferenceKind.CUTTING,
            "the pre-tokenizer differs: text is cut in other places than the base was trained with",
        )
    if mine.get("normalizer") != theirs.get("normalizer"):
        yield DifferenceKind.CUTTING, "the normalizer differs"
    if _ignores_merges(mine) != _ignores_merges(theirs):
        yield DifferenceKind.CUTTING, "'ignore_merges' differs: rare words get other tokens"


def _ignores_merges(tokenizer: Any) -> bool:
    return tokenizer["model"].get("ignore_merges") is True


def _special_differences(
    files: TokenizerFiles, base_files: TokenizerFiles, tokens: SourceTokens, base: SourceTokens
) -> Found:
    """Compare the parts that both name: what one leaves open, a default fills."""
    n_vocab = max([*tokens.rows, *base.rows]) + 1
    special, _ = read_special_tokens(files, tokens.added, n_vocab)
    base_special, _ = read_special_tokens(base_files, base.added, n_vocab)
    for part in PARTS:
        mine, theirs = special.ids.get(part), base_special.ids.get(part)
        said, base_said = (content_of(one.tokenizer_config.get(f"{part}_token")) for one in (files, base_files))
        if mine is not None and theirs is not None and mine != theirs:
            yield DifferenceKind.SPECIAL, f"the {part} token is {mine}, the base's {theirs}"
        elif said and base_said and said != base_said:
            yield DifferenceKind.SPECIAL, f"the {part} token is {said!r}, the base's {base_said!r}"
    for part, on in special.add.items():
        if part in base_special.add and on != base_special.add[part]:
            yield DifferenceKind.SPECIAL, f"{part} is {'' if on else 'not '}added to a text, unlike by the base"
