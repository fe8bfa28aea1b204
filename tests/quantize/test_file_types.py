"""File types by name, against llama.cpp's own list and names."""

import gguf
import pytest
from moe_gguf.formats.errors import PlanError
from moe_gguf.formats.llamacpp import llama
from moe_gguf.models.tensor_types import is_quantized, parse_tensor_type
from moe_gguf.quantize.file_types import FILE_TYPES, parse_file_type


def test_every_file_type_of_the_library_is_there() -> None:
    """NVFP4 has a number in llama.cpp, but its quantizer does not write it."""
    unknown_to_gguf = {"MOSTLY_Q2_0"} - set(gguf.LlamaFileType.__members__)
    names = {
        name.removeprefix("LLAMA_FTYPE_"): value
        for name, value in vars(llama()).items()
        if name.startswith("LLAMA_FTYPE_") and isinstance(value, int)
    }
    for name in ("GUESSED", "MOSTLY_NVFP4", *unknown_to_gguf):
        names.pop(name, None)
    ours = {each.ftype for each in FILE_TYPES}
    assert ours == set(names.values())


@pytest.mark.parametrize("each", FILE_TYPES, ids=lambda each: each.name)
def test_names_are_found_in_any_case(each: object) -> None:
    assert each in FILE_TYPES
    for name in (each.name, each.name.lower(), f" {each.name} ", *each.aliases):  # type: ignore[attr-defined]
        assert parse_file_type(name) is each


@pytest.mark.parametrize(("alias", "name"), [("q4_k", "Q4_K_M"), ("Q3_K", "Q3_K_M"), ("Q5_k", "Q5_K_M")])
def test_aliases(alias: str, name: str) -> None:
    assert parse_file_type(alias).name == name


def test_an_unknown_name_lists_close_ones() -> None:
    with pytest.raises(PlanError, match=r"did you mean Q4_K_M"):
        parse_file_type("Q4_KM")
    with pytest.raises(PlanError, match=r"known are F32"):
        parse_file_type("???")
    with pytest.raises(PlanError, match=r"did you mean"):
        parse_tensor_type("q8_00")
    with pytest.raises(PlanError, match=r"known are F32"):
        parse_tensor_type("")


def test_bits_per_weight_are_those_of_the_base_type() -> None:
    assert parse_file_type("Q4_K_M").bits_per_weight == 4.5
    assert parse_file_type("F16").bits_per_weight == 16
    assert parse_file_type("COPY").bits_per_weight is None


def test_quantized_types_are_those_of_ggml() -> None:
    plain = {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"}
    assert {qtype.name for qtype in gguf.GGMLQuantizationType if not is_quantized(qtype)} == plain
    assert is_quantized(parse_tensor_type("q4_K"))
