"""Writes GGUF files that have a header and no weights: sparse files of any family, for mixes and dry runs."""

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from moe_gguf.formats.gguf_file import tensor_bytes
from moe_gguf.models.tensor_types import TensorShape

# What llama.cpp asks of the rarer families besides the sizes.
_LINEAR_ATTENTION: dict[str, int | float] = {
    "attention.key_length_mla": 64,
    "attention.value_length_mla": 64,
    "attention.q_lora_rank": 64,
    "attention.kv_lora_rank": 64,
    "ssm.conv_kernel": 4,
    "kda.head_dim": 64,
    "kda.gate_lower_bound": -1.0,
    "expert_shared_count": 1,
    "leading_dense_block_count": 1,
    "expert_gating_func": 2,
}
_MORE_KEYS: dict[str, dict[str, int | float]] = {
    "bailingmoe3": _LINEAR_ATTENTION,
    "glm5-next": {
        **_LINEAR_ATTENTION,
        "attention.indexer.head_count": 4,
        "attention.indexer.key_length": 64,
        "attention.indexer.top_k": 64,
        "attention.indexer.kpool": 4,
        "hyper_connection.count": 4,
        "hyper_connection.sinkhorn_iterations": 2,
        "hyper_connection.epsilon": 1e-6,
    },
}


@dataclass(frozen=True)
class Shape:
    """A model to be described: the sizes that mixes look at."""

    family: str = "llama"
    n_layer: int = 4
    n_expert: int = 4
    n_head: int = 8
    n_head_kv: int = 2
    n_embd: int = 512
    n_ff: int = 1024
    n_vocab: int = 320
    tied: bool = False


def tensors_of(shape: Shape, qtype: GGMLQuantizationType = GGMLQuantizationType.BF16) -> list[TensorShape]:
    """List the tensors of a model, in an order that is not llama.cpp's: file order must not matter."""
    layers = [rows for i in range(shape.n_layer) for rows in _layer(shape, i)]
    outside = [("output_norm.weight", (shape.n_embd,)), ("token_embd.weight", (shape.n_embd, shape.n_vocab))]
    if not shape.tied:
        outside.append(("output.weight", (shape.n_embd, shape.n_vocab)))
    return [
        TensorShape(name, size, qtype if sum(n > 1 for n in size) > 1 else GGMLQuantizationType.F32)
        for name, size in [*reversed(layers), *outside]
    ]


def _layer(shape: Shape, i: int) -> list[tuple[str, tuple[int, ...]]]:
    n_embd, block = shape.n_embd, f"blk.{i}."
    rows = [("attn_norm.weight", (n_embd,)), ("ffn_norm.weight", (n_embd,)), *_attention(shape)]
    if shape.n_expert == 0 or (shape.family.startswith("deepseek") and i == 0):
        rows += [("ffn_gate.weight", (n_embd, shape.n_ff)), ("ffn_up.weight", (n_embd, shape.n_ff))]
        rows += [("ffn_down.weight", (shape.n_ff, n_embd))]
    else:
        stack = (shape.n_expert,)
        rows += [("ffn_gate_inp.weight", (n_embd, *stack))]
        rows += [(f"ffn_{part}_exps.weight", (n_embd, shape.n_ff, *stack)) for part in ("gate", "up")]
        rows += [("ffn_down_exps.weight", (shape.n_ff, n_embd, *stack))]
        if shape.family in ("qwen2moe", "deepseek", "deepseek2"):
            rows += [(f"ffn_{part}_shexp.weight", (n_embd, shape.n_ff)) for part in ("gate", "up")]
            rows += [("ffn_down_shexp.weight", (shape.n_ff, n_embd))]
        if shape.family == "qwen2moe":
            rows += [("ffn_gate_inp_shexp.weight", (n_embd,))]
    return [(block + name, size) for name, size in rows]


def _attention(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    n_embd = shape.n_embd
    n_kv = n_embd // shape.n_head * shape.n_head_kv
    if shape.family == "deepseek2":
        return [
            ("attn_q.weight", (n_embd, n_embd)),
            ("attn_kv_a_mqa.weight", (n_embd, 256 + 64)),
            ("attn_kv_a_norm.weight", (256,)),
            ("attn_kv_b.weight", (256, 2 * n_embd)),
            ("attn_output.weight", (n_embd, n_embd)),
        ]
    if shape.family == "falcon":
        return [("attn_qkv.weight", (n_embd, n_embd + 2 * n_kv)), ("attn_output.weight", (n_embd, n_embd))]
    rows = [
        ("attn_q.weight", (n_embd, n_embd)),
        ("attn_k.weight", (n_embd, n_kv)),
        ("attn_v.weight", (n_embd, n_kv)),
        ("attn_output.weight", (n_embd, n_embd)),
    ]
    if shape.family.startswith("qwen2"):
        rows += [("attn_v.bias", (n_kv,)), ("attn_q.bias", (n_embd,))]
    if shape.family == "qwen3moe":
        rows += [("attn_k_norm.weight", (n_embd // shape.n_head,))]
    return rows


def write_header(
    path: Path,
    shape: Shape,
    tensors: list[TensorShape] | None = None,
    split: tuple[int, int, int] | None = None,
    file_type: gguf.LlamaFileType | None = gguf.LlamaFileType.MOSTLY_BF16,
) -> Path:
    """Write the file: a true header, then as many bytes as the weights would take, none of them on the disk.

    `split` is a shard's number from 0, the number of shards and that of all tensors.
    """
    tensors = tensors_of(shape) if tensors is None else tensors
    writer = gguf.GGUFWriter(path, shape.family)
    if file_type is not None:
        writer.add_file_type(int(file_type))
    hyper_parameters(writer, shape)
    if split:
        writer.add_uint16(gguf.Keys.Split.LLM_KV_SPLIT_NO, split[0])
        writer.add_uint16(gguf.Keys.Split.LLM_KV_SPLIT_COUNT, split[1])
        writer.add_int32(gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, split[2])
    for tensor in tensors:
        size = tensor_bytes(tensor.shape, tensor.qtype)
        storage = np.dtype(np.uint8)
        block_size, type_size = gguf.GGML_QUANT_SIZES[tensor.qtype]
        row = tensor.shape[0] // block_size * type_size
        writer.add_tensor_info(tensor.name, [*reversed(tensor.shape[1:]), row], storage, size, raw_dtype=tensor.qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    padded = sum(gguf.GGUFWriter.ggml_pad(tensor_bytes(t.shape, t.qtype), 32) for t in tensors)
    with open(path, "r+b") as file:
        start = file.seek(0, 2)
        file.truncate(start + -start % 32 + padded)
    return path


def hyper_parameters(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """Add the keys that llama.cpp needs to know the sizes of a model."""
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(512)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(shape.n_vocab)
    if shape.n_expert:
        writer.add_expert_count(shape.n_expert)
        writer.add_expert_used_count(min(2, shape.n_expert))
        writer.add_expert_feed_forward_length(shape.n_ff)
    for key, value in _MORE_KEYS.get(shape.family, {}).items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(f"{shape.family}.{key}", value)  # type: ignore[arg-type]
    if shape.family.startswith("deepseek"):
        writer.add_leading_dense_block_count(1)
        writer.add_expert_shared_count(1)
        writer.add_expert_weights_scale(1.0)
        writer.add_expert_weights_norm(False)
        writer.add_q_lora_rank(128)
        writer.add_kv_lora_rank(256)
        writer.add_rope_dimension_count(64)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
