"""What mixes refuse: types that nothing writes, that would be garbage, or that lose quality unasked."""

import pytest
from gguf import GGMLQuantizationType
from moe_gguf.formats.errors import ImatrixError, PlanError
from moe_gguf.models.tensor_types import TensorShape
from moe_gguf.quantize import ggml
from moe_gguf.quantize.choices import MixOptions
from moe_gguf.quantize.facts import ModelFacts
from moe_gguf.quantize.file_types import parse_file_type
from moe_gguf.quantize.mixes import choose_types
from moe_gguf.quantize.refusals import ENCODER_NEEDS_IMATRIX
from moe_gguf.quantize.stock_policy import stock

from .gguf_headers import Shape, tensors_of

T = GGMLQuantizationType


def choose(shape: Shape, type_name: str, options: MixOptions | None = None, has_imatrix: object = False) -> object:
    """Choose types for a model that is not written anywhere."""
    tensors = tensors_of(shape)
    facts = ModelFacts(shape.family, shape.n_layer, shape.n_head, shape.n_head_kv, shape.n_expert, shape.tied)
    return choose_types(facts, tensors, stock(parse_file_type(type_name)), options, has_imatrix)  # type: ignore[arg-type]


def test_low_bit_types_ask_for_a_matrix_that_knows_the_tensors() -> None:
    names = {tensor.name for tensor in tensors_of(Shape())}
    for type_name in ("IQ2_XS", "IQ3_XXS", "IQ1_M", "Q2_K_S"):
        with pytest.raises(ImatrixError, match="garbage without"):
            choose(Shape(), type_name)
        choose(Shape(), type_name, has_imatrix=True)
        choose(Shape(), type_name, has_imatrix=names)
        with pytest.raises(ImatrixError, match=r"knows nothing of blk\.2\.ffn_up"):
            choose(Shape(), type_name, has_imatrix=names - {"blk.2.ffn_up_exps.weight"})
    with pytest.raises(ImatrixError, match=r"token_embd\.weight"):
        choose(Shape(), "Q4_0", MixOptions(token_embedding_type=T.IQ2_XS))


def test_encoders_that_need_a_matrix_are_known() -> None:
    assert {qtype for qtype in T if ggml.requires_imatrix(qtype)} == ENCODER_NEEDS_IMATRIX


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (MixOptions(output_tensor_type=T.Q6_K), "by --output-tensor-type"),
        (MixOptions(token_embedding_type=T.Q6_K), "by --token-embedding-type"),
        (MixOptions(tensor_types=(("attn_q", T.Q8_1),)), "no weights are written as Q8_1"),
        (MixOptions(tensor_types=(("attn_q", T.NVFP4),)), ""),
        (MixOptions(tensor_types=(("attn_q", T.Q1_0),)), "nothing replaces that type"),
        (MixOptions(prune_layers=(9,)), "does not have: 9"),
        (MixOptions(prune_layers=(0, 1, 2, 3)), "all layers would be pruned"),
    ],
)
def test_what_cannot_be_written_is_refused(options: MixOptions, words: str) -> None:
    shape = Shape(n_embd=576)
    if not words:
        choose(shape, "Q4_K_M", options)
        return
    with pytest.raises(PlanError, match=words):
        choose(shape, "Q4_K_M", options)


def test_requantizing_needs_permission() -> None:
    tensors = tensors_of(Shape(), T.Q8_0)
    facts = ModelFacts("llama", 4, 8, 2, 4, tied=False)
    with pytest.raises(PlanError, match=r"30 tensors are quantized already.*--allow-requantize"):
        choose_types(facts, tensors, stock(parse_file_type("Q4_0")))
    choose_types(facts, tensors, stock(parse_file_type("Q4_0")), MixOptions(allow_requantize=True))
    choose_types(facts, tensors, stock(parse_file_type("Q8_0")))
    choose_types(facts, tensors, stock(parse_file_type("COPY")))


def test_a_layer_outside_the_model_is_refused() -> None:
    facts = ModelFacts("llama", 2, 8, 2, 4, tied=True)
    for name in ("blk.2.ffn_down_exps.weight", "mtp.ffn_down.weight"):
        with pytest.raises(PlanError, match=name):
            choose_types(facts, [TensorShape(name, (256, 256), T.F16)], stock(parse_file_type("Q4_K_M")))
