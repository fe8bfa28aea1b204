"""Pre-tokenizers are named by what they do; what is lost, respelled or unknown is told apart."""

import json
from pathlib import Path
from typing import Any

import pytest
from moe_gguf.convert.vocabulary import compare_tokenizers, probe_tokens, read_vocabulary
from moe_gguf.formats.errors import TokenizerError

from ..tiny_tokenizers import PRE_TOKENIZERS, bpe_tokenizer, split_by, spm_model, spm_tokenizer
from .llama_tokens import loaded, tokenize, write_vocabulary

N_TOKENS = 400
LLAMA3 = PRE_TOKENIZERS["llama-bpe"]["pretokenizers"][0]["pattern"]["Regex"]
QWEN2 = PRE_TOKENIZERS["qwen2"]["pretokenizers"][0]["pattern"]["Regex"]
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


def write(folder: Path, pre_tokenizer: Any, *, like: str = "gpt-2", **model: Any) -> Path:
    """Write a byte-level tokenizer with a pre-tokenizer of one's own."""
    document = json.loads(bpe_tokenizer(N_TOKENS, like))
    document["pre_tokenizer"] = pre_tokenizer
    document["model"] |= model
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_known_definitions(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, PRE_TOKENIZERS[name], ignore_merges=name == "llama-bpe")
    vocabulary = read_vocabulary(folder, N_TOKENS)
    assert (vocabulary.kind, vocabulary.model, vocabulary.pre, vocabulary.warnings) == ("byte-level", "gpt2", name, ())


@pytest.mark.parametrize(
    ("pattern", "ignore_merges", "name"),
    [
        (LLAMA3, False, "smaug-bpe"),
        (CL100K, False, "smaug-bpe"),
        (CL100K, True, "llama-bpe"),
        (QWEN2.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)"), False, "qwen2"),
        (QWEN2.replace(r"\p{N}|", r"\p{N}{1}|").replace("[\\r\\n]", "[\r\n]"), False, "qwen2"),
    ],
)
def test_spellings_of_one_pattern(pattern: str, ignore_merges: bool, name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, split_by(pattern), ignore_merges=ignore_merges)
    vocabulary = read_vocabulary(folder, N_TOKENS)
    assert (vocabulary.pre, vocabulary.warnings) == (name, ())


def test_matches_kept_and_the_rest_removed_is_the_same(tmp_path: Path) -> None:
    pre_tokenizer = split_by(QWEN2)
    pre_tokenizer["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    assert read_vocabulary(write(tmp_path, pre_tokenizer), N_TOKENS).pre == "qwen2"


def test_llama_3_without_bos_gets_none(tmp_path: Path) -> None:
    write(tmp_path, PRE_TOKENIZERS["llama-bpe"], ignore_merges=True)
    vocabulary = read_vocabulary(tmp_path, N_TOKENS)
    assert (vocabulary.pre, vocabulary.adds("bos")) == ("llama-bpe", False)
    write_vocabulary(vocabulary, tmp_path / "no-bos.gguf")
    with loaded(tmp_path / "no-bos.gguf") as vocab:
        assert tokenize(vocab, "the fox", add_special=True) == probe_tokens(tmp_path, "the fox")


def test_a_bos_that_does_not_exist_is_not_added(tmp_path: Path) -> None:
    write(tmp_path, PRE_TOKENIZERS["qwen2"])
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true, "bos_token": null}')
    assert read_vocabulary(tmp_path, N_TOKENS).adds("bos") is False


def test_a_new_spelling_that_cuts_alike_is_mapped_and_said(tmp_path: Path) -> None:
    respelled = QWEN2.replace(r"\s+(?!\S)|\s+", r"\s+(?!\S)|\s{1,}").replace(r"\p{L}+|", r"\p{L}{1,}|")
    vocabulary = read_vocabulary(write(tmp_path, split_by(respelled)), N_TOKENS)
    assert vocabulary.pre == "qwen2"
    assert any("new way" in warning for warning in vocabulary.warnings)


def test_whole_words_skipping_merges_where_llama_cpp_cannot_is_said(tmp_path: Path) -> None:
    vocabulary = read_vocabulary(write(tmp_path, PRE_TOKENIZERS["qwen2"], ignore_merges=True), N_TOKENS)
    assert vocabulary.pre == "qwen2"
    assert any("whole words" in warning for warning in vocabulary.warnings)


UNKNOWN = split_by(r"[a-m]+|[^a-m]")


def test_an_unknown_one_is_refused_with_the_way_to_override(tmp_path: Path) -> None:
    folder = write(tmp_path, UNKNOWN)
    with pytest.raises(TokenizerError, match=r"--pre-tokenizer NAME.*llama-bpe.*qwen2"):
        read_vocabulary(folder, N_TOKENS)
    assert read_vocabulary(folder, N_TOKENS, pre_tokenizer="qwen2").pre == "qwen2"
    with pytest.raises(TokenizerError, match=r"no pre-tokenizer 'qwen9'.*qwen2"):
        read_vocabulary(folder, N_TOKENS, pre_tokenizer="qwen9")


def test_a_merge_that_lost_its_digit_splitting_differs_from_its_base(tmp_path: Path) -> None:
    base = write(tmp_path / "base", PRE_TOKENIZERS["smollm"])
    lost = write(tmp_path / "merge", PRE_TOKENIZERS["gpt-2"])
    assert compare_tokenizers(base, base) == []
    assert compare_tokenizers(lost, base) == [
        "the pre-tokenizer differs: text is cut in other places than the base was trained with"
    ]


def test_a_merge_with_more_tokens_and_another_end_differs_from_its_base(tmp_path: Path) -> None:
    base = write(tmp_path / "base", PRE_TOKENIZERS["smollm"])
    merge = write(tmp_path / "merge", PRE_TOKENIZERS["smollm"])
    document = json.loads((merge / "tokenizer.json").read_text(encoding="utf-8"))
    document["added_tokens"].append({"id": N_TOKENS, "content": "<|tool|>", "special": True})
    (merge / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    (base / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}', encoding="utf-8")
    (merge / "tokenizer_config.json").write_text('{"eos_token": "<|tool|>", "chat_template": "x"}', encoding="utf-8")
    assert compare_tokenizers(merge, base) == [
        "1 token that the base has not: 400 '<|tool|>'",
        "the eos token is 400, the base's 2",
        "it has a chat template, the base has none",
    ]


def test_a_merge_that_lost_the_space_before_a_text_differs_from_its_base(tmp_path: Path) -> None:
    base, merge = tmp_path / "base", tmp_path / "merge"
    base.mkdir()
    merge.mkdir()
    (base / "tokenizer.model").write_bytes(spm_model(N_TOKENS))
    document = json.loads(spm_tokenizer(N_TOKENS))
    (merge / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    (base / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert compare_tokenizers(merge, base) == ["bos is added to a text, unlike by the base"]
    document |= {"normalizer": document["normalizer"]["normalizers"][1], "post_processor": None}
    (merge / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    assert compare_tokenizers(merge, base) == ["one of them puts a space before a text, the other does not"]
