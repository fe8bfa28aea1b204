"""Which token is bos, eos, pad, ..., and which of them are added around a text.

In: the tokenizer's files. Out: `SpecialTokens` as llama.cpp's converter finds them
(gguf-py/gguf/vocab.py `SpecialVocab`), and warnings.
"""

from collections.abc import Mapping
from typing import Any

from .tokenizer_files import AddedToken, TokenizerFiles
from .vocabulary import SpecialTokens

PARTS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
FILL_IN_THE_MIDDLE = {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}  # CodeLlama's


def read_special_tokens(
    files: TokenizerFiles, added: Mapping[int, AddedToken], n_vocab: int
) -> tuple[SpecialTokens, tuple[str, ...]]:
    """Find the parts' ids by text in tokenizer_config.json and by number in config.json.

    The text goes first where tokenizer.json exists, as in llama.cpp; else it only fills what config.json
    leaves open (not unk: llama.cpp's default, 0, is right then). Returns the tokens and warnings.
    """
    warnings: list[str] = []
    texts = {part: content_of(files.tokenizer_config.get(f"{part}_token")) for part in PARTS}
    add = _added_around(files.tokenizer, texts) if files.tokenizer is not None else {}
    for part in texts:
        configured = files.tokenizer_config.get(f"add_{part}_token")
        if isinstance(configured, bool):
            add.setdefault(part, configured)
    id_of = {token.content: token_id for token_id, token in added.items()}
    by_text = {part: id_of.get(text or "") for part, text in texts.items()}
    by_number = {part: _configured_id(files.config, part) for part in texts}
    if files.tokenizer is not None:
        found = [*by_text.items(), *by_number.items()]
    else:
        found = [*by_number.items(), *((part, i) for part, i in by_text.items() if part != "unk")]
    ids: dict[str, int] = {}
    for part, token_id in found:
        if token_id is None or part in ids:
            continue
        if token_id < n_vocab:
            ids[part] = token_id
        else:
            warnings.append(f"the {part} token has the id {token_id}, beyond the {n_vocab} tokens: left out")
    return SpecialTokens(ids, add), tuple(warnings)


def read_late_tokens(files: TokenizerFiles, added: Mapping[int, AddedToken], n_vocab: int) -> SpecialTokens:
    """Return what llama.cpp sets by the size of the vocabulary alone.

    32016 rows mean CodeLlama, with its fill-in-the-middle tokens; 49152 mean a small Granite or a SmolLM,
    which get no bos (llama.cpp conversion/llama.py `LlamaModel.set_vocab`).
    """
    if n_vocab == 49152:
        return SpecialTokens(add={"bos": False})
    if n_vocab != 32016:
        return SpecialTokens()
    id_of = {token.content: token_id for token_id, token in added.items()}
    ids: dict[str, int] = {}
    for part, usual in FILL_IN_THE_MIDDLE.items():
        named = id_of.get(content_of(files.tokenizer_config.get(f"{part}_token")) or "")
        configured = _configured_id(files.config, part)
        ids[part] = named if named is not None else usual if configured is None else configured
    return SpecialTokens(ids)


def _configured_id(config: Mapping[str, Any], part: str) -> int | None:
    value = config.get(f"{part}_token_id")
    text_config = config.get("text_config")
    if value is None and isinstance(text_config, dict):
        value = text_config.get(f"{part}_token_id")
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def content_of(entry: Any) -> str | None:
    """Return a token's text from how tokenizer_config.json names it: as text, or as an object with its content."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None


def _added_around(tokenizer: Mapping[str, Any], texts: dict[str, str | None]) -> dict[str, bool]:
    """Read from the post-processor what is added around a text; name in `texts` the parts it reveals."""
    texts["bos"] = texts["bos"] or texts["cls"]
    texts["eos"] = texts["eos"] or texts["sep"]
    add: dict[str, bool] = {}
    processor = tokenizer.get("post_processor")
    if not isinstance(processor, dict):
        return add
    steps = processor.get("processors")
    for step in steps if isinstance(steps, list) else [processor]:
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "ByteLevel":
            add.setdefault("bos", False)
            add.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            add |= {"bos": True, "eos": True, "sep": True}
        elif kind == "TemplateProcessing":
            _read_template(step, texts, add)
    return add


def _read_template(step: Mapping[str, Any], texts: dict[str, str | None], add: dict[str, bool]) -> None:
    """Read a template like "<s> A </s>"; one of a single piece says nothing, as for llama.cpp."""
    single = _pieces(step.get("single"))
    if len(single) < 2:
        return
    first, last = single[0], single[-1]
    if first:
        if first not in (texts["bos"], texts["cls"]):
            texts["bos"] = texts["bos"] or first
            texts["cls"] = texts["cls"] or first
        add["bos"] = first in (texts["bos"], texts["cls"])
    if last:
        if last != texts["eos"]:
            texts.setdefault("eot", texts["eos"])
            texts["eos"] = last
        add["eos"] = True
    _read_pair(_pieces(step.get("pair")), first, last, texts, add)


def _read_pair(
    pair: list[str | None], first: str | None, last: str | None, texts: dict[str, str | None], add: dict[str, bool]
) -> None:
    """Read what stands between two texts, "A </s> </s> B"; None stands for a text."""
    if first and pair and pair[0] == first:
        pair = pair[1:]
    if last and pair and pair[-1] == last:
        pair = pair[:-1]
    if len(pair) < 3 or pair[0] is not None or pair[-1] is not None:
        return
    between, separators = pair[1:-1], (texts["sep"], texts["eos"])
    add_sep = between[0] is not None and between[0] in separators and not last
    if len(between) == 2 and between[1] is not None and between[1] in separators:
        add_sep = True
    add["sep"] = add_sep
    if add_sep:
        texts["sep"] = texts["sep"] or texts["eos"]


def _pieces(template: Any) -> list[str | None]:
    """Return a template as special tokens' names, with None for each text."""
    return [_special_in(piece) for piece in template] if isinstance(template, list) else []


def _special_in(piece: Any) -> str | None:
    special = piece.get("SpecialToken") if isinstance(piece, dict) else None
    name = special.get("id") if isinstance(special, dict) else None
    return name if isinstance(name, str) else None
