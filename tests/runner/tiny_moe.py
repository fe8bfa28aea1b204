"""Mixture-of-experts GGUF files for placement: tiny ones with random weights, and large ones that are only a header."""

from math import prod
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quant_shape_to_byte_shape, quants


def tensor_shapes(n_layer: int, n_embd: int, n_ff: int, n_expert: int, n_kv: int, n_vocab: int) -> dict[str, tuple]:
    """Return name -> shape (slowest first) of the llama architecture; one expert means a dense model."""
    experts = (n_expert,) if n_expert > 1 else ()
    suffix = "_exps" if experts else ""
    shapes: dict[str, tuple] = {"token_embd.weight": (n_vocab, n_embd), "output_norm.weight": (n_embd,)}
    shapes["output.weight"] = (n_vocab, n_embd)
    for i in range(n_layer):
        layer = {
            "attn_norm": (n_embd,),
            "attn_q": (n_embd, n_embd),
            "attn_k": (n_kv, n_embd),
            "attn_v": (n_kv, n_embd),
            "attn_output": (n_embd, n_embd),
            "ffn_norm": (n_embd,),
            f"ffn_gate{suffix}": (*experts, n_ff, n_embd),
            f"ffn_up{suffix}": (*experts, n_ff, n_embd),
            f"ffn_down{suffix}": (*experts, n_embd, n_ff),
        }
        if experts:
            layer["ffn_gate_inp"] = (n_expert, n_embd)
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def write_moe(
    path: Path,
    *,
    n_layer: int = 4,
    n_embd: int = 256,
    n_ff: int = 512,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_expert: int = 4,
    n_expert_used: int = 2,
    n_vocab: int = 512,
    n_ctx_train: int = 4096,
    qtype: GGMLQuantizationType = GGMLQuantizationType.Q8_0,
    tied: bool = False,
    weights: bool = True,
) -> Path:
    """Write a llama model without a vocabulary; without weights the file is a hole after its header."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(n_layer)
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(n_embd // n_head)
    writer.add_vocab_size(n_vocab)
    writer.add_tokenizer_model("none")
    if n_expert > 1:
        writer.add_expert_count(n_expert)
        writer.add_expert_used_count(n_expert_used)
    shapes = tensor_shapes(n_layer, n_embd, n_ff, n_expert, n_embd // n_head * n_head_kv, n_vocab)
    if tied:
        del shapes["output.weight"]
    random = np.random.default_rng(7)
    n_bytes = 0
    for name, shape in shapes.items():
        kind = GGMLQuantizationType.F32 if len(shape) == 1 or "ffn_gate_inp" in name else qtype
        if weights:
            values = random.standard_normal(shape, np.float32) * (0.1 if len(shape) > 1 else 0.05) + (len(shape) == 1)
            writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
        else:
            size = prod(quant_shape_to_byte_shape(shape, kind)) if kind != GGMLQuantizationType.F32 else prod(shape) * 4
            dtype = np.dtype(np.float32 if kind == GGMLQuantizationType.F32 else np.uint8)
            stored = shape if kind == GGMLQuantizationType.F32 else quant_shape_to_byte_shape(shape, kind)
            writer.add_tensor_info(name, stored, dtype, size, raw_dtype=kind)
            n_bytes += size + -size % 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if weights:
        writer.write_tensors_to_file()
    else:
        writer.write_ti_data_to_file()
    writer.close()
    if not weights:
        with open(path, "r+b") as file:
            header = path.stat().st_size
            file.truncate(header + -header % 32 + n_bytes)
    return path
