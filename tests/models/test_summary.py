"""A model's facts from its headers: counted by hand here, and as they are published."""

import re
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import MODEL_TENSOR, TENSOR_NAMES, GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.llamacpp import listening, llama
from moe_gguf.models.summary import Summary, TensorFacts, summarize_gguf
from moe_gguf.models.tensor_roles import Part, part_of

from ..checkpoints import Tiny, write_checkpoint
from ..command import moe_gguf
from ..header_only import MISTRAL_4X7B, MIXTRAL_8X7B, Shape, entries, fields, write_header_only

SMALL = Shape(n_expert=3, n_layer=2, n_embd=64, n_ff=96, n_head=4, n_head_kv=2, n_vocab=100)


def summary_of(folder: Path, shape: Shape, **others: Any) -> Summary:
    """Write a header-only file and sum it up."""
    path = write_header_only(folder / "model.gguf", fields(shape, **others), entries(shape))
    return summarize_gguf(read_gguf(path))


@pytest.mark.parametrize(("shape", "total"), [(MISTRAL_4X7B, 24_153_690_112), (MIXTRAL_8X7B, 46_702_792_704)])
def test_published_parameters(shape: Shape, total: int, tmp_path: Path) -> None:
    summary = summary_of(tmp_path, shape)
    assert summary.n_params == total
    assert f"{summary.n_active_params / 1e9:.1f} {summary.n_dense_params / 1e9:.2f}" == "12.9 7.24"


def test_roles_and_types_add_up(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, SMALL)
    roles = summary.by_role()
    assert {role: share.n_tensors for role, share in roles.items()} == {
        Part.EXPERTS: 6,
        Part.ROUTER: 2,
        Part.ATTENTION: 8,
        Part.EMBEDDINGS: 2,
        Part.NORMS: 5,
    }
    assert roles[Part.EXPERTS].n_weights == 2 * 3 * 3 * 64 * 96 == summary.n_expert_params
    assert roles[Part.ROUTER].n_bytes == 2 * 4 * 3 * 64
    for shares in (roles, summary.by_type()):
        assert sum(share.n_bytes for share in shares.values()) == summary.n_bytes
        assert sum(share.n_weights for share in shares.values()) == summary.n_params
    assert list(summary.by_type()) == ["BF16", "F32"]
    assert summary.file_type == "BF16"


def test_kv_cache(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, SMALL)
    per_token = 2 * 2 * 2 * 16 * 2
    assert summary.kv_bytes(512) == 512 * per_token
    assert summary.kv_bytes(257) == 512 * per_token, "llama.cpp rounds up to 256"
    assert summary.kv_bytes(512, GGMLQuantizationType.Q8_0) == 512 * per_token // 2 * 34 // 32
    wide = summary_of(tmp_path, SMALL, llama__attention__key_length=32, llama__attention__value_length=8)
    assert wide.kv_bytes(256) == 256 * 2 * 2 * (32 + 8) * 2
    uneven = summary_of(tmp_path, SMALL, llama__attention__head_count_kv=[2, 1])
    assert uneven.kv_bytes(256) == 256 * 3 * 2 * 16 * 2
    latent = summary_of(tmp_path, SMALL, llama__attention__kv_lora_rank=8)
    assert latent.kv_bytes(256) is None


def test_kv_cache_is_what_llamacpp_allocates(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    assert moe_gguf("convert", write_checkpoint(tmp_path / "tiny", Tiny()), "-o", path, "-q").status == 0
    llama_cpp, lines = llama(), []
    with listening(lambda _, text: lines.append(text)):
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = 8000
        context = llama_cpp.llama_init_from_model(model, params)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
    allocated = re.search(r"KV buffer size = +([\d.]+) MiB", "".join(lines))
    assert allocated
    predicted = summarize_gguf(read_gguf(path)).kv_bytes(8000)
    assert predicted
    assert f"{predicted / 2**20:.2f}" == allocated[1]


def test_experts_of_their_own_are_counted(tmp_path: Path) -> None:
    old = Shape(**{**vars(SMALL), "lone_experts": True})
    summary = summary_of(tmp_path, old)
    assert summary.lone_experts
    assert summary.n_active_params == summary_of(tmp_path, SMALL).n_active_params
    silent = {key: value for key, value in fields(old).items() if key != "llama.expert_count"}
    path = write_header_only(tmp_path / "silent.gguf", silent, entries(old))
    assert summarize_gguf(read_gguf(path)).n_expert == 3


def test_every_tensor_of_our_architectures_has_a_role() -> None:
    names = {
        Part.ROUTER: ("FFN_GATE_INP", "FFN_GATE_INP_SHEXP", "FFN_EXP_PROBS_B"),
        Part.EXPERTS: ("FFN_GATE_EXP", "FFN_UP_EXP", "FFN_DOWN_EXP", "FFN_GATE_UP_EXP"),
        Part.SHARED_EXPERTS: ("FFN_GATE_SHEXP", "FFN_UP_SHEXP", "FFN_DOWN_SHEXP"),
        Part.FEED_FORWARD: ("FFN_GATE", "FFN_UP", "FFN_DOWN"),
        Part.ATTENTION: ("ATTN_Q", "ATTN_K", "ATTN_V", "ATTN_OUT", "ATTN_QKV"),
        Part.NORMS: ("ATTN_NORM", "FFN_NORM", "ATTN_Q_NORM", "ATTN_K_NORM", "OUTPUT_NORM", "ATTN_POST_NORM"),
        Part.EMBEDDINGS: ("TOKEN_EMBD", "OUTPUT"),
        Part.OTHER: ("ROPE_FREQS", "SSM_IN"),
    }
    for role, members in names.items():
        for member in members:
            name = TENSOR_NAMES[MODEL_TENSOR[member]].format(bid=11)
            assert part_of(f"{name}.weight") is role, name
            assert part_of(f"{name}.bias") is role, name


TEMPLATES = {
    "{% for m in messages %}<|im_start|>{{ m.role }}": "ChatML",
    "[INST] {{ m.content }} [/INST]": "Mistral [INST]",
    "<|start_header_id|>": "Llama 3",
    "{{ messages }}": "its own",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates(template: str, tmp_path: Path) -> None:
    summary = summary_of(tmp_path, SMALL, tokenizer__chat_template=template)
    assert summary.template_kind == TEMPLATES[template]
    assert summary_of(tmp_path, SMALL).template_kind is None


ODD_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers() | st.text(), max_size=3)
)


@given(
    metadata=st.dictionaries(st.sampled_from(sorted(fields(SMALL))), ODD_VALUES),
    names=st.lists(st.text(max_size=12) | st.sampled_from([entry.name for entry in entries(SMALL)]), max_size=4),
)
def test_no_header_makes_it_fail(metadata: dict[str, Any], names: list[str]) -> None:
    tensors = tuple(TensorFacts(name, (32,), GGMLQuantizationType.Q8_0, 34, part_of(name)) for name in names)
    summary = Summary(metadata, tensors)
    assert 0 <= summary.n_active_params <= summary.n_params == 32 * len(names)
    assert summary.n_dense_params <= summary.n_params
    assert (summary.kv_bytes(4096) or 0) >= 0
    assert summary.bits_per_weight in (0.0, 8.5)
    assert summary.file_type is None or isinstance(summary.file_type, str)
    assert isinstance(summary.architecture, str)
