"""A checkpoint's tokenizer, whatever its kind, as one Vocabulary.

In: a folder with tokenizer.model or tokenizer.json. Out: what GGUF will store, or one line on why it cannot.
"""

from pathlib import Path

from ...formats.errors import TokenizerError
from ..chat_template import read_chat_templates
from ..tokenizer_json import typed
from .byte_level import byte_level_rows, gguf_merges, is_byte_level, read_merges, read_model_vocab
from .pre_tokenizer import check_name, name_pre_tokenizer
from .reference import load_reference
from .special_tokens import read_late_tokens, read_special_tokens
from .tokenizer_files import AddedToken, TokenizerFiles, collect_added_tokens, read_files
from .vocabulary import Vocabulary, padded


def read_vocabulary(folder: Path, n_vocab: int, *, pre_tokenizer: str | None = None) -> Vocabulary:
    """Read the tokenizer of a checkpoint folder for an embedding of `n_vocab` rows.

    tokenizer.model comes before tokenizer.json, as in llama.cpp. `pre_tokenizer` names llama.cpp's
    pre-tokenizer where it is not recognized. Raises TokenizerError.
    """
    files = read_files(folder)
    if files.tokenizer is not None and is_byte_level(files.tokenizer):
        return _read_byte_level(files, n_vocab, pre_tokenizer)
    raise TokenizerError(f"{folder} has a tokenizer of a kind that is not supported")


def _read_byte_level(files: TokenizerFiles, n_vocab: int, pre_tokenizer: str | None) -> Vocabulary:
    path = files.folder / "tokenizer.json"
    tokenizer = files.tokenizer or {}
    vocab = read_model_vocab(files)
    merges = read_merges(files, vocab)
    added = _agreeing(files, vocab)
    rows = byte_level_rows(vocab, added)
    tokens, token_types, _ = padded(rows, n_vocab)
    if pre_tokenizer is not None:
        pre, named = check_name(pre_tokenizer), ()
    else:
        pre, named = name_pre_tokenizer(tokenizer, load_reference(tokenizer, path))
    special, found = read_special_tokens(files, added, n_vocab)
    return Vocabulary(
        kind="byte-level",
        model="gpt2",
        pre=pre,
        tokens=tokens,
        token_types=token_types,
        n_tokens=len(rows),
        merges=gguf_merges(merges),
        special=special,
        late=read_late_tokens(files, added, n_vocab),
        add_space_prefix=typed(files.tokenizer_config, "add_prefix_space", bool, path.parent, None),
        chat=read_chat_templates(files.folder),
        warnings=(*named, *found),
    )


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
