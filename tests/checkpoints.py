"""Tiny Mixtral checkpoints on disk, as mergekit and transformers write them, and broken ones.

In: a Tiny (what the checkpoint should be like); out: config.json, safetensors shards, a tokenizer. A tensor's
values depend on the seed and its classic name alone, so every layout holds the same weights.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from .families import LAYERS, family_keys
from .tiny_tokenizers import write_tokenizer

Stored = tuple[str, tuple[int, ...], bytes]
"""A tensor as safetensors has it: its dtype's name, its shape, its bytes."""

LAYER = "model.layers.{}."
EXPERT = LAYER + "block_sparse_moe.experts.{}.{}.weight"


@dataclass(frozen=True)
class Tiny:
    """What a tiny checkpoint should be like; `scaling` holds the items of its `rope_scaling`."""

    n_layer: int = 2
    n_embd: int = 64
    n_ff: int = 96
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int | None = None
    n_expert: int = 4
    n_expert_used: int = 2
    n_vocab: int = 512
    n_token: int | None = None
    dtype: str = "BF16"
    tied: bool = False
    layout: str = "classic"
    cuts: tuple[int, ...] = ()
    spelling: str = "old"
    scaling: tuple[tuple[str, Any], ...] = ()
    rope_theta: float = 10000.0
    tokenizer: str = "smollm"
    identical_experts: bool = False
    awkward_values: bool = False
    seed: int = 1

    @property
    def n_rot(self) -> int:
        """Return the width of a head."""
        return self.head_dim or self.n_embd // self.n_head


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16 bit patterns, to nearest, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def stored(values: np.ndarray, dtype: str) -> Stored:
    """Return float32 values as a safetensors tensor of dtype F32, F16 or BF16."""
    rounded = {"F32": np.float32, "F16": np.float16}
    array = to_bf16(values) if dtype == "BF16" else values.astype(rounded[dtype])
    return dtype, values.shape, array.tobytes()


def awkward(values: np.ndarray) -> np.ndarray:
    """Mix in what rounding can get wrong: ties of bfloat16 and float16, subnormals, zeros of both signs."""
    flat = values.reshape(-1).copy()
    bits = flat.view(np.uint32)
    bits[1::16] = (bits[1::16] & 0xFFFF0000) | 0x8000
    bits[2::16] = (bits[2::16] & 0xFFFFE000) | 0x1000
    flat[3::16] *= np.float32(2.0**-16)
    flat[4::32] *= np.float32(2.0**-24)
    flat[5::64] = -0.0
    flat[6::64] *= np.float32(2.0**-126)
    return flat.reshape(values.shape)


def values(tiny: Tiny, name: str, *shape: int) -> np.ndarray:
    """Draw a float32 tensor whose products stay near one; vectors (norms) are drawn around one."""
    source = np.random.default_rng([tiny.seed, crc32(name.encode())])
    if len(shape) == 1:
        return (1 + 0.1 * source.standard_normal(shape)).astype(np.float32)
    drawn = (source.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
    return awkward(drawn) if tiny.awkward_values else drawn


def attention_tensors(tiny: Tiny, layer: int) -> dict[str, np.ndarray]:
    """Return the attention and norm tensors of a layer by their Hugging Face names."""
    n_q, n_kv = tiny.n_head * tiny.n_rot, tiny.n_head_kv * tiny.n_rot
    shapes = {
        "self_attn.q_proj": (n_q, tiny.n_embd),
        "self_attn.k_proj": (n_kv, tiny.n_embd),
        "self_attn.v_proj": (n_kv, tiny.n_embd),
        "self_attn.o_proj": (tiny.n_embd, n_q),
        "input_layernorm": (tiny.n_embd,),
        "post_attention_layernorm": (tiny.n_embd,),
    }
    names = {f"{LAYER.format(layer)}{part}.weight": shape for part, shape in shapes.items()}
    return {name: values(tiny, name, *shape) for name, shape in names.items()}


def expert_weight(tiny: Tiny, layer: int, expert: int, part: str) -> np.ndarray:
    """Return w1 (gate), w2 (down) or w3 (up) of an expert."""
    shape = (tiny.n_embd, tiny.n_ff) if part == "w2" else (tiny.n_ff, tiny.n_embd)
    return values(tiny, EXPERT.format(layer, 0 if tiny.identical_experts else expert, part), *shape)


def expert_tensors(tiny: Tiny, layer: int) -> dict[str, np.ndarray]:
    """Return the router and the experts of a layer in its layout: "classic", "fused", "dense", or a family's."""
    if tiny.layout in LAYERS:
        names = {LAYER.format(layer) + name: shape for name, shape in LAYERS[tiny.layout](tiny).items()}
        return {name: values(tiny, name, *shape) for name, shape in names.items()}
    parts = {p: [expert_weight(tiny, layer, e, p) for e in range(tiny.n_expert)] for p in ("w1", "w2", "w3")}
    prefix = LAYER.format(layer)
    if tiny.layout == "dense":
        names = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
        return {f"{prefix}mlp.{name}.weight": parts[part][0] for name, part in names.items()}
    router = values(tiny, f"{prefix}block_sparse_moe.gate.weight", tiny.n_expert, tiny.n_embd)
    if tiny.layout == "fused":
        gate_up = [np.concatenate(pair) for pair in zip(parts["w1"], parts["w3"], strict=True)]
        return {
            f"{prefix}mlp.gate.weight": router,
            f"{prefix}mlp.experts.gate_up_proj": np.stack(gate_up),
            f"{prefix}mlp.experts.down_proj": np.stack(parts["w2"]),
        }
    tensors = {f"{prefix}block_sparse_moe.gate.weight": router}
    for expert in range(tiny.n_expert):
        for part, arrays in parts.items():
            tensors[EXPERT.format(layer, expert, part)] = arrays[expert]
    return tensors


def tensors(tiny: Tiny) -> dict[str, Stored]:
    """Return all tensors of a checkpoint, embedding first, head last."""
    arrays = {"model.embed_tokens.weight": values(tiny, "embed", tiny.n_vocab, tiny.n_embd)}
    for layer in range(tiny.n_layer):
        arrays |= attention_tensors(tiny, layer) | expert_tensors(tiny, layer)
    arrays["model.norm.weight"] = values(tiny, "model.norm.weight", tiny.n_embd)
    if not tiny.tied:
        arrays["lm_head.weight"] = values(tiny, "lm_head.weight", tiny.n_vocab, tiny.n_embd)
    return {name: stored(array, tiny.dtype) for name, array in arrays.items()}


def config(tiny: Tiny) -> dict[str, Any]:
    """Return config.json in the spelling of transformers 4 ("old") or 5 ("new")."""
    dense = tiny.layout == "dense"
    document: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM" if dense else "MixtralForCausalLM"],
        "model_type": "llama" if dense else "mixtral",
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": tiny.n_embd,
        "initializer_range": 0.02,
        "intermediate_size": tiny.n_ff,
        "max_position_embeddings": 256,
        "num_attention_heads": tiny.n_head,
        "num_hidden_layers": tiny.n_layer,
        "num_key_value_heads": tiny.n_head_kv,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": tiny.tied,
        "use_cache": False,
        "vocab_size": tiny.n_vocab,
    }
    if tiny.layout in LAYERS:
        document |= family_keys(tiny)
    elif not dense:
        document |= {
            "num_experts_per_tok": tiny.n_expert_used,
            "num_local_experts": tiny.n_expert,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
            "sliding_window": None,
        }
    if tiny.head_dim:
        document["head_dim"] = tiny.head_dim
    torch_dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[tiny.dtype]
    scaling = dict(tiny.scaling)
    if tiny.spelling == "new":
        rope = {"rope_theta": tiny.rope_theta, "rope_type": "default"} | scaling
        return document | {"rope_parameters": rope, "dtype": torch_dtype, "transformers_version": "5.23.0"}
    document |= {"rope_theta": tiny.rope_theta, "torch_dtype": torch_dtype, "transformers_version": "4.36.0"}
    return document | ({"rope_scaling": scaling} if scaling else {})


def header(stored_tensors: dict[str, Stored]) -> dict[str, Any]:
    """Return the header of a safetensors file that holds these tensors one after the other."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in stored_tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    return entries


def write_safetensors(path: Path, stored_tensors: dict[str, Stored], head: Any = None) -> None:
    """Write a safetensors file; `head` replaces the header: bytes as they are, anything else as JSON."""
    document = header(stored_tensors) if head is None else head
    encoded = document if isinstance(document, bytes) else json.dumps(document).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, _, data in stored_tensors.values():
            file.write(data)


def write_shards(folder: Path, stored_tensors: dict[str, Stored], cuts: tuple[int, ...] = ()) -> None:
    """Write the tensors into model.safetensors, or into shards cut at the given positions, with an index."""
    if not cuts:
        return write_safetensors(folder / "model.safetensors", stored_tensors)
    names = list(stored_tensors)
    edges = [0, *sorted(cuts), len(names)]
    index: dict[str, str] = {}
    for i in range(len(edges) - 1):
        file = f"model-{i + 1:05}-of-{len(edges) - 1:05}.safetensors"
        part = {name: stored_tensors[name] for name in names[edges[i] : edges[i + 1]]}
        write_safetensors(folder / file, part)
        index |= dict.fromkeys(part, file)
    total = sum(len(data) for _, _, data in stored_tensors.values())
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))


def write_checkpoint(folder: Path, tiny: Tiny, extra: dict[str, str] | None = None, **overrides: Any) -> Path:
    """Write a whole checkpoint; `extra` holds further files by name, `overrides` keys of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(tiny) | overrides, indent=2))
    write_tokenizer(folder, tiny.tokenizer, tiny.n_token or tiny.n_vocab)
    write_shards(folder, tensors(tiny), tiny.cuts)
    for name, text in (extra or {}).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder
