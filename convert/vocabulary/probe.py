"""A text that brings out differences between tokenizers, and the ids the source's own tokenizer gives it.

In: a checkpoint folder and a text. Out: ids to compare with llama.cpp's (`llama_tokenize` with
add_special=False, parse_special=True).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import TokenType

from ...formats.errors import TokenizerError
from ...formats.sentencepiece_encoder import encode as encode_sentencepiece
from ...formats.sentencepiece_file import read_sentencepiece
from .reference import encode, load_reference
from .tokenizer_files import AddedToken, collect_added_tokens, read_files

# Begins with a letter, since tokenizers that put a space in front of a text treat a first space in several ways;
# composed as Unicode's NFC has it, since tokenizers normalize to that and llama.cpp does not.
PROBE_TEXT = (
    "Hello, world! I'm sure it's HER'S, don't they'll SAY'LL we've?  Two  spaces,   three\tand\t\ttabs \n a line\n\n"
    "two lines\n\n\n   indented\r\nDOS   \n1 12 123 1234 12345 1234567890 3.14 1,000,000 0x1F ½ ² Ⅻ ٣٤ $5.00\n"
    "def f(x, *args):\n    return {'a': [x**2, x != 0 && y >= z], \"b\": None}  # note\n\n\t\tif (!ok) { i++; }\n"
    "https://example.org/a?b=c&d=%20#e foo_bar camelCase HTTPServer ABCdef aB 'quoted' “curly” «guillemets» --- ... "
    "_under_ *bold* ~~~ ```code``` <tag attr='1'/> &amp; @user #tag C:\\path\n"
    "Über Straße naïve café Ångström Ελληνικά Привет, мир עִבְרִית العربية हिन्दी ไทย 中文字符 日本語カタカナ "
    "ひらがな 한국어 Tiếng Việt ǅ ﬁ ＡＢ　全角\u00a0nbsp\u200bzwsp …—–\n"
    "🚀 🦙🦙 👩\u200d👩\u200d👧\u200d👦 👍🏽 🇫🇷 ✅ 😶\u200d🌫\ufe0f \u0378 \U0010fffd 𝒳 \x01\x7f end"
)


def probe_text(tokens: Sequence[str], token_types: Sequence[int]) -> str:
    """Return PROBE_TEXT followed by some of the vocabulary's control tokens.

    They stand at the end since tokenizers differ in whether the text after one begins with a space.
    """
    control = [
        text
        for text, kind in zip(tokens, token_types, strict=True)
        if kind == TokenType.CONTROL and "unused" not in text
    ]
    return PROBE_TEXT + "".join(control[:8])


def probe_tokens(folder: Path, text: str) -> list[int] | None:
    """Return the ids that the folder's own tokenizer gives a text, without bos and eos; None if it has no reference.

    Uses tokenizer.json through the `tokenizers` library, else tokenizer.model. Raises TokenizerError.
    """
    files = read_files(folder)
    added = collect_added_tokens(files)
    if files.tokenizer is not None:
        reference = load_reference(files.tokenizer, folder / "tokenizer.json")
        _add_missing(reference, added)
        return encode(reference, text, add_special_tokens=False)
    if files.sentencepiece is None:
        raise TokenizerError(f"{folder} has neither tokenizer.model nor tokenizer.json")
    model = read_sentencepiece(files.sentencepiece)
    cut_first = {
        piece.text: i for i, piece in enumerate(model.pieces) if piece.type in (TokenType.CONTROL, TokenType.UNKNOWN)
    }
    return encode_sentencepiece(model, cut_first | {token.content: i for i, token in added.items()}, text)


def _add_missing(reference: Any, added: dict[int, AddedToken]) -> None:
    """Give the reference the tokens that only tokenizer_config.json or added_tokens.json lists."""
    from tokenizers import AddedToken as Added

    for token_id, token in added.items():
        if reference.token_to_id(token.content) is None and reference.get_vocab_size() == token_id:
            reference.add_tokens([Added(token.content, special=token.special, normalized=False)])
