"""GGUF files of real sizes that hold a header and nothing else: sparse, so that 93 GB take no disk.

In: the shape of a mixture of Mistral-7B's kind. Out: a file, or the fields and entries of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGMLQuantizationType, LlamaFileType
from moe_gguf.formats.gguf_fields import Field, field_of
from moe_gguf.formats.gguf_layout import TensorEntry, lay_out, shard_path, split_fields

BF16, F32 = GGMLQuantizationType.BF16, GGMLQuantizationType.F32


@dataclass(frozen=True)
class Shape:
    """The shape of a mixture; the defaults are Mistral-7B's."""

    n_expert: int = 4
    n_expert_used: int = 2
    n_layer: int = 32
    n_embd: int = 4096
    n_ff: int = 14336
    n_head: int = 32
    n_head_kv: int = 8
    n_vocab: int = 32000
    lone_experts: bool = False


MISTRAL_4X7B = Shape()
MIXTRAL_8X7B = Shape(n_expert=8)


def entries(shape: Shape, qtype: GGMLQuantizationType = BF16) -> list[TensorEntry]:
    """Return the tensors of a mixture, matrices in `qtype`."""
    n_embd, n_kv = shape.n_embd, shape.n_embd // shape.n_head * shape.n_head_kv
    found = [TensorEntry("token_embd.weight", (n_embd, shape.n_vocab), qtype)]
    for layer in range(shape.n_layer):
        matrices: dict[str, tuple[int, ...]] = {
            "attn_q": (n_embd, n_embd),
            "attn_k": (n_embd, n_kv),
            "attn_v": (n_embd, n_kv),
            "attn_output": (n_embd, n_embd),
            **_experts(shape),
        }
        found += [TensorEntry(f"blk.{layer}.{name}.weight", size, qtype) for name, size in matrices.items()]
        found.append(TensorEntry(f"blk.{layer}.ffn_gate_inp.weight", (n_embd, shape.n_expert), F32))
        found += [TensorEntry(f"blk.{layer}.{name}.weight", (n_embd,), F32) for name in ("attn_norm", "ffn_norm")]
    found.append(TensorEntry("output_norm.weight", (n_embd,), F32))
    return [*found, TensorEntry("output.weight", (n_embd, shape.n_vocab), qtype)]


def _experts(shape: Shape) -> dict[str, tuple[int, ...]]:
    sizes = {
        "ffn_gate": (shape.n_embd, shape.n_ff),
        "ffn_up": (shape.n_embd, shape.n_ff),
        "ffn_down": (shape.n_ff, shape.n_embd),
    }
    if shape.lone_experts:
        return {f"{name}.{expert}": size for expert in range(shape.n_expert) for name, size in sizes.items()}
    return {f"{name}_exps": (*size, shape.n_expert) for name, size in sizes.items()}


def fields(shape: Shape, file_type: LlamaFileType = LlamaFileType.MOSTLY_BF16, **others: Any) -> dict[str, Field]:
    """Return the metadata of a mixture; `others` are further keys, with "__" for each dot."""
    values: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": f"Test {shape.n_expert}x7B",
        "general.file_type": int(file_type),
        "llama.block_count": shape.n_layer,
        "llama.context_length": 32768,
        "llama.embedding_length": shape.n_embd,
        "llama.feed_forward_length": shape.n_ff,
        "llama.attention.head_count": shape.n_head,
        "llama.attention.head_count_kv": shape.n_head_kv,
        "llama.expert_count": shape.n_expert,
        "llama.expert_used_count": shape.n_expert_used,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(shape.n_vocab)],
        **{key.replace("__", "."): value for key, value in others.items()},
    }
    return {key: field_of(value) for key, value in values.items()}


def write_header_only(path: Path, metadata: dict[str, Field], tensors: Sequence[TensorEntry]) -> Path:
    """Write a file's header and stretch it to its full size."""
    layout = lay_out(metadata, tensors)
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.n_bytes)
    return path


def write_split(path: Path, metadata: dict[str, Field], tensors: Sequence[TensorEntry], count: int) -> list[Path]:
    """Write the headers of a file split into `count` shards; return the shards' paths."""
    step = -(-len(tensors) // count)
    return [
        write_header_only(
            shard_path(path, number, count),
            split_fields(metadata, number, count, len(tensors)),
            tensors[number * step : (number + 1) * step],
        )
        for number in range(count)
    ]
