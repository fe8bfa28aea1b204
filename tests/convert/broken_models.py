"""Checkpoints whose files are whole but do not make a model: what is done, and what the refusal must name."""

import numpy as np

from ..checkpoints import stored, write_checkpoint
from ..tiny_tokenizers import write_tokenizer
from .damage import FUSED, SMALL, Break, Words, cut, poisoned, reshaped, retensor, retouch, setting, without

Q = "model.layers.0.self_attn.q_proj.weight"
EXPERT = "model.layers.1.block_sparse_moe.experts.2.{}.weight"
FUSED_DOWN = "model.layers.1.mlp.experts.down_proj"
FUSED_UP = "model.layers.1.mlp.experts.gate_up_proj"

BROKEN_MODELS: dict[str, tuple[Break, Words]] = {
    # tensors
    "missing expert": (without(EXPERT.format("w2")), (EXPERT.format("w2"),)),
    "missing first expert": (
        without("model.layers.0.block_sparse_moe.experts.0.w1.weight"),
        ("model.layers.0.block_sparse_moe.experts.0.w1.weight",),
    ),
    "missing router": (without("model.layers.1.block_sparse_moe.gate.weight"), ("model.layers.1", "gate.weight")),
    "missing norm": (without("model.norm.weight"), ("model.norm.weight",)),
    "missing attention": (without(Q), (Q,)),
    "missing embedding": (without("model.embed_tokens.weight"), ("model.embed_tokens.weight",)),
    "missing head though not tied": (without("lm_head.weight"), ("lm_head.weight", "tie")),
    "experts of different shapes": (reshaped(EXPERT.format("w1"), 48, 32), (EXPERT.format("w1"), "48")),
    "an expert transposed": (reshaped(EXPERT.format("w2"), 16, 64), (EXPERT.format("w2"), "[16, 64]")),
    "a router for other experts": (
        reshaped("model.layers.1.block_sparse_moe.gate.weight", 3, 32),
        ("model.layers.1.block_sparse_moe.gate.weight", "[3, 32]"),
    ),
    "a norm that is a matrix": (reshaped("model.norm.weight", 32, 32), ("model.norm.weight", "[32, 32]")),
    "a scalar for a norm": (reshaped("model.norm.weight"), ("model.norm.weight",)),
    "attention of another width": (reshaped(Q, 48, 32), (Q, "[48, 32]")),
    "an embedding of another width": (
        reshaped("model.embed_tokens.weight", 320, 48),
        ("model.embed_tokens.weight", "[320, 48]"),
    ),
    "fused experts of which one is missing": (
        retensor(lambda t: t.update({FUSED_DOWN: stored(np.zeros((3, 32, 32), np.float32), "BF16")}), FUSED),
        ("model.layers.1.mlp.experts.down_proj", "[3, 32, 32]"),
    ),
    "fused experts without one half": (
        retensor(lambda t: t.update({FUSED_UP: stored(np.zeros((4, 33, 32), np.float32), "BF16")}), FUSED),
        ("model.layers.1.mlp.experts.gate_up_proj", "[4, 33, 32]"),
    ),
    "a tensor nobody asked for": (
        retensor(lambda t: t.update({"model.layers.0.surprise.weight": stored(np.zeros((2, 2), np.float32), "BF16")})),
        ("model.layers.0.surprise.weight",),
    ),
    "a layer beyond the last": (setting("num_hidden_layers", 1), ("model.layers.1.",)),
    "a layer too few": (setting("num_hidden_layers", 3), ("model.layers.2.",)),
    "two million layers": (setting("num_hidden_layers", 2_000_000), ("model.layers.2.",)),
    # config
    "config is not JSON": (cut("config.json", -1), ("config.json", "JSON")),
    "config is a list": (lambda s: (s / "config.json").write_text("[]"), ("config.json",)),
    "unsupported architecture": (
        setting("architectures", ["GPTBigCodeForCausalLM"]),
        ("GPTBigCodeForCausalLM", "MixtralForCausalLM"),
    ),
    "no architecture": (setting("architectures", None), ("architectures",)),
    "architecture is a number": (setting("architectures", [7]), ("architectures",)),
    "fewer experts in config": (setting("num_local_experts", 3), ("num_local_experts", "3", "4")),
    "more experts in config": (setting("num_local_experts", 5), ("num_local_experts", "5", "4")),
    "no experts in config": (setting("num_local_experts", 0), ("num_local_experts",)),
    "more experts per token than experts": (setting("num_experts_per_tok", 5), ("num_experts_per_tok", "5", "4")),
    "no expert per token": (setting("num_experts_per_tok", 0), ("num_experts_per_tok", "0")),
    "hidden size is text": (setting("hidden_size", "32"), ("hidden_size", "'32'")),
    "hidden size is missing": (setting("hidden_size", None), ("hidden_size",)),
    "hidden size is another": (setting("hidden_size", 64), ("64",)),
    "hidden size is huge": (setting("hidden_size", 2**80), ("hidden_size",)),
    "keys do not divide heads": (setting("num_key_value_heads", 3), ("num_key_value_heads", "3")),
    "heads do not divide the width": (setting("num_attention_heads", 6), ("num_attention_heads", "6")),
    "vocabulary size is text": (setting("vocab_size", "320"), ("vocab_size",)),
    "epsilon is text": (setting("rms_norm_eps", "small"), ("rms_norm_eps", "small")),
    "epsilon is an enormous integer": (setting("rms_norm_eps", 10**400), ("rms_norm_eps",)),
    "theta is text": (setting("rope_theta", "10000"), ("rope_theta",)),
    "theta is an enormous integer": (setting("rope_theta", 10**400), ("rope_theta",)),
    "theta beyond float32": (setting("rope_theta", 1e300), ("rope_theta",)),
    "rope scaling is text": (setting("rope_scaling", "linear"), ("linear",)),
    "rope scaling of an unknown kind": (setting("rope_scaling", {"rope_type": "spiral", "factor": 2.0}), ("spiral",)),
    "rope scaling without a factor": (setting("rope_scaling", {"rope_type": "linear"}), ("factor",)),
    "rope scaling by text": (setting("rope_scaling", {"rope_type": "linear", "factor": "two"}), ("factor",)),
    "yarn without its old length": (
        setting("rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
        ("original_max_position_embeddings",),
    ),
    "llama3 rope with equal limits": (
        setting(
            "rope_scaling",
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 4.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        ("freq_factor",),
    ),
    "weights in 8 bits": (
        retensor(lambda t: t.update({Q: ("F8_E4M3", (32, 32), bytes(1024))})),
        (Q, "F8_E4M3", "BF16"),
    ),
    "an activation llama.cpp would not use": (setting("hidden_act", "gelu"), ("hidden_act", "gelu")),
    # weights
    "NaN in an expert": (
        poisoned(EXPERT.format("w3"), 5, float("nan")),
        (EXPERT.format("w3"), "expert 2", "row 5", "--allow-nonfinite"),
    ),
    "infinity in an expert": (
        poisoned(EXPERT.format("w1"), 6, float("inf")),
        (EXPERT.format("w1"), "expert 2", "row 6", "--allow-nonfinite"),
    ),
    "NaN in a fused expert's up half": (
        poisoned("model.layers.1.mlp.experts.gate_up_proj", 40, float("nan"), FUSED, 3),
        ("model.layers.1.mlp.experts.gate_up_proj", "expert 3", "row 40", "--allow-nonfinite"),
    ),
    "infinity in attention": (poisoned(Q, 9, float("-inf")), (Q, "row 9", "--allow-nonfinite")),
    # tokenizer
    "more tokens than rows": (
        lambda s: write_checkpoint(s, SMALL) and write_tokenizer(s, "smollm", 323),
        ("320 rows", "320 'ever'", "322 'on'"),
    ),
    "tokenizer is not JSON": (cut("tokenizer.json", -1), ("tokenizer.json",)),
    "tokenizer is a list": (lambda s: (s / "tokenizer.json").write_text("[]"), ("tokenizer.json",)),
    "an unknown pre-tokenizer": (
        retouch("tokenizer.json", lambda t: t.update(pre_tokenizer={"type": "CharDelimiterSplit", "delimiter": "x"})),
        ("pre-tokenizer", "--"),
    ),
    "a tokenizer of another model": (
        retouch("tokenizer.json", lambda t: t["model"].update(type="WordLevel")),
        ("tokenizer.json", "WordLevel"),
    ),
    "a token without a number": (
        retouch("tokenizer.json", lambda t: t["model"]["vocab"].update({"the": "x"})),
        ("tokenizer.json",),
    ),
    "two tokens with one number": (
        retouch("tokenizer.json", lambda t: t["model"]["vocab"].update({"zzz": 300})),
        ("tokenizer.json", "300"),
    ),
    "a merge of three": (
        retouch("tokenizer.json", lambda t: t["model"]["merges"].append(["a", "b", "c"])),
        ("tokenizer.json",),
    ),
    "a broken SentencePiece model": (
        lambda s: ((s / "tokenizer.json").unlink(), (s / "tokenizer.model").write_bytes(b"\x0a\xff\xff")),
        ("tokenizer.model",),
    ),
}
