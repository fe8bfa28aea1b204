"""What is said of a file's pre-tokenizer."""

import pytest
from moe_gguf.models.pre_tokenizers import KNOWN, missing_pre_tokenizer, pre_tokenizer_warning
from moe_gguf.models.template_language import is_go_template

BYTE_LEVEL = {"tokenizer.ggml.model": "gpt2"}


def test_only_byte_level_vocabularies_have_one() -> None:
    assert missing_pre_tokenizer({"tokenizer.ggml.model": "llama"}) is None
    assert "names no pre-tokenizer" in (missing_pre_tokenizer(BYTE_LEVEL) or "")
    assert "names no pre-tokenizer" in (pre_tokenizer_warning({**BYTE_LEVEL, "tokenizer.ggml.pre": ""}) or "")


def test_an_unknown_one_is_named() -> None:
    unknown = {**BYTE_LEVEL, "tokenizer.ggml.pre": "moe-9"}
    assert missing_pre_tokenizer(unknown) is None
    assert "does not know the pre-tokenizer 'moe-9'" in (pre_tokenizer_warning(unknown) or "")
    assert {"default", "llama-bpe", "qwen2", "smollm", "tekken"} <= KNOWN
    assert all(pre_tokenizer_warning({**BYTE_LEVEL, "tokenizer.ggml.pre": name}) is None for name in KNOWN)


@pytest.mark.parametrize(
    ("source", "go"),
    [
        ("{{ .Prompt }}", True),
        ("{{- if .System }}<|system|>{{ .System }}{{ end }}", True),
        ("{{ range $i, $_ := .Messages }}{{ .Content }}{{ end }}", True),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
        ("{{ messages[0].Content }}", False),
        ("{{ 'a. B' }}", False),
    ],
)
def test_go_templates_are_told_from_jinja(source: str, go: bool) -> None:
    assert is_go_template(source) is go
