"""Nothing that llama.cpp loads is called broken: oddities that it takes are taken, and run, as it runs them."""

import ctypes
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from moe_gguf.formats.errors import EngineError, GgufError
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.gguf_types import REMOVED, tensor_type
from moe_gguf.formats.llamacpp import ggml, llama
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.model import Model, tokenize

from ..command import moe_gguf
from ..loaded_models import ONE_THREAD
from .test_gguf_check import field
from .tiny_gguf import Fields, Tensors, write_tiny

MOSTLY_Q2_0 = 41
Change = Callable[[Fields, Tensors], None]


def empty_tokens(fields: Fields, _: Tensors) -> None:
    """Spell two tokens with nothing."""
    fields["tokenizer.ggml.tokens"][-3:-1] = ["", ""]


def longer_lists(fields: Fields, _: Tensors) -> None:
    """Give more scores and types than there are tokens."""
    fields["tokenizer.ggml.scores"] += [0.0]
    fields["tokenizer.ggml.token_type"] += [1]


def no_vocabulary(fields: Fields, _: Tensors) -> None:
    """Say that there is no tokenizer, beside tokens that repeat."""
    fields["tokenizer.ggml.model"] = "none"
    fields["tokenizer.ggml.tokens"] = ["a", "a"]


def no_byte_tokens(fields: Fields, _: Tensors) -> None:
    """Take the tokens of bytes away."""
    tokens = fields["tokenizer.ggml.tokens"]
    tokens[5:261] = [f"word{number}" for number in range(256)]


TAKEN: dict[str, Change] = {
    "empty tokens": empty_tokens,
    "longer lists": longer_lists,
    "no vocabulary": no_vocabulary,
    "heads per layer": field("llama.attention.head_count", [4, 4]),
    "key of another program": field("lmstudio.some.key", ["x", "y"]),
    "no byte tokens": no_byte_tokens,
    "name without characters": field("general.name", ""),
}


@pytest.mark.parametrize("change", TAKEN.values(), ids=TAKEN.keys())
def test_oddities_are_loaded_and_run(change: Change, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "odd.gguf", change)
    with Model(path, ONE_THREAD) as model, Engine(model, ONE_THREAD) as engine:
        assert np.isfinite(engine.decode_all(0, [1, 2, 3])).all()


def test_a_vocabulary_without_bytes_takes_what_it_can_spell(tmp_path: Path) -> None:
    whole, path = write_tiny(tmp_path / "whole.gguf"), write_tiny(tmp_path / "bytes.gguf", no_byte_tokens)
    with Model(whole, ONE_THREAD) as other, Model(path, ONE_THREAD) as model:
        for text in ("the cat in a hat", "<|im_start|>the<|im_end|>", " a  an"):
            assert tokenize(model, text) == tokenize(other, text)
        for text, said in (("the cät", r"cannot spell '\\xe4'"), ("a\nb!", r"cannot spell '\\n', '!'")):
            with pytest.raises(EngineError, match=said):
                tokenize(model, text)


def test_types_that_only_the_engine_knows(tmp_path: Path) -> None:
    source, path = write_tiny(tmp_path / "f32.gguf"), tmp_path / "q2_0.gguf"
    api = llama()
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = MOSTLY_Q2_0, 1
    assert api.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(parameters)) == 0
    tensor = read_gguf(path).tensors["blk.0.attn_q.weight"]
    assert (tensor.qtype.name, tensor.n_bytes) == ("Q2_0", 64 * 18)
    with Model(path, ONE_THREAD) as model, Engine(model, ONE_THREAD) as engine:
        assert np.isfinite(engine.decode_all(0, tokenize(model, "the cat"))).all()
    report = json.loads(moe_gguf("inspect", path, "--json").stdout)
    assert "Q2_0" in {share["type"] for share in report["types"]}
    assert "Q2_0" in moe_gguf("inspect", path).stdout
    assert "Q2_0" not in GGMLQuantizationType.__members__, "the package knows it now: take a newer type"


def with_type(path: Path, number: int) -> Path:
    """Write a tiny model whose first tensor says that it is of another type."""
    data = bytearray(write_tiny(path).read_bytes())
    name = b"token_embd.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8
    data[at : at + 4] = number.to_bytes(4, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (33, "Q4_0_8_8, a type that llama.cpp removed in December 2024; take the Q4_0 file"),
        (4, "Q4_2, a type that llama.cpp removed in May 2023"),
        (139, "type 139, which the llama.cpp here does not know; it is of a newer one .* or of a fork"),
        (2**32 - 1, "type 4294967295, which the llama.cpp here does not know"),
    ],
)
def test_types_that_are_none_are_named(number: int, said: str, tmp_path: Path) -> None:
    path = with_type(tmp_path / "old.gguf", number)
    with pytest.raises(GgufError, match=f"tensor 'token_embd.weight' is of {said}") as caught:
        read_gguf(path)
    assert "broken" not in str(caught.value)
    assert not llama().llama_model_load_from_file(str(path).encode(), llama().llama_model_default_params())


def test_every_number_is_what_the_engine_says() -> None:
    base = ggml("ggml-base")
    base.ggml_type_name.restype, base.ggml_blck_size.restype = ctypes.c_char_p, ctypes.c_int64
    base.ggml_type_size.restype = ctypes.c_size_t
    for number in range(43):
        if number in REMOVED:
            assert base.ggml_blck_size(number) == 0
            continue
        qtype = tensor_type(number)
        if qtype.name != "Q8_1":  # never in a file; the package counts it as it was in 2023
            assert GGML_QUANT_SIZES[qtype] == (base.ggml_blck_size(number), base.ggml_type_size(number))
        assert qtype.name.lower() == base.ggml_type_name(number).decode().lower()
