"""Prompts become the tokens of the base, whichever files its tokenizer is kept in."""

import json
from pathlib import Path

import pytest
from moe_gguf.formats.errors import TokenizerError
from moe_gguf.merge.prompts import prompt_tokenizer

from ..command import moe_gguf
from .tiny_models import Dense, write_dense


def split(folder: Path, name: str) -> Path:
    """Keep a folder's tokenizer as vocab.json and merges.txt alone."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    model = tokenizer["model"]
    added = {str(token["id"]): token for token in tokenizer["added_tokens"]}
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "tokenizer_class": name, "added_tokens_decoder": added})
    )
    return folder


def test_vocab_and_merges_are_read_for_prompts_and_by_convert(tmp_path: Path) -> None:
    whole = write_dense(tmp_path / "whole", Dense())
    parts = split(write_dense(tmp_path / "parts", Dense()), "GPT2Tokenizer")
    for text in ("Hello, world!", "two  spaces and words"):
        assert prompt_tokenizer(parts)(text) == prompt_tokenizer(whole)(text)
    done = moe_gguf("convert", parts, "-o", tmp_path / "out.gguf", "-q", "--pre-tokenizer", "gpt-2", "--no-verify")
    assert done.status == 0, done.stderr


def test_a_class_that_cuts_otherwise_is_refused_with_how_to_go_on(tmp_path: Path) -> None:
    parts = split(write_dense(tmp_path / "parts", Dense()), "DebertaTokenizer")
    with pytest.raises(TokenizerError, match="save it with transformers"):
        prompt_tokenizer(parts)


@pytest.mark.parametrize(("kind", "words"), [("empty", "no token comes"), ("none", "prompts need one")])
def test_check_finds_prompts_without_tokens_and_bases_without_tokenizer(kind: str, words: str, tmp_path: Path) -> None:
    base = write_dense(tmp_path / "base", Dense())
    one = write_dense(tmp_path / "one", Dense(seed=2))
    (base / "tokenizer_config.json").write_text("{}")
    if kind == "none":
        (base / "tokenizer.json").unlink()
    experts = [
        {"source_model": str(base), "positive_prompts": ["" if kind == "empty" else "a"]},
        {"source_model": str(one), "positive_prompts": ["b"]},
    ]
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(json.dumps({"base_model": str(base), "gate_mode": "hidden", "experts": experts}))
    done = moe_gguf("merge", recipe, "--check")
    assert done.status == 1 and words in done.stderr, done.stderr
