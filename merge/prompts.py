"""A base model's tokenizer, for prompts: a checkpoint folder and a text come in, token ids go out."""

from collections.abc import Callable
from pathlib import Path

from ..formats.errors import TokenizerError
from ..formats.weight_files import read_json


def prompt_tokenizer(folder: Path) -> Callable[[str], list[int]]:
    """Return how mergekit tokenizes a prompt: the beginning-of-sequence token, if there is one, and the text.

    Raises TokenizerError when the folder has no tokenizer.json.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(f"{folder}: no tokenizer.json, which cheap_embed needs; use gate_mode hidden")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise TokenizerError(f"{path}: not a tokenizer: {error}") from error
    bos = _bos_text(folder)
    return lambda prompt: tokenizer.encode(bos + prompt, add_special_tokens=False).ids


def _bos_text(folder: Path) -> str:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            token = read_json(folder / name).get("bos_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                return token
    return ""
