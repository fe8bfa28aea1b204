"""Tiny random models as GGUF files, written with the gguf package: what llama.cpp really loads and runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Fields = dict[str, Any]
Tensors = dict[str, np.ndarray]

N_EMBD, N_FF, N_HEAD, N_HEAD_KV, N_LAYER, N_EXPERT = 64, 96, 4, 2, 2, 4
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Return tokens, scores and types of a SentencePiece vocabulary that can spell anything."""
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    kinds = [2, 3, 3, 3, 3]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁the", "th", "he", "an", "▁a", "in"]
    tokens = special + bytes_ + letters
    scores = [0.0] * (len(special) + 256) + [-float(i) for i in range(len(letters))]
    types = kinds + [6] * 256 + [1] * len(letters)
    return tokens, scores, types


def tiny_fields() -> Fields:
    """Return the metadata of a small mixture of experts."""
    tokens, scores, types = vocabulary()
    return {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "llama.context_length": 512,
        "llama.embedding_length": N_EMBD,
        "llama.block_count": N_LAYER,
        "llama.feed_forward_length": N_FF,
        "llama.attention.head_count": N_HEAD,
        "llama.attention.head_count_kv": N_HEAD_KV,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": N_EMBD // N_HEAD,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": len(tokens),
        "llama.expert_count": N_EXPERT,
        "llama.expert_used_count": 2,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 4,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": CHATML,
    }


def tiny_tensors(seed: int = 0) -> Tensors:
    """Return the weights: float32, in numpy's order."""
    random = np.random.default_rng(seed)
    n_vocab, head = len(vocabulary()[0]), N_EMBD // N_HEAD
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, N_EMBD), "output_norm.weight": (N_EMBD,)}
    shapes["output.weight"] = (n_vocab, N_EMBD)
    for layer in range(N_LAYER):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (N_EMBD,),
            f"blk.{layer}.attn_q.weight": (N_HEAD * head, N_EMBD),
            f"blk.{layer}.attn_k.weight": (N_HEAD_KV * head, N_EMBD),
            f"blk.{layer}.attn_v.weight": (N_HEAD_KV * head, N_EMBD),
            f"blk.{layer}.attn_output.weight": (N_EMBD, N_HEAD * head),
            f"blk.{layer}.ffn_norm.weight": (N_EMBD,),
            f"blk.{layer}.ffn_gate_inp.weight": (N_EXPERT, N_EMBD),
            f"blk.{layer}.ffn_gate_exps.weight": (N_EXPERT, N_FF, N_EMBD),
            f"blk.{layer}.ffn_up_exps.weight": (N_EXPERT, N_FF, N_EMBD),
            f"blk.{layer}.ffn_down_exps.weight": (N_EXPERT, N_EMBD, N_FF),
        }
    return {
        name: (np.ones(shape) if name.endswith("norm.weight") else random.normal(0, 0.2, shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_tiny(
    path: Path,
    change: Callable[[Fields, Tensors], None] | None = None,
    seed: int = 0,
    qtype: gguf.GGMLQuantizationType | None = None,
) -> Path:
    """Write a tiny model; `change` may alter fields and tensors in place before they are written.

    With `qtype` all matrices but the routers are of that type.
    """
    fields, tensors = tiny_fields(), tiny_tensors(seed)
    if change:
        change(fields, tensors)
    writer = gguf.GGUFWriter(path, str(fields.pop("general.architecture", "")) or "llama", use_temp_file=False)
    for key, value in fields.items():
        add_field(writer, key, value)
    for name, array in tensors.items():
        if qtype is not None and array.ndim > 1 and "ffn_gate_inp" not in name:
            writer.add_tensor(name, gguf.quants.quantize(array, qtype), raw_dtype=qtype)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add one field of the type that its value suggests."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value) if 0 <= value < 2**32 else writer.add_int64(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
