"""Tiny dense models and LoRA adapters on disk, of every kind that merges are made of.

In: a Dense (what the model should be like); out: a folder with config.json, model.safetensors and a tokenizer.
The same numbers on every machine: a tensor depends on the seed and its name alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from ..checkpoints import stored, write_safetensors
from ..tiny_tokenizers import write_tokenizer

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}
TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Dense:
    """What a tiny dense model should be like."""

    model_type: str = "llama"
    seed: int = 1
    n_layer: int = 2
    n_embd: int = 64
    n_ff: int = 96
    n_head: int = 4
    n_head_kv: int = 2
    n_vocab: int = 512
    dtype: str = "BF16"
    tied: bool = False
    rope: tuple[tuple[str, Any], ...] = ()
    says_dtype: bool = True


def shapes(dense: Dense) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by its name."""
    head_dim = dense.n_embd // dense.n_head
    q, kv = dense.n_head * head_dim, dense.n_head_kv * head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (dense.n_embd,),
        "self_attn.q_proj.weight": (q, dense.n_embd),
        "self_attn.k_proj.weight": (kv, dense.n_embd),
        "self_attn.v_proj.weight": (kv, dense.n_embd),
        "self_attn.o_proj.weight": (dense.n_embd, q),
        "post_attention_layernorm.weight": (dense.n_embd,),
        "mlp.gate_proj.weight": (dense.n_ff, dense.n_embd),
        "mlp.up_proj.weight": (dense.n_ff, dense.n_embd),
        "mlp.down_proj.weight": (dense.n_embd, dense.n_ff),
    }
    if dense.model_type == "qwen2":
        layer |= {f"self_attn.{part}_proj.bias": (q if part == "q" else kv,) for part in "qkv"}
    if dense.model_type == "qwen3":
        layer |= {f"self_attn.{part}_norm.weight": (head_dim,) for part in "qk"}
    every: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (dense.n_vocab, dense.n_embd)}
    for index in range(dense.n_layer):
        every |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    every["model.norm.weight"] = (dense.n_embd,)
    if not dense.tied:
        every["lm_head.weight"] = (dense.n_vocab, dense.n_embd)
    return every


def draw(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a tensor: norms around one, biases small, matrices so that products stay near one."""
    source = np.random.default_rng([seed, crc32(name.encode())])
    values = source.standard_normal(shape)
    if name.endswith("norm.weight"):
        return (1 + 0.1 * values).astype(np.float32)
    return (0.1 * values if len(shape) == 1 else values / np.sqrt(shape[-1])).astype(np.float32)


def dense_config(dense: Dense) -> dict[str, Any]:
    """Return config.json as such models have it."""
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[dense.model_type]],
        "model_type": dense.model_type,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": dense.n_embd,
        "intermediate_size": dense.n_ff,
        "max_position_embeddings": 512,
        "num_attention_heads": dense.n_head,
        "num_hidden_layers": dense.n_layer,
        "num_key_value_heads": dense.n_head_kv,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": dense.tied,
        "vocab_size": dense.n_vocab,
    }
    if dense.says_dtype:
        config["torch_dtype"] = TORCH_DTYPES[dense.dtype]
    if dense.rope:
        config["rope_scaling"] = dict(dense.rope)
    if dense.model_type == "mistral":
        config["sliding_window"] = 4096
    if dense.model_type.startswith("qwen"):
        config |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": dense.n_layer}
    if dense.model_type == "qwen3":
        config |= {"head_dim": dense.n_embd // dense.n_head, "attention_bias": False}
    return config


def write_dense(folder: Path, dense: Dense, **overrides: Any) -> Path:
    """Write a dense model; `overrides` are keys of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dense_config(dense) | overrides, indent=2))
    tensors = {name: stored(draw(dense.seed, name, shape), dense.dtype) for name, shape in shapes(dense).items()}
    write_safetensors(folder / "model.safetensors", tensors)
    write_tokenizer(folder, "smollm", dense.n_vocab)
    return folder


def write_lora(folder: Path, dense: Dense, seed: int, rank: int = 4, dtype: str = "BF16", **overrides: Any) -> Path:
    """Write a PEFT adapter that changes the MLPs of a dense model; `overrides` are keys of adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    modules = ["gate_proj", "up_proj", "down_proj"]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "inference_mode": True,
    }
    tensors = {}
    for name, shape in shapes(dense).items():
        if name.split(".")[-2] in modules:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
            tensors[a] = stored(draw(seed, a, (rank, shape[1])), dtype)
            tensors[b] = stored(0.1 * draw(seed, b, (shape[0], rank)), dtype)
    (folder / "adapter_config.json").write_text(json.dumps(config | overrides, indent=2))
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder
