"""Broken, contradictory and hostile tokenizer files are refused in one line, never with a traceback."""

import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_gguf.convert.vocabulary import compare_tokenizers, probe_tokens, read_vocabulary
from moe_gguf.formats.errors import TokenizerError

from ..oracles.tokenizers import sentencepiece_model
from ..tiny_tokenizers import bpe_tokenizer, spm_model, spm_tokenizer

N_TOKENS = 400
BYTES = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
START = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]


def refusal(folder: Path, n_vocab: int = N_TOKENS, pre_tokenizer: str | None = None) -> str:
    """Return the one line with which a tokenizer is refused."""
    with pytest.raises(TokenizerError) as caught:
        read_vocabulary(folder, n_vocab, pre_tokenizer=pre_tokenizer)
    line = str(caught.value)
    assert line and "\n" not in line
    return line


def with_tokenizer(folder: Path, edit: Callable[[dict[str, Any]], Any], *, like: str | None = None) -> Path:
    document = json.loads(like or bpe_tokenizer(N_TOKENS))
    edit(document)
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_nothing_to_read(tmp_path: Path) -> None:
    assert "neither tokenizer.model nor tokenizer.json" in refusal(tmp_path)
    assert "is not a folder" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[]", "a JSON list"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"n": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b'{"model": 3}', "of kind None"),
        (b'{"model": {"type": "WordPiece", "vocab": {}}}', "of kind 'WordPiece'"),
        (b'{"model": {"type": "Unigram", "vocab": []}}', "of kind 'Unigram'"),
    ],
)
def test_a_tokenizer_json_that_is_none(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert said in refusal(tmp_path)


def vocab(document: dict[str, Any]) -> dict[str, Any]:
    return document["model"]["vocab"]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: vocab(d).update({"twice": 7}), "have the same id, 7"),
        (lambda d: vocab(d).update({"minus": -1}), "the id -1"),
        (lambda d: vocab(d).update({"far": 2**40}), "the id 1099511627776"),
        (lambda d: vocab(d).update({"half": 1.5}), "the id 1.5"),
        (lambda d: d["model"]["merges"].append("no pair here"), "is not a pair"),
        (lambda d: d["model"]["merges"].append(["a", "qqq"]), "'qqq', which is no token"),
        (lambda d: d["model"].update(end_of_word_suffix="</w>"), "GGUF cannot express"),
        (lambda d: d["added_tokens"].append({"id": 7, "content": "<new>"}), "collides with"),
        (lambda d: d["added_tokens"].append({"id": 900, "content": "<|im_end|>"}), "has two ids"),
        (lambda d: d["added_tokens"].append({"id": 2, "content": "<other>"}), "token 2 is"),
        (lambda d: d["added_tokens"].append({"id": 401}), "has no 'content'"),
        (lambda d: d["added_tokens"].append(5), "an object is expected"),
        (lambda d: d["added_tokens"].append({"id": "x", "content": "<new>"}), 'the id "x"'),
        (lambda d: d["model"].update(merges={"a": 1}), "list expected"),
        (lambda d: d.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}}), "cannot be loaded"),
        (lambda d: d.update(normalizer={"type": "Nonsense"}), "cannot be loaded"),
    ],
)
def test_contradictions_in_a_tokenizer_json(edit: Callable[[Any], Any], said: str, tmp_path: Path) -> None:
    assert said in refusal(with_tokenizer(tmp_path, edit))


def test_texts_that_llama_cpp_cannot_hold(tmp_path: Path) -> None:
    def add(*texts: str) -> Callable[[dict[str, Any]], None]:
        return lambda d: vocab(d).update({text: N_TOKENS + i for i, text in enumerate(texts)})

    n_vocab = N_TOKENS + 4
    assert "not valid Unicode" in refusal(with_tokenizer(tmp_path, add("\ud800")), n_vocab)
    assert "zero byte" in refusal(with_tokenizer(tmp_path, add("a\0b")), n_vocab)
    assert "are both '[PAD402]'" in refusal(with_tokenizer(tmp_path, add("x!", "[PAD402]")), n_vocab)
    assert "are both '[EMPTY_400]'" in refusal(with_tokenizer(tmp_path, add("", "[EMPTY_400]")), n_vocab)


def test_a_template_that_is_not_unicode(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(bpe_tokenizer(N_TOKENS), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "a\\ud800b"}')
    assert "not valid Unicode" in refusal(tmp_path)


def test_files_that_disagree(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm_model(N_TOKENS))
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 400}')
    config = {"added_tokens_decoder": {"400": {"content": "<end>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    said = refusal(tmp_path, N_TOKENS + 1)
    assert "400 is '<end>' in tokenizer_config.json and '<pad>' in added_tokens.json" in said


def test_a_sentencepiece_tokenizer_has_no_pre_tokenizer_to_override(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm_model(N_TOKENS))
    assert "no pre-tokenizer to name" in refusal(tmp_path, pre_tokenizer="qwen2")


def test_tokenizers_without_bytes(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model([*START, *BYTES[:-1], ("a", -1.0, 1)]))
    assert "no token for 1 of 256 bytes (<0xFF>" in refusal(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with_tokenizer(tmp_path, lambda d: vocab(d).pop("<0x41>"), like=spm_tokenizer(N_TOKENS))
    assert "no token for 1 of 256 bytes (<0x41>" in refusal(tmp_path)


@pytest.mark.parametrize(("model_type", "name"), [(1, "unigram"), (3, "word"), (4, "char"), (9, "9")])
def test_sentencepiece_of_another_type(model_type: int, name: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model([*START, *BYTES], model_type=model_type))
    assert f"of type {name!r}" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no pieces"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"\x0a\xff\xff\xff\xff\x0f", "ends beyond its message"),
        (b"\x0a", "ends inside a number"),
        (b"\xff" * 20, "longer than 64 bits"),
        (b"\x0b\x00", "unknown wire type 3"),
        (b"\x08\x01", "a number stands where bytes"),
        (b"\x0a\x03\x0a\x01\xff", "is not UTF-8"),
        (b"\x0a\x05\x15" + struct.pack("<f", float("nan")), "no finite score"),
        (b"\x0a\x02\x18\x07", "unknown type"),
    ],
)
def test_a_damaged_tokenizer_model(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert said in refusal(tmp_path)


def test_a_text_that_needs_a_byte_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model([*START, *BYTES[11:]]))
    with pytest.raises(TokenizerError, match="no piece <0x0A>"):
        probe_tokens(tmp_path, "\n")


def never_a_traceback(folder: Path) -> None:
    """Read, probe and compare; only a TokenizerError of one line may come."""
    for attempt in (
        lambda: read_vocabulary(folder, N_TOKENS + 8),
        lambda: probe_tokens(folder, "the fox\n 12"),
        lambda: compare_tokenizers(folder, folder),
    ):
        try:
            attempt()
        except TokenizerError as error:
            assert str(error) and "\n" not in str(error)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300) | st.binary(max_size=60).map(lambda tail: spm_model(N_TOKENS)[:900] + tail))
def test_any_bytes_as_tokenizer_model(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(data)
        never_a_traceback(Path(folder))


@settings(max_examples=100, deadline=None)
@given(position=st.floats(0, 1), junk=st.binary(min_size=1, max_size=8), cut=st.booleans())
def test_any_bytes_anywhere_in_a_tokenizer_model(position: float, junk: bytes, cut: bool) -> None:
    data = bytearray(spm_model(N_TOKENS))
    at = int(position * (len(data) - 1))
    data[at : len(data) if cut else at + len(junk)] = junk
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(data)
        never_a_traceback(Path(folder))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(byte_level=st.booleans(), data=st.data())
def test_any_value_anywhere_in_a_tokenizer_json(byte_level: bool, data: st.DataObject) -> None:
    document = json.loads(bpe_tokenizer(N_TOKENS) if byte_level else spm_tokenizer(N_TOKENS))
    place: Any = document
    key: Any = data.draw(st.sampled_from(sorted(place)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(JSON)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
        never_a_traceback(Path(folder))


KEYS = ("added_tokens_decoder", "chat_template", "add_prefix_space", "bos_token", "eos_token_id", "text_config", "0")


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["tokenizer_config", "added_tokens", "config", "chat_template"]),
    content=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4),
)
def test_any_value_in_the_other_files(name: str, content: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(spm_tokenizer(N_TOKENS), encoding="utf-8")
        (Path(folder) / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        never_a_traceback(Path(folder))
