"""What differs between two tokenizers: a merge's and its base's, which should be the same.

In: two checkpoint folders. Out: one line for each difference.
"""

from pathlib import Path
from typing import Any

from ..chat_template import read_chat_templates
from .pre_tokenizer import patterns_of
from .reading import BYTE_LEVEL, SourceTokens, read_source_tokens
from .special_tokens import read_special_tokens
from .tokenizer_files import TokenizerFiles, read_files


def compare_tokenizers(folder: Path, base: Path) -> list[str]:
    """Return how the tokenizer of `folder` differs from that of `base`, nothing if they give the same tokens.

    Raises TokenizerError when one of them cannot be read.
    """
    files, base_files = read_files(folder), read_files(base)
    tokens, base_tokens = read_source_tokens(files), read_source_tokens(base_files)
    differences = _token_differences(tokens, base_tokens)
    if tokens.kind == base_tokens.kind:
        differences += _cutting_differences(files, base_files, tokens)
        if tokens.merges != base_tokens.merges:
            differences.append(f"it has {len(tokens.merges)} merges, the base {len(base_tokens.merges)}, or others")
    if (tokens.add_space_prefix is False) != (base_tokens.add_space_prefix is False):
        differences.append("one of them puts a space before a text, the other does not")
    differences += _special_differences(files, base_files, tokens, base_tokens)
    if read_chat_templates(folder) != read_chat_templates(base):
        differences.append("the chat template differs")
    return differences


def _token_differences(tokens: SourceTokens, base: SourceTokens) -> list[str]:
    texts = {i: row[0] for i, row in tokens.rows.items()}
    base_texts = {i: row[0] for i, row in base.rows.items()}
    more = [f"{i} {texts[i]!r}" for i in sorted(texts.keys() - base_texts.keys())]
    fewer = [f"{i} {base_texts[i]!r}" for i in sorted(base_texts.keys() - texts.keys())]
    other = [
        f"{i} {texts[i]!r} for {base_texts[i]!r}"
        for i in sorted(texts.keys() & base_texts.keys())
        if texts[i] != base_texts[i]
    ]
    found = (("that the base has not", more), ("of the base are missing", fewer), ("are others", other))
    return [f"{len(some)} tokens {what}: {_first(some)}" for what, some in found if some]


def _first(texts: list[str]) -> str:
    return ", ".join(texts[:6]) + (", ..." if len(texts) > 6 else "")


def _cutting_differences(files: TokenizerFiles, base: TokenizerFiles, tokens: SourceTokens) -> list[str]:
    """Compare what is done to a text before it becomes tokens; only tokenizer.json spells it out."""
    mine, theirs = files.tokenizer, base.tokenizer
    if mine is None or theirs is None:
        return []
    differences: list[str] = []
    patterns = patterns_of(mine.get("pre_tokenizer"))
    same_patterns = patterns is not None and patterns == patterns_of(theirs.get("pre_tokenizer"))
    same = same_patterns if tokens.kind == BYTE_LEVEL else False
    if not same and mine.get("pre_tokenizer") != theirs.get("pre_tokenizer"):
        differences.append("the pre-tokenizer differs: text is cut in other places than the base was trained with")
    if mine.get("normalizer") != theirs.get("normalizer"):
        differences.append("the normalizer differs")
    if _ignores_merges(mine) != _ignores_merges(theirs):
        differences.append("'ignore_merges' differs: rare words get other tokens")
    return differences


def _ignores_merges(tokenizer: Any) -> bool:
    return tokenizer["model"].get("ignore_merges") is True


def _special_differences(
    files: TokenizerFiles, base_files: TokenizerFiles, tokens: SourceTokens, base: SourceTokens
) -> list[str]:
    """Compare the parts that both name: what one leaves open, a default fills."""
    n_vocab = max([*tokens.rows, *base.rows]) + 1
    special, _ = read_special_tokens(files, tokens.added, n_vocab)
    base_special, _ = read_special_tokens(base_files, base.added, n_vocab)
    differences = [
        f"the {part} token is {special.ids[part]}, the base's {base_special.ids[part]}"
        for part in special.ids
        if part in base_special.ids and special.ids[part] != base_special.ids[part]
    ]
    return differences + [
        f"{part} is {'' if special.add[part] else 'not '}added to a text, unlike by the base"
        for part in special.add
        if part in base_special.add and special.add[part] != base_special.add[part]
    ]
