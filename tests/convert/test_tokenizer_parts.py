"""Special tokens, padding, scores, prefixes and templates end up in GGUF as llama.cpp needs them."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType, Keys, TokenType
from moe_gguf.convert.chat_template import read_chat_templates
from moe_gguf.convert.vocabulary import Vocabulary, read_vocabulary
from moe_gguf.formats.errors import TokenizerError

from ..oracles.tokenizers import sentencepiece_model
from ..tiny_tokenizers import bpe_tokenizer, spm_model, spm_tokenizer
from .llama_tokens import loaded, tokenize, write_vocabulary

N_TOKENS = 400
FIRST = {"SpecialToken": {"id": "<s>", "type_id": 0}}
LAST = {"SpecialToken": {"id": "</s>", "type_id": 0}}
A, B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")


def write(folder: Path, tokenizer: str | bytes, **files: Any) -> Path:
    """Write tokenizer.json (text) or tokenizer.model (bytes), and more JSON files by their stem."""
    if isinstance(tokenizer, bytes):
        (folder / "tokenizer.model").write_bytes(tokenizer)
    else:
        (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def edited(tokenizer: str, **parts: Any) -> str:
    document = json.loads(tokenizer)
    for name, value in parts.items():
        document[name] = value(document[name]) if callable(value) else value
    return json.dumps(document)


def fields(vocabulary: Vocabulary) -> dict[str, Any]:
    return {key: value for key, value, _ in vocabulary.fields()}


def test_rows_beyond_the_tokens_are_unused_and_load(tmp_path: Path) -> None:
    for tokenizer in (bpe_tokenizer(N_TOKENS), spm_tokenizer(N_TOKENS), spm_model(N_TOKENS)):
        write(tmp_path, tokenizer)
        vocabulary = read_vocabulary(tmp_path, N_TOKENS + 3)
        assert vocabulary.tokens[-3:] == ("[PAD400]", "[PAD401]", "[PAD402]")
        assert vocabulary.token_types[-3:] == (int(TokenType.UNUSED),) * 3
        assert (vocabulary.n_tokens, vocabulary.n_vocab) == (N_TOKENS, N_TOKENS + 3)
        write_vocabulary(vocabulary, tmp_path / "padded.gguf")
        with loaded(tmp_path / "padded.gguf") as vocab:
            assert tokenize(vocab, "the fox")


def test_fewer_rows_than_tokens_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, spm_model(N_TOKENS), added_tokens={"<pad>": N_TOKENS, "<|im_end|>": N_TOKENS + 1})
    with pytest.raises(TokenizerError, match=r"400 rows, 2 of .*: 400 '<pad>', 401 '<\|im_end\|>'; use"):
        read_vocabulary(tmp_path, N_TOKENS)


def test_ids_come_from_the_text_first_and_from_the_number_then(tmp_path: Path) -> None:
    write(
        tmp_path,
        bpe_tokenizer(N_TOKENS),
        tokenizer_config={"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "pad_token": "<no>"},
        config={"eos_token_id": 0, "pad_token_id": 0, "unk_token_id": -1, "bos_token_id": [1, 2]},
    )
    vocabulary = read_vocabulary(tmp_path, N_TOKENS)
    assert [vocabulary.token_id(part) for part in ("bos", "eos", "pad", "unk")] == [1, 2, 0, None]


def test_an_id_beyond_the_rows_is_left_out_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path, spm_model(N_TOKENS), config={"pad_token_id": 32000, "eos_token_id": 2})
    vocabulary = read_vocabulary(tmp_path, N_TOKENS)
    assert (vocabulary.token_id("pad"), vocabulary.token_id("eos")) == (None, 2)
    assert any("32000" in warning for warning in vocabulary.warnings)


@pytest.mark.parametrize(
    ("processor", "added"),
    [
        (None, (None, None, None)),
        ({"type": "ByteLevel"}, (False, False, None)),
        ({"type": "TemplateProcessing", "single": [A]}, (None, None, None)),
        ({"type": "TemplateProcessing", "single": [FIRST, A], "pair": [FIRST, A, FIRST, B]}, (True, None, False)),
        ({"type": "TemplateProcessing", "single": [FIRST, A, LAST], "pair": [FIRST, A, LAST]}, (True, True, None)),
        ({"type": "TemplateProcessing", "single": [A, LAST], "pair": [A, LAST, B, LAST]}, (None, True, False)),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, {"type": "RobertaProcessing"}]}, (True,) * 3),
    ],
)
def test_what_is_added_around_a_text(processor: Any, added: tuple[bool | None, ...], tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    write(tmp_path, edited(spm_tokenizer(N_TOKENS), post_processor=processor), tokenizer_config=config)
    vocabulary = read_vocabulary(tmp_path, N_TOKENS)
    assert tuple(vocabulary.adds(part) for part in ("bos", "eos", "sep")) == added


def test_bos_is_added_by_llama_cpp_where_the_source_adds_it(tmp_path: Path) -> None:
    write(tmp_path, spm_tokenizer(N_TOKENS), tokenizer_config={"bos_token": "<s>", "eos_token": "</s>"})
    write_vocabulary(read_vocabulary(tmp_path, N_TOKENS), tmp_path / "bos.gguf")
    with loaded(tmp_path / "bos.gguf") as vocab:
        assert tokenize(vocab, "the fox", add_special=True) == [1, *tokenize(vocab, "the fox")]


@pytest.mark.parametrize(("n_vocab", "late"), [(32016, {"prefix", "suffix", "middle", "eot"}), (49152, set())])
def test_sizes_that_llama_cpp_knows_models_by(n_vocab: int, late: set[str], tmp_path: Path) -> None:
    write(tmp_path, spm_model(N_TOKENS))
    vocabulary = read_vocabulary(tmp_path, n_vocab)
    assert set(vocabulary.late.ids) == late
    assert fields(vocabulary).get(Keys.Tokenizer.ADD_BOS) == (False if n_vocab == 49152 else None)


def test_a_number_too_large_for_the_special_sizes_is_not_special(tmp_path: Path) -> None:
    assert not read_vocabulary(write(tmp_path, spm_model(N_TOKENS)), 32017).late.ids


def test_scores_and_types_of_a_tokenizer_json_are_those_of_its_model(tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "model").mkdir()
    rebuilt = read_vocabulary(write(tmp_path / "json", spm_tokenizer(N_TOKENS)), N_TOKENS)
    own = read_vocabulary(write(tmp_path / "model", spm_model(N_TOKENS)), N_TOKENS)
    assert rebuilt.token_types == own.token_types
    assert rebuilt.scores is not None and own.scores is not None
    assert rebuilt.scores[259:] == own.scores[259:]


def test_added_tokens_are_control_or_plain(tmp_path: Path) -> None:
    added = {
        "400": {"content": "<end>", "special": True},
        "401": {"content": "<|looks|>", "special": False},
        "402": {"content": "two▁words", "special": False},
    }
    for tokenizer in (spm_model(N_TOKENS), spm_tokenizer(N_TOKENS), bpe_tokenizer(N_TOKENS)):
        vocabulary = read_vocabulary(
            write(tmp_path, tokenizer, tokenizer_config={"added_tokens_decoder": added}), N_TOKENS + 3
        )
        assert vocabulary.tokens[-3:] == ("<end>", "<|looks|>", "two words")
        control, plain = int(TokenType.CONTROL), int(TokenType.USER_DEFINED)
        assert vocabulary.token_types[-3:] == (control, control, plain)
        (tmp_path / "tokenizer.model").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("parts", "prefix", "warned"),
    [
        ({}, None, False),
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "always"}}, None, False),
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, None, True),
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}, False, False),
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "add_prefix_space": False}}, False, False),
        ({"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}}, False, False),
        ({"normalizer": {"type": "Lowercase"}}, False, True),
    ],
)
def test_a_space_before_the_text(parts: dict[str, Any], prefix: bool | None, warned: bool, tmp_path: Path) -> None:
    for part in parts.values():
        if part and part["type"] == "Metaspace":
            part |= {"replacement": "▁", "split": False}
    vocabulary = read_vocabulary(write(tmp_path, edited(spm_tokenizer(N_TOKENS), **parts)), N_TOKENS)
    about_text = [warning for warning in vocabulary.warnings if "formed in other places" not in warning]
    assert (vocabulary.add_space_prefix, bool(about_text)) == (prefix, warned)


def test_runs_of_spaces_that_are_cut_are_said(tmp_path: Path) -> None:
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}

    def with_two_spaces(model: dict[str, Any]) -> dict[str, Any]:
        return {**model, "vocab": {**model["vocab"], "▁▁": N_TOKENS}, "merges": [*model["merges"], "▁ ▁"]}

    tokenizer = edited(spm_tokenizer(N_TOKENS), normalizer=None, pre_tokenizer=metaspace, model=with_two_spaces)
    vocabulary = read_vocabulary(write(tmp_path, tokenizer), N_TOKENS + 1)
    assert any("runs of spaces" in warning for warning in vocabulary.warnings)


def test_a_model_without_a_space_before_the_text(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)] + [("a", -1.0, 1)]
    write(tmp_path, sentencepiece_model(pieces, prefix=0))
    assert read_vocabulary(tmp_path, len(pieces)).add_space_prefix is False


def test_merges_that_scores_cannot_express_are_said(tmp_path: Path) -> None:
    def without_half(model: dict[str, Any]) -> dict[str, Any]:
        # "abc" from "a" and "bc" only: llama.cpp would make it from "ab" and "c" too.
        vocab = model["vocab"] | {text: N_TOKENS + i for i, text in enumerate(("ǎb", "bć", "ǎbć", "ǎ", "ć"))}
        return {**model, "vocab": vocab, "merges": [*model["merges"], "b ć", "ǎ b", "ǎ bć"]}

    write(tmp_path, edited(spm_tokenizer(N_TOKENS), model=without_half))
    assert any("'ǎbć'" in warning for warning in read_vocabulary(tmp_path, N_TOKENS + 5).warnings)


NAMED = [{"name": "default", "template": "d"}, {"name": "tool use", "template": "t"}]


@pytest.mark.parametrize(
    ("files", "default", "named"),
    [
        ({}, None, {}),
        ({"tokenizer_config.json": '{"chat_template": "a"}', "chat_template.jinja": "b"}, "a", {}),
        ({"tokenizer_config.json": json.dumps({"chat_template": NAMED})}, "d", {"tool_use": "t"}),
        ({"tokenizer_config.json": json.dumps({"chat_template": NAMED[1:]})}, None, {"tool_use": "t"}),
        ({"tokenizer_config.json": "{}", "chat_template.jinja": "b\n", "chat_template.json": "{}"}, "b\n", {}),
        ({"chat_template.jinja": "b", "additional_chat_templates/rag.jinja": "r"}, "b", {"rag": "r"}),
        ({"chat_template.json": '{"chat_template": "c"}'}, "c", {}),
    ],
)
def test_chat_templates(files: dict[str, str], default: str | None, named: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    chat = read_chat_templates(tmp_path)
    assert (chat.default, dict(chat.named)) == (default, named)


def test_named_templates_are_listed_before_the_default(tmp_path: Path) -> None:
    write(tmp_path, bpe_tokenizer(N_TOKENS), tokenizer_config={"chat_template": NAMED})
    entries = read_vocabulary(tmp_path, N_TOKENS).fields()
    assert entries[-3:] == [
        ("tokenizer.chat_template.tool_use", "t", GGUFValueType.STRING),
        ("tokenizer.chat_templates", ["tool_use"], GGUFValueType.ARRAY),
        ("tokenizer.chat_template", "d", GGUFValueType.STRING),
    ]
