"""File names as the Hub and llama.cpp take them (field notes of both parsers)."""

import pytest
from moe_gguf.quantize.file_types import FILE_TYPES
from moe_gguf.release.names import found_by_tag, hub_label, mistaken


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Bruce-4x7B-Q4_K_M.gguf", "Q4_K_M"),
        ("bruce-4x7b.q4_k_m.gguf", "Q4_K_M"),
        ("Bruce-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Bruce-F16-IQ2_XXS-00001-of-00002.gguf", "IQ2_XXS"),
        ("Bruce-4x7B-BF16.gguf", "BF16"),
        ("Bruce.gguf", None),
    ],
)
def test_labels_are_the_hubs(name: str, label: str | None) -> None:
    assert hub_label(name) == label


def test_every_type_that_can_be_released_finds_its_own_file() -> None:
    files = {f"Bruce-4x7B-{one.name}.gguf": one.name for one in FILE_TYPES if one.name not in ("COPY", "F16")}
    assert mistaken(files) == []
    assert found_by_tag([*files, "Bruce-Q4_K_M-imatrix.gguf"], "q4_k_m") == "Bruce-4x7B-Q4_K_M.gguf"


def test_what_finds_another_file_is_told() -> None:
    told = mistaken({"B-BF16.gguf": "BF16", "B-F16.gguf": "F16"})
    assert len(told) == 1 and "REPO:F16 finds B-BF16.gguf" in told[0]
