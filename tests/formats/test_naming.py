"""Names of files: the convention of the gguf package, and nothing that a file system would not take."""

import re

import pytest
from moe_gguf.formats.gguf_fields import Field, field_of
from moe_gguf.formats.naming import gguf_stem


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"general.basename": "SmolBruce", "general.size_label": "4x135M"}, "SmolBruce-4x135M-Q4_K_M"),
        ({"general.name": "My model", "general.size_label": "8x7B"}, "My-model-8x7B-Q4_K_M"),
        ({"general.basename": "A", "general.finetune": "Chat", "general.version": "v2"}, "A-Chat-v2-Q4_K_M"),
        ({"general.name": 'a/b\\c:d*e?"<f>|g\nh'}, "a-b-c-d-e---f--g-h-Q4_K_M"),
        ({"general.name": "../../etc/passwd"}, "..-..-etc-passwd-Q4_K_M"),
        ({}, "ggml-model-Q4_K_M"),
    ],
)
def test_stems(fields: dict[str, str], expected: str) -> None:
    typed: dict[str, Field] = {key: field_of(value) for key, value in fields.items()}
    assert gguf_stem(typed, "Q4_K_M") == expected
    assert not re.search(r'[<>:"/\\|?*\x00-\x1f]', expected)
