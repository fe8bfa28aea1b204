"""Our choice of tensor types against llama.cpp's own dry run, over file types, models and options."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moe_gguf.formats.errors import PlanError
from moe_gguf.formats.gguf_file import GgufFile, read_gguf
from moe_gguf.models.tensor_types import TensorShape
from moe_gguf.quantize.choices import MixOptions, TypeChoice
from moe_gguf.quantize.facts import ModelFacts, facts_of
from moe_gguf.quantize.file_types import FILE_TYPES, FileType, parse_file_type
from moe_gguf.quantize.mixes import choose_types, plan_types
from moe_gguf.quantize.overrides import KvOverride, apply_kv_overrides
from moe_gguf.quantize.refusals import needs_imatrix
from moe_gguf.quantize.stock_policy import stock

from .gguf_headers import Shape, tensors_of, write_header
from .stock import StockJob, StockLog, run_stock

T = GGMLQuantizationType

# Together these take every branch of the policy: expert counts, depths, head sharing, tying, odd rows, families.
SHAPES = (
    Shape(n_expert=4),
    Shape(n_expert=8, n_layer=32),
    Shape(n_expert=8, n_layer=7, n_head_kv=8, tied=True),
    Shape(n_expert=1, n_layer=5, n_head_kv=4),
    Shape(n_expert=2, n_layer=17, n_head_kv=4, n_embd=576, n_ff=1536, tied=True),
    Shape(n_expert=3, n_layer=16, n_embd=576),
    Shape(n_expert=16, n_layer=40, n_head_kv=8),
    Shape(n_expert=4, n_layer=9, n_ff=592),
    Shape(n_expert=4, n_layer=3, n_embd=592, n_ff=592),
    Shape(n_expert=0, n_layer=80, n_head_kv=1),
    Shape(family="qwen2moe", n_expert=4, n_layer=24, n_head_kv=8, n_ff=1408),
    Shape(family="qwen3moe", n_expert=8, n_layer=12, n_head_kv=1, n_ff=768),
    Shape(family="deepseek", n_expert=4, n_layer=28, n_head_kv=8, n_ff=1408),
    Shape(family="deepseek2", n_expert=16, n_layer=27, n_head_kv=8, n_ff=1408),
    Shape(family="falcon", n_expert=0, n_layer=33, n_head_kv=1),
)

# llama.cpp looks at no value in a dry run, only at whether there is an importance matrix.
SOME_IMATRIX = {"blk.0.ffn_up_exps.weight": np.ones(8, np.float32)}


def dry_run(path: Path, file_type: FileType, options: MixOptions, has_imatrix: bool, **more: object) -> StockLog:
    """Ask llama.cpp what it would do."""
    job = StockJob(
        source=str(path),
        target="",
        ftype=file_type.ftype,
        only_copy=file_type.qtype is None,
        n_threads=1,
        imatrix=SOME_IMATRIX if has_imatrix else None,
        tensor_types=options.tensor_types,
        output_tensor_type=options.output_tensor_type,
        token_embedding_type=options.token_embedding_type,
        leave_output_tensor=options.leave_output_tensor,
        pure=options.pure,
        prune_layers=options.prune_layers,
        keep_split=options.keep_order,
        dry_run=True,
    )
    return run_stock(replace(job, **more))


def compare(
    file: GgufFile, facts: ModelFacts, file_type: FileType, options: MixOptions, has_imatrix: bool
) -> list[TypeChoice]:
    """Assert that both choose the same: types, order, fallbacks, sizes, the need of a matrix, and refusals."""
    theirs = dry_run(file.path, file_type, options, has_imatrix)
    tensors = list(file.tensors.values())
    if theirs.error:
        assert "no tensor type fallback" in theirs.error
        with pytest.raises(PlanError, match="nothing replaces that type"):
            plan_types(facts, tensors, stock(file_type), options, has_imatrix)
        return []
    ours = plan_types(facts, tensors, stock(file_type), options, has_imatrix)
    assert [(c.name, c.qtype) for c in ours] == [(t.name, t.qtype) for t in theirs.tensors]
    assert {c.name: c.wanted for c in ours if c.fell_back} == theirs.fallbacks
    if not has_imatrix:
        assert any(needs_imatrix(c, file_type.name) for c in ours) == theirs.needs_imatrix
    return ours


def compare_all(path: Path, shape: Shape) -> int:
    """Compare every file type on one model, with and without a matrix; return how many plans were compared."""
    file = read_gguf(write_header(path, shape))
    facts = facts_of(file.metadata, file.tensors)
    plans = [
        compare(file, facts, file_type, MixOptions(), has_imatrix)
        for file_type, has_imatrix in product(FILE_TYPES, (False, True))
    ]
    return len(plans)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.family}-{s.n_expert}x{s.n_layer}-{s.n_embd}-{s.n_ff}")
def test_every_file_type_is_chosen_as_llamacpp_does(tmp_path: Path, shape: Shape) -> None:
    assert compare_all(tmp_path / "header.gguf", shape) == 2 * len(FILE_TYPES)


def full_grid() -> Iterator[Shape]:
    """Yield the models of the full grid."""
    experts, depths, shared = (1, 2, 3, 4, 8, 16), (2, 5, 8, 16, 27, 32, 56, 80), (1, 2, 4, 8)
    rows = ((512, 1024), (576, 1536), (512, 592), (592, 1024))
    for i, (n_expert, n_layer, n_head_kv) in enumerate(product(experts, depths, shared)):
        n_embd, n_ff = rows[i * 7 // 4 % len(rows)]
        yield Shape("llama", n_layer, n_expert, 8, n_head_kv, n_embd, n_ff, 320, tied=i % 3 == 0)
    for family, n_layer, n_head_kv in product(("qwen2moe", "qwen3moe", "deepseek", "deepseek2"), (3, 24, 61), (1, 8)):
        yield Shape(family, n_layer, 8, 8, n_head_kv, 512, 1408)
    for family, n_layer in product(("llama", "qwen2", "falcon"), (2, 32, 80)):
        yield Shape(family, n_layer, 0, 8, 1, 512, 1408)


@pytest.mark.slow
def test_the_full_grid(tmp_path: Path) -> None:
    for number, shape in enumerate(full_grid()):
        path = tmp_path / f"{number}.gguf"
        compare_all(path, shape)
        path.unlink()


SOME_TYPES = ("F16", "Q8_0", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K", "IQ3_XXS", "IQ2_M", "MXFP4_MOE", "Q4_0", "COPY")

# Parts of names that mean something to llama.cpp, and some that only look like it.
STRANGE_NAMES = """
    position_embd token_types token_embd_norm per_layer_token_embd per_layer_model_proj v.patch_embd cls.output
    v.blk.0.patch_merger v.position_embd v.rel_pos_h sam.neck.0 sam.net_2 sam.pos_embd a.rvq.codebook mm.a.code_embd
    nextn.eh_proj a.weight_scale
"""
STRANGE_PARTS = """
    ffn_gate_tid2eid ffn_gate_inp_shexp ffn_gate_up_exps altup_proj laurel_l ssm_conv1d shortconv.conv nextn.eh_proj
    indexer.k_proj indexer.q_proj indexer.attn_q_b indexer.attn_k indexer.proj indexer_compressor_gate
    indexer_compressor_ape hc_attn ssm_f_a ssm_f_b ssm_g_a ssm_g_b ssm_beta ssm_in attn_kv_a_mqa attn_k_b attn_v_b
    attn_q_a attn_q_b attn_qkv attn_kv_b attn_rel_b attn_norm_2 attn_sub_norm attn_q_norm time_mix_first time_mix_w0
    time_mix_w1 time_mix_w2 time_mix_v0 time_mix_v1 time_mix_v2 time_mix_a0 time_mix_a1 time_mix_a2 time_mix_g1
    time_mix_g2 time_mix_decay_w1 time_mix_decay_w2 time_mix_lerp_fused time_mix_key
"""


@pytest.mark.parametrize("family", ["llama", "glm5-next", "bailingmoe3"])
def test_names_with_rules_of_their_own(tmp_path: Path, family: str) -> None:
    shape = Shape(family=family, n_layer=10, n_expert=4)
    names = [f"{name}.weight" for name in STRANGE_NAMES.split()]
    names += [f"blk.{i}.{part}.{end}" for i in (0, 5) for part in STRANGE_PARTS.split() for end in ("weight", "bias")]
    sizes = ((512, 512), (512, 64, 4), (512, 1, 2), (1, 512), (512, 1))
    strange = [TensorShape(name, sizes[i % len(sizes)], T.F16) for i, name in enumerate(names)]
    tensors = [*tensors_of(shape), *strange, *(TensorShape(f"x{name}", (512, 512), T.F16) for name in names)]
    file = read_gguf(write_header(tmp_path / "header.gguf", shape, tensors))
    facts = facts_of(file.metadata, file.tensors)
    for type_name, has_imatrix in product(SOME_TYPES, (False, True)):
        options = MixOptions(tensor_types=((r"^xblk.*ffn_", T.Q8_0),))
        assert compare(file, facts, parse_file_type(type_name), options, has_imatrix)


OPTIONS = {
    "pure": MixOptions(pure=True),
    "leave": MixOptions(leave_output_tensor=True),
    "output": MixOptions(output_tensor_type=T.F32),
    "embedding": MixOptions(token_embedding_type=T.Q4_0),
    "pattern": MixOptions(tensor_types=((r"ffn_(up|gate)", T.IQ4_NL), ("attn_v", T.BF16), ("attn", T.Q6_K))),
    "skips a counter": MixOptions(tensor_types=((r"blk\.[0-2]\.attn_v", T.Q8_0),)),
    "names the output": MixOptions(tensor_types=(("output", T.Q3_K), ("token", T.F16)), output_tensor_type=T.Q8_0),
    "pruned": MixOptions(prune_layers=(0, 3, 4)),
    "everything": MixOptions(
        tensor_types=(("down", T.Q5_1),), output_tensor_type=T.Q8_0, token_embedding_type=T.Q8_0, prune_layers=(2,)
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("tied", [False, True])
def test_options_mean_what_they_mean_to_llamacpp(tmp_path: Path, name: str, tied: bool) -> None:
    shape = Shape(n_layer=9, n_expert=4, tied=tied, n_embd=576)
    file = read_gguf(write_header(tmp_path / "header.gguf", shape))
    facts = facts_of(file.metadata, file.tensors)
    for type_name, has_imatrix in product(SOME_TYPES, (False, True)):
        assert compare(file, facts, parse_file_type(type_name), OPTIONS[name], has_imatrix)


def test_a_quantized_source_is_planned_like_any_other(tmp_path: Path) -> None:
    shape = Shape(n_layer=3, n_expert=4)
    file = read_gguf(write_header(tmp_path / "header.gguf", shape, tensors_of(shape, T.Q8_0)))
    facts = facts_of(file.metadata, file.tensors)
    for type_name in SOME_TYPES:
        assert compare(file, facts, parse_file_type(type_name), MixOptions(), has_imatrix=True)


def test_shards_keep_their_order(tmp_path: Path) -> None:
    shape = Shape(n_layer=10, n_expert=4)
    tensors = tensors_of(shape)
    halves = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
    for i, half in enumerate(halves):
        split = (i, 2, len(tensors))
        write_header(tmp_path / f"model-{i + 1:05}-of-00002.gguf", shape, half, split)
    file = read_gguf(tmp_path / "model-00001-of-00002.gguf")
    facts = facts_of(file.metadata, file.tensors)
    for type_name, keep_order in product(SOME_TYPES, (False, True)):
        chosen = compare(file, facts, parse_file_type(type_name), MixOptions(keep_order=keep_order), True)
        assert (chosen[0].name == tensors[0].name) == keep_order


def test_an_override_of_the_experts_changes_the_mix(tmp_path: Path) -> None:
    file = read_gguf(write_header(tmp_path / "header.gguf", Shape(n_expert=4)))
    overrides = [KvOverride("llama.expert_count", 8)]
    fields = apply_kv_overrides(file.fields, overrides)
    facts = facts_of({key: field.value for key, field in fields.items()}, file.tensors)
    file_type = parse_file_type("Q4_K_M")
    theirs = dry_run(file.path, file_type, MixOptions(), False, kv_overrides=overrides)
    ours = choose_types(facts, list(file.tensors.values()), stock(file_type))
    assert {c.name: c.qtype for c in ours} == {t.name: t.qtype for t in theirs.tensors}
    assert {c.qtype for c in ours if "attn_k.weight" in c.name} == {T.Q8_0}


SHAPE_STRATEGY = st.builds(
    Shape,
    family=st.sampled_from(("llama", "qwen2moe", "qwen3moe", "deepseek2")),
    n_layer=st.integers(2, 20),
    n_expert=st.sampled_from((1, 2, 3, 4, 8, 16)),
    n_head_kv=st.sampled_from((1, 2, 4, 8)),
    n_embd=st.sampled_from((256, 512, 576, 800)),
    n_ff=st.sampled_from((256, 320, 336, 1408)),
    tied=st.booleans(),
)
OPTION_STRATEGY = st.builds(
    MixOptions,
    tensor_types=st.lists(
        st.tuples(
            st.sampled_from(("attn", r"blk\.[13]\.", "ffn_down", "token", "^output", "exps", "shexp", "kv_")),
            st.sampled_from((T.F32, T.F16, T.Q8_0, T.Q4_1, T.Q6_K, T.Q2_K, T.IQ4_XS, T.IQ3_S, T.MXFP4)),
        ),
        max_size=3,
    ).map(tuple),
    output_tensor_type=st.none() | st.sampled_from((T.F32, T.Q8_0, T.BF16)),
    token_embedding_type=st.none() | st.sampled_from((T.F16, T.Q8_0, T.Q5_0)),
    leave_output_tensor=st.booleans(),
    pure=st.booleans(),
    prune_layers=st.sampled_from(((), (0,), (1,), (0, 1))),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SHAPE_STRATEGY, OPTION_STRATEGY, st.sampled_from(FILE_TYPES), st.booleans())
def test_any_options_on_any_model(
    tmp_path: Path, shape: Shape, options: MixOptions, file_type: FileType, has_imatrix: bool
) -> None:
    if len(options.prune_layers) >= shape.n_layer:
        options = replace(options, prune_layers=())
    file = read_gguf(write_header(tmp_path / "header.gguf", shape))
    compare(file, facts_of(file.metadata, file.tensors), file_type, options, has_imatrix)


def test_every_choice_has_a_reason_and_an_exact_size() -> None:
    facts = ModelFacts("llama", 4, 8, 2, 4, tied=False)
    choices = {c.name: c for c in choose_types(facts, tensors_of(Shape(n_embd=576)), stock(parse_file_type("Q4_K_M")))}
    assert choices["blk.0.ffn_gate_inp.weight"].reason == "kept: router"
    assert choices["blk.0.attn_norm.weight"].reason == "kept: not a matrix"
    value = choices["blk.0.attn_v.weight"]
    assert (value.wanted, value.qtype, value.fell_back) == (T.Q4_K, T.Q5_0, True)
    assert value.reason == "Q4_K_M; rows of 576 do not fit Q4_K"
    assert value.n_bytes == 576 * 144 // 32 * 22
    assert (choices["output.weight"].qtype, choices["output.weight"].reason) == (T.Q8_0, "Q4_K_M: output")
    assert sum(c.n_bytes for c in choices.values()) > 0


PUBLISHED = {
    8: {"Q4_K_M": 28.45, "Q5_K_M": 33.23, "Q6_K": 38.38, "Q8_0": 49.63, "F16": 93.41},
    4: {"Q4_K_M": 14.61, "Q5_K_M": 17.13, "Q6_K": 19.82, "Q8_0": 25.67, "F16": 48.31},
}


@pytest.mark.parametrize(("n_expert", "type_name"), [(n, name) for n, sizes in PUBLISHED.items() for name in sizes])
def test_sizes_of_files_that_were_published(n_expert: int, type_name: str) -> None:
    """Files of Mixtral's shape, in GB; their headers take less than 0.01 GB."""
    shape = Shape(n_layer=32, n_expert=n_expert, n_head=32, n_head_kv=8, n_embd=4096, n_ff=14336, n_vocab=32000)
    facts = ModelFacts("llama", 32, 32, 8, n_expert, tied=False)
    choices = choose_types(facts, tensors_of(shape), stock(parse_file_type(type_name)))
    assert sum(choice.n_bytes for choice in choices) / 1e9 == pytest.approx(PUBLISHED[n_expert][type_name], abs=0.01)
